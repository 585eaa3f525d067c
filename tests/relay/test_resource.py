"""Who may ask for what; and what one tenant never sees of another."""

from __future__ import annotations

import pytest

from flowstack.config import Prefix, Upstream
from tests.harness import HIGH_WATER
from tests.relay.lab import AUTH, KEY, NOW, Lab, answer, request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FSK = b"fsk-" + b"A" * 58


@pytest.mark.parametrize(
    ("fields", "status", "code", "says"),
    [
        ([], 401, "missing_flowstack_key", "Flowstack-Auth: Bearer fsk-"),
        ([b"Flowstack-Auth: Bearer unknown"], 401, "invalid_flowstack_key", "not known here"),
        ([b"Flowstack-Auth: " + KEY], 401, "invalid_flowstack_key", "Bearer"),
        ([b"Flowstack-Auth: Basic " + KEY], 401, "invalid_flowstack_key", "Bearer"),
        ([b"Flowstack-Auth: Bearer " + FSK], 401, "invalid_flowstack_key", "checksum"),
        ([b"Flowstack-Auth: Bearer sk-abc"], 401, "misplaced_key", "Authorization"),
        ([AUTH, AUTH], 400, "malformed_request", "2 Flowstack-Auth"),
        ([AUTH, b"flowstack-auth: Bearer x"], 400, "malformed_request", "2 Flowstack-Auth"),
        ([AUTH, b"Authorization: Bearer " + FSK], 401, "misplaced_key", "authorization"),
        ([AUTH, b"Authorization: " + FSK], 401, "misplaced_key", "authorization"),
        ([AUTH, b"api-key: " + FSK], 401, "misplaced_key", "api-key"),
        ([AUTH, b"X-Api-Key: " + FSK], 401, "misplaced_key", "x-api-key"),
        ([AUTH, b"Authorization: Bearer " + KEY], 401, "misplaced_key", "authorization"),
        ([AUTH, b"Authorization: Bearer\t" + KEY + b" \t"], 401, "misplaced_key", "authorization"),
        ([AUTH, b"Authorization: Bearer sk-1 " + KEY], 401, "misplaced_key", "authorization"),
        ([AUTH, b"Authorization: sk-1 " + KEY], 401, "misplaced_key", "authorization"),
        ([AUTH, b"api-key: sk-1\t" + KEY], 401, "misplaced_key", "api-key"),
        ([AUTH, b"api-key: " + KEY], 401, "misplaced_key", "api-key"),
        ([b"Authorization: Bearer " + KEY], 401, "misplaced_key", "authorization"),
        ([AUTH, b"Authorization: Bearer sk-a", b"authorization: Bearer sk-b"], 400, "malformed_request", "2 authoriz"),
        ([AUTH, b"api-key: a", b"Api-Key: b"], 400, "malformed_request", "2 api-key"),
    ],
)
def test_who_shows_no_good_key_is_told_what_to_do_and_leaves_no_row(
    fields: list[bytes], status: int, code: str, says: str
) -> None:
    lab = Lab()
    client = lab.ask(b"GET /v1/models HTTP/1.1", *fields, auth=None)
    data = client.take()
    client.got += data
    got = answer(client)
    assert (got.status, got.error["code"]) == (status, code)
    assert says in got.error["message"]
    assert KEY not in data and FSK not in data
    assert (lab.rows, lab.upstreams, lab.limiter.reserved) == ([], [], 0)
    assert lab.unauthenticated == [code]
    client.send(request())
    assert len(lab.upstreams) == 1, "the connection lives on"


def test_a_flowstack_key_in_the_url_is_misplaced() -> None:
    lab = Lab()
    got = answer(lab.ask(b"GET /v1/models?key=" + FSK + b" HTTP/1.1"))
    assert got.error["code"] == "misplaced_key"
    assert (lab.rows, lab.upstreams) == ([], [])


def test_the_scheme_is_taken_in_any_case() -> None:
    lab = Lab()
    lab.ask(auth=b"flowstack-AUTH: bEARER " + KEY)
    assert len(lab.upstreams) == 1


