"""The server channel: one connection's requests and answers, in order."""

from __future__ import annotations

from typing import Any

import h11
import pytest

from flowstack.server.request_body import WINDOW
from tests.harness import MAX_HEAD, Listener, Stage, Transport, reply

GET = b"GET /v1/a HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LAST_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def listener(answer: Any = None) -> tuple[Listener, Stage, Transport]:
    stage = Stage(answer)
    site = Listener(stage)
    return site, stage, site.connect()


def status(data: bytes) -> int:
    return int(data[9:12])


def closed_in_order(client: Transport) -> bool:
    return client.peer_saw == "fin" and "abortConnection" not in client.calls


def test_a_request_is_handed_over_when_its_head_ends_at_every_split() -> None:
    wire = b"POST /v1/a?b=%20 HTTP/1.1\r\nHost: a\r\nX-y: z\r\nContent-Length: 5\r\n\r\nhello"
    ends = wire.index(b"hello")
    for place in range(1, len(wire)):
        _, stage, client = listener()
        client.send(wire[:place])
        assert len(stage.requests) == (1 if place >= ends else 0), place
        client.send(wire[place:])
        (request,) = stage.requests
        assert (request.method, request.uri) == (b"POST", b"/v1/a?b=%20")
        assert request.requestHeaders.pairs == [(b"Host", b"a"), (b"X-y", b"z"), (b"Content-Length", b"5")]
        assert request.body.whole == b"hello"


def test_one_write_answers_a_small_request_and_no_delay_is_set() -> None:
    _, _, client = listener(reply)
    client.send(GET)
    assert client.writes == [OK]
    assert client.no_delay


def test_a_connection_is_kept_for_the_next_request() -> None:
    _, stage, client = listener(reply)
    for _ in range(3):
        client.send(GET)
        assert client.take() == OK
    assert (len(stage.requests), client.calls) == (3, [])


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    _, stage, client = listener()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(4)))
    for number in range(4):
        assert [request.uri for request in stage.requests] == [b"/%d" % made for made in range(number + 1)]
        reply(stage.requests[number], b"%d" % number)
    assert [body[-1:] for body in client.take().split(b"HTTP/1.1")[1:]] == [b"0", b"1", b"2", b"3"]


