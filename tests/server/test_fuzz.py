"""Whatever comes, on either side: nothing raises, nothing hangs, and h11 reads the same.

h11 is the oracle: what Flowstack takes for a message, h11 must take for the same one, with the same framing. Flowstack
may refuse more. With ``--hypothesis-profile=thorough`` the runs are longer.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, NamedTuple

import h11
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from flowstack.errors import FlowstackError
from flowstack.http.replies import error_reply
from tests.harness import Listener, Provider, Stage, reply

GET = b"GET /v1/a?b=c HTTP/1.1\r\nHost: a\r\nX-y: z\r\n\r\n"
POST = b"POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /v1/a HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
REQUESTS = (GET, POST, CHUNKED, OLD, GET.replace(b"X-y: z", b"Connection: close"),
            POST.replace(b"Host", b"Expect: 100-continue\r\nUpgrade: h2c\r\nConnection: upgrade\r\nHost"))  # fmt: skip

ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Slow Down\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 204 No Content\r\n\r\n",
)

TOKENS = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b",", b";", b"0", b"5", b"a", b"\xff", b"%", b"#", b"/",
    b"HTTP/1.1", b"\r\n\r\n", b"Content-Length: 3\r\n", b"Content-Length: 05\r\n", b"chunked",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Host: b\r\n", b" folded\r\n",
    b"Connection: close\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"GET / HTTP/1.1\r\n", b"HEAD ",
    b"HTTP/1.1 200 OK\r\n", b"Upgrade: websocket\r\n",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, wholes: tuple[bytes, ...]) -> bytes:
    """Good messages, a few of them in a row, with a few things inserted, removed or doubled."""
    data = b"".join(draw(st.lists(st.sampled_from(wholes), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        match draw(st.sampled_from(("insert", "remove", "double", "replace"))):
            case "insert":
                data = data[:place] + draw(st.sampled_from(TOKENS)) + data[place:]
            case "remove":
                data = data[:place] + data[place + length :]
            case "double":
                data = data[: place + length] + data[place:]
            case "replace":
                data = data[:place] + draw(st.sampled_from(TOKENS)) + data[place + length :]
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(edges)]


splits = st.lists(st.integers(0, 400), max_size=6)
requests = st.one_of(st.binary(max_size=200), mutated(REQUESTS))
answers = st.one_of(st.binary(max_size=200), mutated(ANSWERS))


class Message(NamedTuple):
    """What a parser made of a message; the body is None where it did not see its end."""

    line: tuple[bytes, ...]
    fields: list[tuple[bytes, bytes]]
    body: bytes | None


def read_by_h11(data: bytes) -> list[Message]:
    """The requests that h11 finds, up to where it gives up."""
    found: list[Message] = []
    while data:
        data = data.removeprefix(b"\r\n")  # RFC 9112 §2.2 wants that ignored, which h11 does not
        server = h11.Connection(h11.SERVER)
        server.receive_data(data)
        body = b""
        try:
            while True:
                event = server.next_event()
                if isinstance(event, h11.Request):
                    fields = [(name, value) for name, value in event.headers.raw_items()]
                    found.append(Message((event.method, event.target), fields, None))
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    found[-1] = found[-1]._replace(body=body)
                    break
                else:
                    return found
        except h11.RemoteProtocolError:
            return found
        data = server.trailing_data[0]
    return found


UNAWAITED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\nno size"


@given(requests, splits)
@example(UNAWAITED, [])
@example(GET + b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", [])
def test_a_channel_reads_no_request_that_h11_does_not_read_the_same(data: bytes, places: list[int]) -> None:
    stage = Stage()
    site = Listener(stage)
    client = site.connect()
    for piece in cut(data, places):
        client.send(piece)
    ours: list[Message] = []
    while len(ours) < len(stage.requests):
        request = stage.requests[len(ours)]
        body = b"" if request.body is None else request.body.whole
        ours.append(Message((request.method, request.uri), request.requestHeaders.pairs, body))
        if body is None:
            if request.body.expects:
                reply(request)  # whoever takes no body that its client holds back must answer
            break
        reply(request)
        client.turns.settle()
    theirs = read_by_h11(data)
    assert ours == theirs[: len(ours)] or ours[:-1] == theirs[: len(ours) - 1]
    if ours and ours[-1].body is None:  # the end of it did not come, or is not to be understood
        assert ours[-1][:2] == theirs[len(ours) - 1][:2]
    elif ours:
        assert ours[-1] == theirs[len(ours) - 1]
    site.turns.advance(200)
    assert client.closed, "nothing waits for ever"
    said = client.take().replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert said.count(b"HTTP/1.1 ") >= len(site.refused)


def answer_what_has_no_body(request: Any) -> None:
    if request.body is None:
        reply(request)
    elif request.body.fault is not None:
        request.reply(error_reply(request.body.fault))


@given(requests, splits, splits)
@example(b"* / HTTP/1.0\r\n\n\r\n\r\n", [], [15])
def test_where_the_bytes_are_cut_does_not_change_what_they_mean(
    data: bytes, first: list[int], other: list[int]
) -> None:
    outcomes = []
    for places in (first, other):
        stage = Stage(answer_what_has_no_body)
        client = Listener(stage).connect()
        for piece in cut(data, places):
            client.send(piece)
        heads = [(made.method, made.uri, made.requestHeaders.pairs) for made in stage.requests]
        outcomes.append((heads, re.findall(rb"HTTP/1\.1 (\d+)", client.take())))
    assert outcomes[0] == outcomes[1]


@given(answers, splits, st.sampled_from((b"GET", b"HEAD", b"POST")), st.booleans())
def test_a_connection_always_comes_to_an_end_and_h11_to_the_same(
    data: bytes, places: list[int], method: bytes, clean: bool
) -> None:
    provider = Provider()
    asked = provider.ask(method)
    upstream = provider.peers[0]
    for piece in cut(data, places):
        upstream.send(piece)
    if not upstream.closed:
        upstream.hang_up() if clean else upstream.fall_over()
    assert asked.done
    assert (provider.pool.idle, provider.pool.size) == ([], 0)
    if asked.fault is not None:
        assert isinstance(asked.fault, FlowstackError)
        assert asked.fault.code in ("upstream_closed", "upstream_malformed")
    elif isinstance(asked.end, ResponseDone | PotentialDataLoss):
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "a"), ("Content-Length", "0")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(data)
        event = reader.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = reader.next_event()
        assert isinstance(event, h11.Response)
        assert event.status_code == asked.response.code
        assert list(event.headers.raw_items()) == asked.response.headers.pairs
        body = b""
        while isinstance(event := reader.next_event(), h11.Data):
            body += bytes(event.data)
        if isinstance(asked.end, PotentialDataLoss):
            assert event is h11.NEED_DATA
        else:
            assert isinstance(event, h11.EndOfMessage)
        assert body == asked.body
