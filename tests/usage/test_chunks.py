from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.testing.standin.app import App
from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.journal import Journal
from flowstack.testing.standin.values import Request
from flowstack.usage.chunks import MAX_EVENT, UsageChunkFilter
from flowstack.usage.inject import with_usage
from flowstack.usage.request_facts import read_request_facts
from tests.usage.bodies import pieces_of, splits
from tests.usage.calls import Calls


def filtered(pieces: Iterable[bytes]) -> bytes:
    filter_ = UsageChunkFilter()
    return b"".join([*map(filter_.feed, pieces), filter_.finish()])


USAGE = b'{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}'

EVENTS: list[tuple[bytes, bytes]] = [
    # The member goes, wherever it stands.
    (b'data: {"id":"c","choices":[{"x":1}],"usage":null}\n\n', b'data: {"id":"c","choices":[{"x":1}]}\n\n'),
    (b'data: {"id":"c","usage":null,"choices":[{"x":1}]}\n\n', b'data: {"id":"c","choices":[{"x":1}]}\n\n'),
    (b'data: {"usage":null,"choices":[{"x":1}]}\n\n', b'data: {"choices":[{"x":1}]}\n\n'),
    (b'data: {"usage":null}\n\n', b"data: {}\n\n"),
    (b'data: {"choices":[1],"usage":null,"obfuscation":"Xy"}\n\n', b'data: {"choices":[1],"obfuscation":"Xy"}\n\n'),
    (b'data: {"choices":[1],"usage":null,"o":"\\""}\n\n', b'data: {"choices":[1],"o":"\\""}\n\n'),
    (b'data: {"choices":[1],"usage":null,"a":1,"b":null}\n\n', b'data: {"choices":[1],"a":1,"b":null}\n\n'),
    (b'data: {"id": "c", "choices": [1], "usage": null}\n\n', b'data: {"id": "c", "choices": [1]}\n\n'),
    (b'data: {"id": "c", "usage": null, "choices": [1]}\n\n', b'data: {"id": "c", "choices": [1]}\n\n'),
    (b'data: {"usage": null, "choices": [1]}\n\n', b'data: {"choices": [1]}\n\n'),
    (b'data: { "usage" : null , "choices": [1] }\n\n', b'data: { "choices": [1] }\n\n'),
    (b'data: { "a":1 , "usage" : null }\n\n', b'data: { "a":1  }\n\n'),
    (b'data:{"choices":[1],"usage":null}\n\n', b'data:{"choices":[1]}\n\n'),
    (b'data: {"choices":[1],"usage":null}\r\n\r\n', b'data: {"choices":[1]}\r\n\r\n'),
    (b'data: {"choices":[1],"usage":null}\r\r', b'data: {"choices":[1]}\r\r'),
    (b'id: 7\ndata: {"choices":[1],"usage":null}\nretry: 1\n\n', b'id: 7\ndata: {"choices":[1]}\nretry: 1\n\n'),
    (b'data: {"choices":[],"prompt_filter_results":[],"usage":null}\n\n',
     b'data: {"choices":[],"prompt_filter_results":[]}\n\n'),
    (b'data: {"choices":[{"delta":{"content":"\\"usage\\":null"}}],"usage":null}\n\n',
     b'data: {"choices":[{"delta":{"content":"\\"usage\\":null"}}]}\n\n'),
    (b'data: {"choices":[{"delta":{"content":"usage"}}],"usage":null}\n\n',
     b'data: {"choices":[{"delta":{"content":"usage"}}]}\n\n'),
    (b'data: {"usage":null,"choices":[{"delta":{"content":"usage"}}]}\n\n',
     b'data: {"choices":[{"delta":{"content":"usage"}}]}\n\n'),
    (b'data: {"usage":null,"choices":[{"delta":{"usage":null}}]}\n\n',
     b'data: {"choices":[{"delta":{"usage":null}}]}\n\n'),
    # The usage chunk goes whole.
    (b'data: {"choices":[],"usage":' + USAGE + b"}\n\n", b""),
    (b'data: {"usage":' + USAGE + b',"choices":[]}\n\n', b""),
    (b'data: {"choices" : [ ], "usage" : ' + USAGE + b"}\r\n\r\n", b""),
    (b'data: {"choices":[],"usage":' + USAGE + b"}\r\r", b""),
    (b'id: 9\nevent: x\ndata: {"choices":[],"usage":' + USAGE + b"}\nretry: 1\n\n", b""),
    (b': ping\n\n\n: pong\ndata: {"choices":[],"usage":' + USAGE + b"}\n\n", b": ping\n\n\n: pong\n"),
    (b': c\nretry: 1\nid: 9\n: d\ndata: {"choices":[],"usage":' + USAGE + b"}\n\n", b": c\nretry: 1\n"),
    (b': c\r\nx\r\ndata: {"choices":[],"usage":' + USAGE + b"}\r\n\r\n", b": c\r\nx\r\n"),
    # So it does with members that say nothing.
    (b'data: {"id":"c","object":"o","created":1,"model":"m","system_fingerprint":"f","service_tier":null,"choices":[],'
     b'"usage":' + USAGE + b',"obfuscation":"x"}\n\n', b""),
    (b'data: {"choices":[],"usage":' + USAGE + b',"citations":[],"prompt_logprobs":null,"text":""}\n\n', b""),
    # Of one that says something else its usage goes alone.
    (b'data: {"choices":[],"usage":' + USAGE + b',"citations":["a"]}\n\n',
     b'data: {"choices":[],"citations":["a"]}\n\n'),
    (b'data: {"id":"c","citations":["a"],"choices":[],"usage":' + USAGE + b"}\n\n",
     b'data: {"id":"c","citations":["a"],"choices":[]}\n\n'),
    (b'data: {"usage":' + USAGE + b',"choices":[],"x_groq":{"id":"r"}}\r\n\r\n',
     b'data: {"choices":[],"x_groq":{"id":"r"}}\r\n\r\n'),
    (b'id: 9\ndata: {"choices": [], "usage": ' + USAGE + b', "done": false}\n\n',
     b'id: 9\ndata: {"choices": [], "done": false}\n\n'),
    (b'data: {"choices":[],"usage":' + USAGE + b',"model":"\\ud800"}\n\n',
     b'data: {"choices":[],"model":"\\ud800"}\n\n'),
    # All else stays.
    (b"data: [DONE]\n\n", b"data: [DONE]\n\n"),
    (b": a comment\n\n", b": a comment\n\n"),
    (b"\n\n\n\n", b"\n\n\n\n"),
    *((same, same) for same in (
        b'data: {"choices":[{"x":1}],"usage":' + USAGE + b"}\n\n",
        b'data: {"choices":[{"usage":null}]}\n\n',
        b'data: {"choices":[{"a":1,"usage":null}]}\n\n',
        b'data: {"x_groq":{"a":1,"usage":null},"b":1}\n\n',
        b'data: {"choices":[{"delta":{"content":"usage"}}]}\n\n',
        b'data: {"choices":["usage"]}\n\n',
        b'data: {"usage":0}\n\n',
        b'data: {"usage":' + USAGE + b"}\n\n",
        b'data: {"choices":[],"usage":[]}\n\n',
        b'data: {"choices":[],"usage":null,"usage":null,"x":[]}\n\n',
        b'data: {"choices":[],"usage":' + USAGE + b"]\n\n",
        b'data: {"error":{"message":"\\"usage\\""}}\n\n',
        b'data: no JSON, "usage" neither\n\n',
        b'data: ,"usage":null}\n\n',
        b'data: ["usage",null]\n\n',
        b'data: {"choices":[],\ndata: "usage":null}\n\n',
        b'data: {"choices":[]}\ndata: ,"usage":null}\n\n',
        b'metadata: {"choices":[],"usage":null}\n\n',
        b': {"a":1,"usage":null}\n\n',
        b'\xef\xbb\xbfdata: {"a":1,"usage":null}\n\n',
    )),
]  # fmt: skip


