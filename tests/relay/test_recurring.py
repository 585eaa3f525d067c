"""What a head that comes again leads to is what it would lead to alone, now."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from tests.relay.lab import AUTH, KEY, NOW, Answer, Lab, answer, request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LINE = b"POST /v1/files?purpose=x HTTP/1.1"
FIELDS = (b"Flowstack-Attribute-Team: red", b"Authorization: Bearer sk-client", b"X-A: 1", b"Connection: keep-alive")


def post(size: int, auth: bytes = AUTH) -> bytes:
    return request(LINE, *FIELDS, b"content-length: %d" % size, b"X-B: 2", body=b"y" * size, auth=auth)


def exchange(lab: Lab, client: Any, data: bytes) -> tuple[Answer, bytes]:
    """What the client gets, and what the upstream got, if it was asked."""
    seen = b""
    client.send(data)
    for upstream in lab.upstreams:
        seen += upstream.take()
        if seen:
            upstream.send(OK)
            break
    return answer(client), seen


def warm(lab: Lab, auth: bytes = AUTH) -> Any:
    """A connection whose heads recur."""
    client = lab.client()
    for size in (5, 6, 7, 8):
        got, seen = exchange(lab, client, post(size, auth))
        assert got.status == 200 and seen
    return client


@pytest.mark.parametrize("options", [{}, {"forwarded": "append"}, {"trusted_proxies": ("127.0.0.1",)}])
def test_each_reaches_the_upstream_as_it_would_alone(options: dict[str, Any]) -> None:
    lab = Lab(**options)
    client = lab.client()
    for size in (5, 5, 17, 1, 5, 70_000, 3):
        alone, once = Lab(**options), exchange
        expected = once(alone, alone.client(), post(size))[1]
        got, seen = exchange(lab, client, post(size))
        assert got.status == 200
        assert seen == expected
        assert (b"content-length: %d\r\n" % size) in seen
    assert [row["attributes"] for row in lab.rows] == [{"team": "red"}] * 7
    assert [row["path"] for row in lab.rows] == ["/v1/files"] * 7
    assert len({row["request_id"] for row in lab.rows}) == 7
    assert lab.limiter.open == set()


def _revoke(lab: Lab) -> None:
    lab.keys.keys.clear()
    lab.keys.generation += 1


def _replace(**options: Any) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        lab.keys.add(KEY, id="k2", **options)
        lab.keys.generation += 1

    return change


def _drain(lab: Lab) -> None:
    lab.relay.draining = True


def _full(lab: Lab) -> None:
    lab.ledger.accepting = False


@pytest.mark.parametrize(
    ("change", "size", "status", "code"),
    [
        (_revoke, 5, 401, "invalid_flowstack_key"),
        (_replace(disabled=True), 5, 401, "flowstack_key_disabled"),
        (_replace(expires_at=NOW), 5, 401, "flowstack_key_expired"),
        (_replace(endpoints=("GET:/v1/models",)), 5, 403, "endpoint_not_allowed"),
        (_replace(upstreams=("other",)), 5, 403, "upstream_not_allowed"),
        (_drain, 5, 503, "draining"),
        (_full, 5, 503, "ledger_unavailable"),
        (lambda lab: None, 200_000, 413, "request_too_large"),
    ],
)
def test_what_has_changed_since_holds_at_once(change: Callable[[Lab], None], size: int, status: int, code: str) -> None:
    lab = Lab(max_request_bytes=100_000)
    client = warm(lab)
    change(lab)
    got, seen = exchange(lab, client, post(size))
    assert (got.status, got.error["code"]) == (status, code)
    assert not seen


def test_a_key_that_expires_between_two_is_refused() -> None:
    lab = Lab()
    lab.keys.add(b"short", expires_at=NOW + 10)
    client = warm(lab, b"Flowstack-Auth: Bearer short")
    lab.turns.advance(10)
    got, seen = exchange(lab, client, post(9, b"Flowstack-Auth: Bearer short"))
    assert got.error["code"] == "flowstack_key_expired"
    assert not seen


def test_a_new_provider_key_takes_the_place_of_the_clients_at_once() -> None:
    lab = Lab()
    lab.keys.add(KEY, id="k1", endpoints=("/v1/files",))
    client = warm(lab)
    for value in (b"sk-operator-1", b"sk-operator-2"):
        lab.relay.provider_keys["openai"] = value
        for _ in range(3):
            seen = exchange(lab, client, post(4))[1]
            assert b"Authorization: Bearer %b\r\n" % value in seen
            assert b"sk-client" not in seen
    lab.relay.provider_keys.clear()
    assert b"Authorization: Bearer sk-client\r\n" in exchange(lab, client, post(4))[1]


def test_what_a_connection_has_sent_is_known_on_the_clients_next() -> None:
    lab = Lab()
    first, second = warm(lab), lab.client()
    got, seen = exchange(lab, second, post(9))
    assert got.status == 200
    assert b"content-length: 9\r\n" in seen
    assert first.protocol._heads._last is second.protocol._heads._last


def test_the_same_head_from_elsewhere_is_held_to_its_own_address() -> None:
    lab = Lab(forwarded="append")
    lab.keys.add(KEY, id="k1", allow_ip=(ip_network("192.0.2.0/24"), ip_network("203.0.113.0/28")))
    for address, status in (("192.0.2.7", 200), ("203.0.113.9", 200), ("203.0.113.99", 403)):
        client = lab.client()
        client.protocol.client_address = address  # as a PROXY header says it
        got, seen = exchange(lab, client, post(5))
        assert (got.status, lab.rows[-1]["client_addr"]) == (status, address)
        assert (b"X-Forwarded-For: %b\r\n" % address.encode() in seen) is (status == 200)


def test_two_keys_share_nothing() -> None:
    lab = Lab()
    lab.keys.add(b"second", id="k2", owner="bob")
    first, second = warm(lab), warm(lab, b"Flowstack-Auth: Bearer second")
    lab.rows.clear()
    for size in (4, 3):
        exchange(lab, first, post(size))
        exchange(lab, second, post(size, b"Flowstack-Auth: Bearer second"))
    assert [row["key_id"] for row in lab.rows] == ["k1", "k2", "k1", "k2"]


def test_what_is_kept_with_a_head_shows_no_credential() -> None:
    lab = Lab()
    client = warm(lab)
    made = client.protocol._heads._last.cache.made
    outgoing = made.outgoing.with_length(b"9")
    assert b"Bearer sk-client" in outgoing.lines()
    for shown in (repr(made), repr(made.outgoing), repr(outgoing), repr(client.protocol._heads._last)):
        assert "sk-client" not in shown
        assert KEY.decode() not in shown


@pytest.mark.parametrize("change", [_drain, _full])
def test_a_refusal_is_written_down_alike_whether_the_head_came_before_or_not(change: Callable[[Lab], None]) -> None:
    written = []
    for client_of in (warm, Lab.client):
        lab = Lab()
        client = client_of(lab)
        change(lab)
        exchange(lab, client, post(5))
        row = lab.rows[-1]
        written.append([row[name] for name in ("upstream", "path", "attributes", "error_code")] + [lab.observed[-1][1]])
    assert written[0] == written[1]
    assert written[0][:3] == ["openai", "/v1/files", {"team": "red"}]