def test_a_disabled_or_expired_key_is_refused_and_one_that_will_expire_is_not() -> None:
    lab = Lab()
    lab.keys.add(b"disabled", disabled=True)
    lab.keys.add(b"expired", expires_at=NOW + 10)
    assert answer(lab.ask(auth=b"Flowstack-Auth: Bearer disabled")).error["code"] == "flowstack_key_disabled"
    lab.ask(auth=b"Flowstack-Auth: Bearer expired")
    assert len(lab.upstreams) == 1
    lab.turns.advance(10)
    assert answer(lab.ask(auth=b"Flowstack-Auth: Bearer expired")).error["code"] == "flowstack_key_expired"


@pytest.mark.parametrize(
    ("line", "fields", "status", "code"),
    [
        (b"GET /v2/x HTTP/1.1", [], 404, "unknown_path"),
        (b"GET /v1/../x HTTP/1.1", [], 400, "malformed_request"),
        (b"GET http://evil.example/v1/x HTTP/1.1", [], 400, "malformed_request"),
        (b"TRACE /v1/x HTTP/1.1", [], 405, "method_not_allowed"),
        (b"CONNECT a:443 HTTP/1.1", [], 405, "method_not_allowed"),
        (b"PROPFIND /v1/x HTTP/1.1", [], 405, "method_not_allowed"),
        (b"GET /v1/x HTTP/1.1", [b"Connection: Upgrade", b"Upgrade: WebSocket"], 400, "malformed_request"),
        (b"GET /v1/x HTTP/1.1", [b"Upgrade: h2c, websocket"], 400, "malformed_request"),
        (b"GET /v1/x HTTP/1.1", [b"Connection: Authorization"], 400, "malformed_request"),
        (b"GET /v1/x HTTP/1.1", [b"Connection: close, Flowstack-Auth"], 400, "malformed_request"),
        (b"GET /v1/x HTTP/1.1", [b"Flowstack-Attribute-A: " + b"x" * 5000], 400, "malformed_request"),
    ],
)
def test_a_request_with_a_valid_key_that_is_refused_has_its_row(
    line: bytes, fields: list[bytes], status: int, code: str
) -> None:
    lab = Lab()
    got = answer(lab.ask(line, *fields))
    assert (got.status, got.error["code"]) == (status, code)
    assert (lab.row["end"], lab.row["status"], lab.row["error_code"]) == ("refused", status, code)
    assert (lab.upstreams, lab.limiter.reserved) == ([], 0)
    assert (got["allow"] is not None) is (status == 405)


def test_another_upgrade_is_ignored() -> None:
    """RFC 9110 §7.8: a server may ignore a received Upgrade field."""
    lab = Lab()
    fields = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: x")
    client = lab.ask(b"GET /v1/x HTTP/1.1", *fields)
    assert lab.upstreams[0].take() == b"GET /v1/x HTTP/1.1\r\nHost: upstream.example\r\n\r\n"
    lab.upstreams[0].send(OK)
    assert answer(client).status == 200


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"])
def test_the_contracts_methods_are_relayed(method: bytes) -> None:
    lab = Lab()
    lab.ask(method + b" /v1/x HTTP/1.1")
    assert lab.upstreams[0].take().startswith(method + b" /v1/x ")


@pytest.mark.parametrize("fields", [[], [b"Content-Length: 500"]])
def test_while_draining_new_work_is_refused_and_the_connection_closed(fields: list[bytes]) -> None:
    lab = Lab()
    old, fresh = lab.ask(), lab.client()
    lab.relay.draining = True
    lab.listener.site.drain()
    fresh.send(request(b"POST /v1/x HTTP/1.1", *fields))
    got = answer(fresh)
    assert (got.status, got.error["code"], got["retry-after"], got["connection"]) == (503, "draining", b"1", b"close")
    lab.turns.advance(7)
    assert fresh.closed
    lab.upstreams[0].send(OK)
    assert answer(old)["connection"] == b"close"
    assert [row["end"] for row in lab.rows] == ["refused", "complete"]


def test_a_large_upload_is_refused_by_its_length_without_100() -> None:
    lab = Lab(max_request_bytes=10)
    client = lab.ask(b"POST /v1/x HTTP/1.1", b"Content-Length: 11", b"Expect: 100-continue")
    data = client.take()
    assert data.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in data


def test_expect_is_answered_by_flowstack_and_goes_no_further() -> None:
    lab = Lab()
    client = lab.ask(b"POST /v1/x HTTP/1.1", b"Content-Length: 5", b"Expect: 100-continue")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    assert lab.upstreams[0].take() == b"POST /v1/x HTTP/1.1\r\nHost: upstream.example\r\nContent-Length: 5\r\n\r\nhello"


