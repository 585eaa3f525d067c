"""Health and readiness, over the site that serves them."""

from __future__ import annotations

import pytest
from twisted.internet.address import UNIXAddress

from flowstack.admin.health import admin_resource
from tests.admin.lab import AdminListener


def asked(
    path: bytes, fault: str | None = None, method: bytes = b"GET", host: bytes = b"localhost", *hosts: str
) -> bytes:
    return AdminListener(admin_resource(lambda: fault, hosts=hosts)).ask(path, method, host=host)


def test_a_process_that_serves_is_healthy_even_where_it_is_not_ready() -> None:
    for fault in (None, "draining"):
        assert asked(b"/healthz", fault).startswith(b"HTTP/1.1 200 ")


def test_readiness_says_why_not() -> None:
    assert asked(b"/readyz").startswith(b"HTTP/1.1 200 ")
    assert asked(b"/readyz").endswith(b"\r\n\r\nok\n")
    answer = asked(b"/readyz", "draining")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\ndraining\n")


def test_answers_are_not_stored() -> None:
    assert b"no-store" in asked(b"/readyz")


def test_head_gets_the_same_without_the_body() -> None:
    answer = asked(b"/healthz", method=b"HEAD")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_other_paths_and_methods_are_refused() -> None:
    assert asked(b"/").startswith(b"HTTP/1.1 404 ")
    assert asked(b"/metricz").startswith(b"HTTP/1.1 404 ")
    assert asked(b"/healthz", method=b"POST").startswith(b"HTTP/1.1 405 ")


NAMES = ("flowstack-1.internal", "admin.example")


@pytest.mark.parametrize("path", [b"/", b"/healthz", b"/readyz", b"/metrics", b"/no", b"/healthz/x"])
@pytest.mark.parametrize(
    "host",
    [b"evil.example", b"evil.example:8081", b"localhost.evil.example", b"127.0.0.1.nip.example", b"localhost-x", b"a",
     b"xlocalhost", b"2130706433", b"0x7f000001", b"127.1", b"internal", b"admin.example.evil", b"%6cocalhost"],
)  # fmt: skip
def test_who_asks_by_a_foreign_name_gets_nothing(path: bytes, host: bytes) -> None:
    answer = asked(path, None, b"GET", host, *NAMES)
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert b"[admin] hosts" in answer


@pytest.mark.parametrize(
    "host",
    [b"127.0.0.1", b"127.0.0.1:8081", b"10.1.2.3:9", b"[::1]", b"[::1]:8081", b"[2001:db8::7]", b"localhost",
     b"LOCALHOST:8081", b"localhost.", b"flowstack-1.internal", b"Flowstack-1.INTERNAL.:9110", b"admin.example"],
)  # fmt: skip
def test_an_address_localhost_and_the_configured_names_are_answered(host: bytes) -> None:
    assert asked(b"/healthz", None, b"GET", host, *NAMES).startswith(b"HTTP/1.1 200 ")


def test_what_is_wrong_but_keeps_no_request_away_stands_behind_the_word() -> None:
    client = AdminListener(admin_resource(lambda: None, detail=lambda: ["target openai/eu: down"])).connect()
    client.send(b"GET /readyz HTTP/1.0\r\n\r\n")
    answer = client.take()
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert answer.endswith(b"\r\n\r\nok\ntarget openai/eu: down\n")


def test_who_names_no_host_is_answered_since_no_browser_does_so() -> None:
    client = AdminListener(admin_resource(lambda: None)).connect()
    client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert client.take().startswith(b"HTTP/1.0 200 ")


def test_on_a_unix_socket_any_name_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = AdminListener(admin_resource(lambda: None))
    client = listener.connect()
    monkeypatch.setattr(client, "getHost", lambda: UNIXAddress(b"/run/x"), raising=False)
    client.send(b"GET /healthz HTTP/1.1\r\nHost: anything\r\n\r\n")
    assert client.take().startswith(b"HTTP/1.1 200 ")