@pytest.mark.parametrize(("event", "expected"), EVENTS)
def test_an_event_is_filtered_alike_at_every_split(event: bytes, expected: bytes) -> None:
    other = b'data: {"id":"other"}\n\n'
    for before, after in ((b"", b""), (other, other), (event, event)):
        want = {b"": expected, other: other + expected + other, event: expected * 3}[before]
        for pieces in splits(before + event + after):
            assert filtered(pieces) == want, pieces


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\n", b"\n\r\n", b"\r\r\n", b"\n\r"])
def test_an_event_passes_as_soon_as_its_blank_line_has_come(end: bytes) -> None:
    event, null = b'data: {"choices":[1]}' + end, b'data: {"choices":[1],"usage":null}' + end
    for sent, expected in ((event, event), (null, event)):
        for pieces in splits(sent):
            filter_ = UsageChunkFilter()
            assert b"".join(map(filter_.feed, pieces)) == expected
            assert b"".join(map(filter_.feed, pieces)) == expected


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\r\n", b"\n\r\n"])
def test_a_line_feed_that_comes_late_shares_the_fate_of_its_event(end: bytes) -> None:
    other = b"data: x" + end
    usage = b'data: {"choices":[],"usage":' + USAGE + b"}" + end
    for pieces in splits(other + usage + other):
        assert filtered(pieces) == other * 2, pieces


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("line", [b"", b":", b": ping", b"retry: 1", b"x: y", b"datas: z", b"ids", b' data: {"usage":'])
def test_a_line_that_is_of_no_event_passes_at_once_when_none_is_in_hand(line: bytes, end: bytes) -> None:
    usage = b'data: {"choices":[],"usage":' + USAGE + b"}" + end * 2
    for before in (b"", b"data: x" + end * 2, usage, line + end):
        for pieces in splits(line + end):
            filter_ = UsageChunkFilter()
            filter_.feed(before)
            assert b"".join(map(filter_.feed, pieces)) == line + end, (before, pieces)
            assert b"".join(map(filter_.feed, pieces)) == line + end
            assert filter_.feed(usage) == b""