def test_two_tenants_on_one_upstream_connection_see_nothing_of_each_other() -> None:
    lab = Lab()
    lab.keys.add(b"second", id="k2", owner="bob")
    alice = lab.ask(b"GET /v1/a HTTP/1.1", b"Cookie: who=alice", b"Authorization: Bearer sk-alice")
    (upstream,) = lab.upstreams
    upstream.take()
    upstream.send(OK.replace(b"OK\r\n", b"OK\r\nSet-Cookie: s=alice\r\nSet-Cookie: t=alice\r\n"))
    assert answer(alice).fields[:2] == [(b"Set-Cookie", b"s=alice"), (b"Set-Cookie", b"t=alice")]
    bob = lab.ask(b"GET /v1/b HTTP/1.1", auth=b"Flowstack-Auth: Bearer second")
    assert upstream.take() == b"GET /v1/b HTTP/1.1\r\nHost: upstream.example\r\n\r\n"
    upstream.send(OK)
    assert b"alice" not in bob.take()
    assert [row["key_id"] for row in lab.rows] == ["k1", "k2"]


def test_a_slow_client_pauses_its_upstream_and_a_slow_upstream_pauses_the_upload() -> None:
    lab = Lab()
    client = lab.ask(b"POST /v1/x HTTP/1.1", b"Content-Length: 1000000")
    (upstream,) = lab.upstreams
    upstream.peer_reads = False
    client.send(b"x" * 1_000_000, 16_384)
    assert not client.reading
    assert len(upstream.unsent) < 2 * HIGH_WATER
    while upstream.unsent:
        upstream.read()
    assert upstream.got.count(b"x") == 1_000_000 + 2  # the path's and the host's
    upstream.peer_reads = True
    client.peer_reads = False
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"y" * 1_000_000, 16_384)
    assert not upstream.reading
    assert len(client.unsent) < 2 * HIGH_WATER
    while client.unsent:
        client.read()
    assert client.got.count(b"y") == 1_000_000
    assert lab.row["bytes_out"] == 1_000_000


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body_stay_without(status: bytes) -> None:
    lab = Lab()
    client = lab.ask()
    lab.upstreams[0].send(b"HTTP/1.1 " + status + b"\r\nDate: x\r\n\r\n")
    data = client.take()
    assert data.endswith(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in data
    assert lab.row["end"] == "complete"


def test_the_answer_to_head_keeps_its_length_and_its_connection() -> None:
    lab = Lab()
    client = lab.ask(b"HEAD /v1/x HTTP/1.1")
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    got = answer(client)
    assert (got["content-length"], got.body) == (b"500", b"")
    client.send(request())
    assert len(lab.upstreams) == 1


def test_a_body_that_ended_with_the_upstreams_connection_is_chunked_on() -> None:
    lab = Lab()
    client = lab.ask()
    lab.upstreams[0].send(b"HTTP/1.1 200 OK\r\n\r\nabc")
    lab.upstreams[0].hang_up()
    assert client.take().endswith(b"3\r\nabc\r\n0\r\n\r\n")
    assert lab.row["end"] == "complete"


def test_a_date_is_added_only_where_it_is_missing() -> None:
    lab = Lab()
    client = lab.ask()
    lab.upstreams[0].send(OK.replace(b"OK\r\n", b"OK\r\nDate: theirs\r\n"))
    assert [value for name, value in answer(client).fields if name == b"Date"] == [b"theirs"]


def test_server_timing_is_added_where_the_operator_asks() -> None:
    lab = Lab(server_timing=True)
    client = lab.ask()
    lab.turns.advance(0.25)
    lab.upstreams[0].send(OK)
    assert answer(client)["server-timing"] == b"flowstack;dur=0.000, upstream;dur=250.000"


@pytest.mark.parametrize(
    ("line", "auth", "code"),
    [
        (b"GET /v1/x HTTP/1.1", None, "missing_flowstack_key"),
        (b"GET /v2/x HTTP/1.1", AUTH, "unknown_path"),
        (b"GET  /v1/x HTTP/1.1", AUTH, "malformed_request"),
    ],
)
def test_an_error_links_to_its_code_where_the_operator_says_the_manual_is(
    line: bytes, auth: bytes | None, code: str
) -> None:
    error = answer(Lab(docs_url="https://docs.example").ask(line, auth=auth)).error
    assert error["code"] == code
    assert error["message"].endswith(f" See https://docs.example/reference/errors.html#{code.replace('_', '-')}")
    assert "docs.example" not in answer(Lab().ask(line, auth=auth)).error["message"]


def test_browsers_of_an_allowed_origin_get_preflights_without_a_key_and_readable_errors() -> None:
    lab = Lab(cors_origins=("https://app.example",))
    origin = b"Origin: https://app.example"
    got = answer(lab.ask(b"OPTIONS /v1/x HTTP/1.1", origin, b"Access-Control-Request-Method: POST", auth=None))
    assert (got.status, got["access-control-allow-origin"]) == (204, b"https://app.example")
    got = answer(lab.ask(b"GET /v1/x HTTP/1.1", origin, auth=None))
    assert (got.status, got["access-control-allow-origin"]) == (401, b"https://app.example")
    client = lab.ask(b"GET /v1/x HTTP/1.1", origin)
    lab.upstreams[0].send(OK)
    assert answer(client)["access-control-allow-origin"] == b"https://app.example"
    got = answer(lab.ask(b"OPTIONS /v1/x HTTP/1.1", b"Origin: https://evil.example",
                         b"Access-Control-Request-Method: POST", auth=None))  # fmt: skip
    assert (got.status, got["access-control-allow-origin"]) == (401, None)


@pytest.mark.parametrize(
    ("forwarded", "sent"),
    [
        ("remove", b""),
        ("pass", b"x-forwarded-for: 1.2.3.4\r\nVia: 1.1 x\r\n"),
        ("append", b"Via: 1.1 x\r\nX-Forwarded-For: 1.2.3.4, 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"
                   b"X-Forwarded-Host: flowstack.example\r\n"),
    ],
)  # fmt: skip
def test_forwarded_fields_are_as_the_operator_says(forwarded: str, sent: bytes) -> None:
    lab = Lab(forwarded=forwarded)
    lab.ask(b"GET /v1/x HTTP/1.1", b"x-forwarded-for: 1.2.3.4", b"Via: 1.1 x")
    assert lab.upstreams[0].take() == b"GET /v1/x HTTP/1.1\r\nHost: upstream.example\r\n" + sent + b"\r\n"


def test_prefix_and_host_choose_the_upstream() -> None:
    lab = Lab(
        upstreams=(
            Upstream(name="one", base_url="http://upstream.example/v1"),
            Upstream(name="two", base_url="http://upstream.example:81", hosts=("two.example",), default=False),
        ),
        prefixes=(Prefix("/v1/"), Prefix("/x/", "/y/z/")),
    )
    client = lab.client()
    client.send(request(b"GET /x/a?b? HTTP/1.1").replace(b"flowstack.example", b"TWO.example:80"))
    (upstream,) = lab.providers["two"].peers
    assert upstream.take() == b"GET /y/z/a?b? HTTP/1.1\r\nHost: upstream.example:81\r\n\r\n"
    assert lab.providers["one"].peers == []


def test_what_is_no_request_is_counted_and_answered_in_the_contracts_words() -> None:
    lab = Lab()
    client = lab.client()
    client.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n")
    got = answer(client)
    assert (got.status, got.error["code"], got["connection"]) == (400, "malformed_request", b"close")
    assert lab.unauthenticated == ["malformed_request"]
    assert lab.rows == []


def test_request_ids_are_never_the_same() -> None:
    lab = Lab()
    client = lab.client()
    seen = set()
    for _ in range(600):
        client.send(request(auth=None))
        seen.add(answer(client)["flowstack-request-id"])
    assert len(seen) == 600
    assert all(len(one or b"") == 32 for one in seen)


def test_request_ids_come_in_the_order_of_time() -> None:
    lab = Lab()
    client = lab.client()
    times = []
    for _ in range(3):
        before = lab.wall()
        client.send(request(auth=None))
        one = answer(client)["flowstack-request-id"]
        assert one is not None
        times.append(int(one[:12], 16))
        assert abs(times[-1] / 1000 - before) < 1.001
        lab.turns.clock.advance(1.5)
    assert times == sorted(times)
