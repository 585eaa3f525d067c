"""Health and readiness, over the channel that serves them."""

from __future__ import annotations

from flowstack.admin.health import admin_resource
from tests.wire.harness import Listener


def asked(path: bytes, fault: str | None = None, method: bytes = b"GET") -> bytes:
    client = Listener(admin_resource(lambda: fault)).connect()
    client.send(method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client.take()


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