@pytest.mark.parametrize("line", [b"data", b"data: {", b"event: x", b"id: 7", b"event", b"\xef\xbb\xbfdata: x"])
def test_a_line_that_may_be_of_the_usage_event_waits_and_what_follows_too(line: bytes) -> None:
    filter_ = UsageChunkFilter()
    assert filter_.feed(line + b"\n: ping\n") == b""
    assert filter_.feed(b": ping\n") == b""
    assert filter_.feed(b"\n") == line + b"\n: ping\n: ping\n\n"


FLOODS = [
    b"\n", b"\r\n", b"\r", b":\r\n", b"data:\r\n", b"data:\n\n", b"data:x", b": x", b'data:{"usage":1}\r\n\r\n',
    b'data:{"usage":null}\r\n\r\n', b'data: {"a":1,"usage":null}\n\n', b'data: {"a":1, "usage": null}\r\r',
    b'"usage"', b'"usage"\n\n', b'data:{"choices":[],"usage":{}}\n\n', b'data:{"usage":null,"a":[]}\n\n: c\r\n',
]  # fmt: skip


@pytest.mark.parametrize("start", [b"", b"data:\n"])
@pytest.mark.parametrize("size", [1, 64 * 1024])
@pytest.mark.parametrize("part", FLOODS)
def test_twice_the_bytes_take_twice_the_work(part: bytes, size: int, start: bytes) -> None:
    counts = []
    for times in (1, 2, 4):
        body = start + part * (times * 4096 // len(part))
        filter_ = UsageChunkFilter()
        with Calls() as calls:
            for at in range(0, len(body), size):
                filter_.feed(body[at : at + size])
        counts.append(calls.count)
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0]) + 500, counts
    assert counts[2] < 24 * 16384