def test_a_pipelined_body_belongs_to_its_own_request_at_every_split() -> None:
    wire = (
        b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none"
        b"POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
        b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    for place in range(1, len(wire)):
        _, stage, client = listener()
        client.send(wire[:place])
        client.send(wire[place:])
        for number in range(3):
            reply(stage.requests[number])
        assert [request.body and request.body.whole for request in stage.requests] == [b"one", b"two", None], place
        assert client.take() == OK * 3


def test_of_what_is_pipelined_a_window_is_held_and_all_is_answered() -> None:
    _, stage, client = listener()
    count = 3 * WINDOW // len(GET)
    for _ in range(count):
        client.send(GET)
    assert not client.reading
    assert WINDOW < len(client.protocol._held) <= WINDOW + len(GET)
    for number in range(count):
        reply(stage.requests[number])
        client.turns.settle()
    assert client.take() == OK * count
    assert (len(stage.requests), client.reading, client.calls) == (count, True, [])


def test_a_thousand_pipelined_requests_are_answered_without_a_thousand_frames() -> None:
    _, stage, client = listener()
    client.send(GET * 1001)
    stage.answer = reply
    reply(stage.requests[0])
    assert client.take() == OK * 1001


@pytest.mark.parametrize("garbage", [b"garbage\r\n\r\n", b"\x00", b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n"])
def test_a_good_request_before_garbage_gets_its_answer_and_then_400_and_close(garbage: bytes) -> None:
    site, stage, client = listener()
    client.send(GET + garbage)
    assert len(stage.requests) == 1
    assert client.take() == b""
    reply(stage.requests[0])
    answer = client.take()
    assert answer.startswith(OK)
    assert answer[len(OK) :].startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert closed_in_order(client)
    client.send(GET)
    assert (len(stage.requests), len(site.refused)) == (1, 1)


def test_http_1_0_is_closed_after_its_answer_unless_it_asks_to_be_kept() -> None:
    _, _, client = listener(reply)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.take() == LAST_OK
    assert closed_in_order(client)
    _, _, client = listener(reply)
    for _ in range(2):
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert client.take() == OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n", 1)
    assert client.calls == []


def test_connection_close_is_obeyed_and_said() -> None:
    _, stage, client = listener(reply)
    client.send(GET.replace(b"Host", b"Connection: close\r\nHost") + GET)
    assert client.take() == LAST_OK
    assert len(stage.requests) == 1
    assert closed_in_order(client)


def test_a_draining_site_ends_each_connection_with_the_answer_it_is_at() -> None:
    site, stage, client = listener()
    idle: list[int] = []
    client.send(GET)
    site.site.drain()
    site.site.when_idle = lambda: idle.append(site.site.busy)
    reply(stage.requests[0])
    assert client.take() == LAST_OK
    assert idle[-1:] == [0]


def test_what_times_out_while_draining_is_noticed() -> None:
    site, stage, client = listener()
    idle: list[int] = []
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
    stage.requests[0].write_head(200, b"OK", b"", None)
    stage.requests[0].write(b"x")
    site.site.drain()
    site.site.when_idle = lambda: idle.append(site.site.busy)
    site.turns.advance(70)
    assert stage.ends == ["timeout"]
    assert idle[-1:] == [0]


# What an answer looks like on the wire.


def test_an_answer_of_unknown_length_is_chunked_one_write_a_piece() -> None:
    _, stage, client = listener()
    client.send(GET)
    request = stage.requests[0]
    request.write_head(200, b"OK", b"\r\nX: y", None)
    assert client.writes == []
    request.write(b"first")
    request.write(b"second")
    request.end(b"third")
    assert client.writes == [
        b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        b"6\r\nsecond\r\n",
        b"5\r\nthird\r\n0\r\n\r\n",
    ]


def test_a_head_goes_out_alone_where_its_read_brought_nothing_more() -> None:
    _, stage, client = listener()
    client.send(GET)
    request = stage.requests[0]
    request.write_head(200, b"OK", b"\r\nX: y", None)
    request.write(b"")
    request.end()
    assert client.writes == [b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"]


def test_a_large_piece_is_one_write_too() -> None:
    _, stage, client = listener()
    client.send(GET)
    request = stage.requests[0]
    request.write_head(200, b"OK", b"\r\nX: y", None)
    request.write(b"z" * 20_000)
    request.end(b"z" * 20_000)
    assert len(client.writes) == 2
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(client.take())
    assert isinstance(reader.next_event(), h11.Response)
    size = 0
    while isinstance(event := reader.next_event(), h11.Data):
        size += len(event.data)
    assert (size, type(event)) == (40_000, h11.EndOfMessage)


def test_to_http_1_0_the_end_of_the_connection_is_the_end_of_the_body() -> None:
    _, stage, client = listener()
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    request = stage.requests[0]
    request.write_head(200, b"OK", b"\r\nX: y", None)
    request.write(b"abc")
    request.end(b"def")
    assert client.take() == b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nabcdef"
    assert closed_in_order(client)


@pytest.mark.parametrize(("method", "code"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_no_framing_is_added_where_there_is_no_body(method: bytes, code: int) -> None:
    _, stage, client = listener()
    client.send(b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method)
    stage.requests[0].write_head(code, b"R", b"\r\nX: y", 0)
    stage.requests[0].end()
    assert client.take() == b"HTTP/1.1 %d R\r\nX: y\r\n\r\n" % code
    client.send(GET)
    assert len(stage.requests) == 2


# Refusals of the channel's own.


@pytest.mark.parametrize("size", [1, 1000, None])
def test_a_head_that_is_too_long_is_refused(size: int | None) -> None:
    site, stage, client = listener()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * MAX_HEAD + b"\r\n\r\n", size)
    assert client.take().startswith(b"HTTP/1.1 400 ")
    assert (stage.requests, site.refused[0].code) == ([], "malformed_request")
    assert str(MAX_HEAD) in site.refused[0].message


def test_a_head_may_be_as_long_as_is_said() -> None:
    _, stage, client = listener(reply)
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    client.send(head + b"y" * (MAX_HEAD - len(head) - 4) + b"\r\n\r\n")
    assert len(stage.requests) == 1


def test_one_empty_line_before_a_request_is_ignored_and_more_are_not_however_cut() -> None:
    """RFC 9112 §2.2: a server should ignore at least one empty line received prior to the request line."""
    for empty, answers in (b"\r\n", [OK, OK]), (b"\r\n\r\n", [OK]):
        for first in range(len(empty) + 2):
            for second in range(first, len(empty) + 2):
                _, stage, client = listener(reply)
                client.send(GET)
                sent = empty + GET
                for piece in (sent[:first], sent[first:second], sent[second:]):
                    if piece:
                        client.send(piece)
                assert len(stage.requests) == len(answers)
                assert client.take().startswith(b"".join(answers) + (b"HTTP/1.1 400 " if len(answers) == 1 else b""))


def test_an_empty_line_behind_a_request_leaves_its_connection_idle() -> None:
    site, _, client = listener(reply)
    for size in None, 1:
        client.send(GET + b"\r\n", size)
        client.take()
    site.turns.fires(75, lambda: client.closed)
    assert client.got == b""


def test_tls_on_a_plain_port_is_told_so() -> None:
    site, _, client = listener()
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert b"plain HTTP" in client.take()
    assert closed_in_order(client)
    assert len(site.refused) == 1


def test_a_refused_connection_lingers_so_that_the_answer_is_read_and_then_closes() -> None:
    site, _, client = listener()
    client.send(b"BAD\n")
    assert client.calls == ["loseWriteConnection"]
    client.send(b"x" * 100_000)  # dropped
    assert client.calls == ["loseWriteConnection"]
    site.turns.fires(5, lambda: "loseConnection" in client.calls)
    assert client.closed


def test_who_goes_on_sending_is_read_on_for_30_seconds() -> None:
    site, _, client = listener()
    client.send(b"BAD\n")
    for _ in range(29):
        site.turns.advance(1)
        client.send(b"x" * 100_000)
    assert client.calls == ["loseWriteConnection"]
    site.turns.fires(1, lambda: "loseConnection" in client.calls)


@pytest.mark.parametrize(("known", "cut"), [(False, True), (True, False)])
def test_an_upload_without_a_valid_key_is_read_on_up_to_64_mib(known: bool, cut: bool) -> None:
    _, stage, client = listener()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
    stage.requests[0].known = known
    reply(stage.requests[0])
    mib = b"x" * (1 << 20)
    for _ in range(64):
        client.send(mib)
    assert client.calls == ["loseWriteConnection"]
    client.send(mib)
    assert ("abortConnection" in client.calls) is cut


def test_over_tls_nothing_is_half_closed() -> None:
    site = Listener(Stage())
    client = site.connect(secure=True)
    client.send(b"BAD\n")
    assert client.calls == []
    site.turns.advance(7)
    assert client.calls == ["loseConnection"]


def test_who_asks_without_reading_is_not_asked_further() -> None:
    """Answers to requests that are refused at once must not pile up in memory."""
    _, stage, client = listener(lambda request: reply(request, b"x" * 1000))
    client.peer_reads = False
    for _ in range(100):
        client.send(GET * 100)
    assert not client.reading
    assert len(client.unsent) < 2 * 64 * 1024
    made = 0
    while len(stage.requests) < 10_000:
        assert len(stage.requests) > made, "it came to a standstill"
        made = len(stage.requests)
        client.read()
    client.read()
    assert client.got.count(b"HTTP/1.1 200 OK") == 10_000


# Leaving.


def test_a_fin_while_an_answer_is_awaited_counts_as_leaving() -> None:
    _, stage, client = listener()
    client.send(GET)
    client.hang_up()
    assert stage.ends == ["client_gone"]
    reply(stage.requests[0])
    assert client.writes == []


def test_a_fin_while_idle_is_nobodys_business() -> None:
    site, stage, client = listener(reply)
    client.send(GET)
    client.hang_up()
    assert stage.ends == []
    assert site.site.connections == set()


def test_closing_the_site_cuts_what_is_under_way_and_ends_what_is_idle_in_order() -> None:
    site, stage, busy = listener()
    busy.send(GET)
    idle = site.connect()
    site.site.close()
    assert stage.ends == ["drain"]
    assert busy.peer_saw == "reset"
    assert closed_in_order(idle)


# A bug.


def test_a_handler_that_fails_gives_500_and_no_traceback() -> None:
    def fail(request: Any) -> None:
        raise RuntimeError("secret")

    _, _, client = listener(fail)
    client.send(GET)
    answer = client.take()
    assert status(answer) == 500
    assert b"secret" not in answer