@pytest.mark.parametrize("part", FLOODS)
def test_one_piece_takes_a_bounded_number_of_calls(part: bytes) -> None:
    with Calls() as calls:
        UsageChunkFilter().feed(part * (1024 * 1024 // len(part)))
    assert calls.count < 120_000


def test_what_is_beyond_the_work_of_one_piece_passes_as_it_is_and_the_next_is_filtered() -> None:
    event = b'data:{"usage":null,"a":[]}\n\n'
    filter_ = UsageChunkFilter()
    got = filter_.feed(event * 2000)
    assert got.startswith(b'data:{"a":[]}\n\n' * 100)
    assert got.endswith(event * 100)
    assert filter_.feed(event) == b'data:{"a":[]}\n\n'


def test_it_is_told_whether_the_usage_chunk_came() -> None:
    filter_ = UsageChunkFilter()
    filter_.feed(b'data: {"choices":[1],"usage":null}\n\n')
    assert not filter_.removed
    filter_.feed(b'data: {"choices":[],"usage":' + USAGE + b"}\n\n")
    assert filter_.removed
    filter_ = UsageChunkFilter()
    assert filter_.feed(b'data: {"choices":[],"usage":' + USAGE + b',"citations":["a"]}\n\n')
    assert filter_.removed


@pytest.mark.parametrize("left", [b"data: ", b'data: {"choices":[1],"usage":null}', b'data: {"usage":null}\n', b"\r"])
def test_a_stream_that_breaks_off_ends_as_it_came(left: bytes) -> None:
    for pieces in splits(b"data: x\n\n" + left):
        assert filtered(pieces) == b"data: x\n\n" + left


@pytest.mark.parametrize("size", [1000, 65536])
def test_an_endless_event_passes_in_little_memory_and_the_next_is_filtered_again(size: int) -> None:
    long = b'data: {"a":"' + b"x" * (3 * MAX_EVENT) + b'","usage":null}\r\n\r\n'
    after, expected = b'data: {"a":1,"usage":null}\n\n', b'data: {"a":1}\n\n'
    filter_ = UsageChunkFilter()
    got = bytearray()
    tracemalloc.start()
    for at in range(0, len(long), size):
        got += filter_.feed(long[at : at + size])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got == long
    assert peak < 8 * MAX_EVENT + 200_000, "the answer's copy and the event that is held"
    assert filter_.feed(after) == expected


def test_a_long_event_passes_alike_in_any_pieces() -> None:
    long = b'data: {"a":"' + b"x" * MAX_EVENT + b'","usage":null}'
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        stream = long + end + b'data: {"a":1,"usage":null}' + end
        for cut in range(MAX_EVENT - 2, len(stream)):
            assert filtered([stream[:cut], stream[cut:]]) == long + end + b'data: {"a":1}' + end, cut


# The stand-in's streams, which have OpenAI's shape.


def _spaced(stream: bytes) -> bytes:
    lines = [
        b"data: " + json.dumps(orjson.loads(line[6:])).encode() if line.startswith(b"data: {") else line
        for line in stream.split(b"\n\n")
    ]
    return b"\n\n".join(lines)


def _usage_first(stream: bytes) -> bytes:
    return b"".join(
        line.replace(b"data: {", b'data: {"usage":null,', 1).replace(b',"usage":null}', b"}") + b"\n\n"
        if line.endswith(b',"usage":null}')
        else line + b"\n\n"
        for line in stream.split(b"\n\n")[:-1]
    )


STYLES: dict[str, Callable[[bytes], bytes]] = {
    "as OpenAI": lambda stream: stream,
    "CRLF": lambda stream: stream.replace(b"\n", b"\r\n"),
    "CR": lambda stream: stream.replace(b"\n", b"\r"),
    "spaces": _spaced,
    "usage first": _usage_first,
    "obfuscation": lambda stream: stream.replace(b',"usage":null}', b',"usage":null,"obfuscation":"aB3"}').replace(
        b'"finish_reason":null}]}', b'"finish_reason":null}],"obfuscation":"aB3"}'
    ),
}  # fmt: skip


def _ask(path: str, body: bytes) -> bytes:
    headers = ((b"Authorization", b"Bearer sk-x"), (b"Content-Type", b"application/json"))
    reply, _ = App(Journal(lambda: 0.0)).answer(Request("POST", path, headers, body), Directives())
    assert reply.status == 200
    return b"".join(reply.pieces)


def _streams(path: str, members: dict[str, Any]) -> tuple[bytes, bytes]:
    """The stand-in's stream for a body as the client sends it, and for what Flowstack makes of it."""
    body = orjson.dumps({"model": "gpt-4o", **members, "stream": True})
    asked = read_request_facts("json", {b"content-type": b"application/json"}, body)
    assert asked is not None
    injected = with_usage(body, asked)
    assert injected != body
    plain, counted = _ask(path, body), _ask(path, injected)
    # The stand-in makes the id from the body, which is not the same.
    ids = [orjson.loads(stream.split(b"\n\n")[0][6:])["id"].encode() for stream in (plain, counted)]
    return plain, counted.replace(ids[1], ids[0])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 'say "usage":null, then usage'}], "n": 2}),
        ("/v1/completions", {"prompt": ['the "usage":', "of it"]}),
    ],
)
def test_the_client_gets_byte_for_byte_what_it_would_have_got(path: str, members: dict[str, Any], style: str) -> None:
    plain, counted = map(STYLES[style], _streams(path, members))
    assert counted != plain
    assert counted.count(b'"usage"') > plain.count(b'"usage"')
    if style == "obfuscation":
        assert b',"usage":null,"obfuscation"' in counted
        plain, counted = (stream.replace(b'"stop"}]}', b'"stop"}],"obfuscation":"aB3"}') for stream in (plain, counted))
    for pieces in islice(splits(counted), 0, None, 7):  # each event is cut at every byte above
        assert filtered(pieces) == plain
    end = STYLES[style](b"\n\n")
    events = [event + end for event in counted.split(end)[:-1]]
    assert len(events) > 6
    assert filtered(events) == plain


@given(st.data())
def test_what_mentions_no_usage_passes_as_it_is_in_any_pieces(data: st.DataObject) -> None:
    parts = [b"data: ", b"{", b"}", b"\n", b"\r", b"\r\n", b"\n\n", b"x", b'"choices":[]', b": ", b"\x00\xff"]
    stream = b"".join(data.draw(st.lists(st.sampled_from(parts), max_size=12)))
    pieces = data.draw(pieces_of(stream))
    assert filtered(pieces) == stream
    with_it = stream.replace(b"x", b',"usage":null')
    assert filtered(data.draw(pieces_of(with_it))) == filtered([with_it])
