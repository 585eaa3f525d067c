"""What an answer costs to look at grows with its bytes and no faster, whatever its upstream makes of them.

Work is counted by Python's own profiler: calls of functions, Python's and C's, never seconds. No call is given more
than a slice of the answer, so that calls are all there is to count.
"""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli
import pytest
import zstandard

from flowstack.usage import turns
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Outcome, Usage
from flowstack.usage.operations import operation_of
from flowstack.usage.turns import SLICE, InTurns
from tests.usage.calls import Calls
from tests.usage.fixtures import EVENTS, JSON

SIZE = 12 * 1024
"""More than a meter holds."""

CALLS_A_BYTE = 8
CALLS_A_TURN = 100_000
"""Of some 0.1 µs each."""


LINES = [
    b"", b":", b": c", b"a", b"datas", b"id:1", b"retry:1", b"event:a", b"data", b"data:", b"data: ", b"data:x",
    b'data:{"usage":1}', b'data:"usage"', b'data:{"a":"\\"usage\\":"}', b"data:{", b'data:{"usage":null}',
    b'data:{"usage":null,"usage":null}', b'data:{"model":"m","usage":{"prompt_tokens":1}}', b"data:[[[[[[[[",
    b"\x00\xff",
]  # fmt: skip
ENDS = (b"\n", b"\r\n", b"\r")
CODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"": bytes,
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": lambda body: brotli.compress(body, quality=5),
    b"zstd": zstandard.compress,
}
OBJECTS = [
    (b'{"a":[', b"[],"), (b'{"a":[', b"{},"), (b'{"a":[', b'"\\\\",'), (b'{"a":[', b'"\\"",'), (b'{"a":[', b"1,"),
    (b"{", b'"a":1,'), (b"{", b'"usage":1,'), (b"{", b'"usage":{},'), (b"{", b'"usage":{"prompt_tokens":1},'),
    (b"{", b'"Usage":1,'), (b'{"a":"', b'\\"usage\\":1,'), (b'{"a":"', b"\\\\"), (b'{"usage":"', b"a"), (b'{"a', b"a"),
    (b'{"usage":', b"9"), (b'{"usage":{"a":', b"["), (b"", b" "), (b"", b"["), (b'{"a":', b'{"a":'),
    (b'{"usage":1', b" "),
]  # fmt: skip


def flood(start: bytes, part: bytes, size: int) -> bytes:
    return start + part * (size // len(part))


def floods() -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    """What is asked, the type of the answer, its beginning, and what follows again and again."""
    chat, responses, messages, vectors = b"chat/completions", b"responses", b"messages", b"embeddings"
    for number, (line, end) in enumerate(itertools.product(LINES, ENDS)):
        start, ends = (b'data: {"model":"m"}\n\n', end * 2) if number % 2 else (b"", end * (1 + number % 3))
        yield chat, EVENTS, start, line + ends
    for path, part in (
        (responses, b'data:{"type":"response.completed","response":{"usage":{"input_tokens":1}}}\n\n'),
        (messages, b'data:{"message":{"usage":{"input_tokens":1}}}\n\n'),
        (chat, flood(b'data:{"usage":1', b',"a":[]', 3000) + b"}\n\n"),
        (chat, flood(b'data:{"usage":1', b'\r\ndata:,"a":1', 3000) + b"}\r\n\r\n"),
        (vectors, b"[[],[]]"),
        (chat, b"\n\r"),
        (chat, b"\r\r\n"),
    ):
        yield path, EVENTS, b"", part
    for start, part in OBJECTS:
        yield chat, JSON, start, part
        yield chat, EVENTS, b"data:" + start, part
        yield responses, EVENTS, b'data:{"response":' + start, part
        yield chat, EVENTS, b"data:" + b" " * SIZE + start, b"\r\ndata:" + part


def look(meter: InTurns, pieces: list[bytes]) -> tuple[int, int, Outcome]:
    """How many calls it takes, in all and in the worst turn."""
    count = worst = 0

    def turn(work: Callable[..., Any], *arguments: bytes) -> Any:
        nonlocal count, worst
        with Calls() as calls:
            result = work(*arguments)
        count += calls.count
        worst = max(worst, calls.count)
        return result

    for piece in pieces:
        more = turn(meter.feed, piece)
        while more:
            more = turn(meter.work)
    return count, worst, turn(meter.finish)


def check_growth(counts: list[int]) -> None:
    """Of what is once, twice and four times as long: as much for each further byte, but for the rest of a slice.

    The first ones may cost less: what is short is held as a whole, and looked at once.
    """
    once, twice, four_times = counts
    assert four_times - twice < 3 * (twice - once) + 32_000, counts  # squares would take four times as many


def metered(path: bytes, content_type: bytes, coding: bytes, body: bytes, size: int) -> tuple[int, int, Outcome]:
    meter = meter_for(operation_of(b"POST", path), 200, {b"content-type": content_type, b"content-encoding": coding})
    assert meter is not None
    return look(meter, [body[at : at + size] for at in range(0, len(body), size)])


@pytest.mark.parametrize(
    ("path", "content_type", "start", "part", "coding"),
    [(*one, coding) for one, coding in zip(floods(), itertools.cycle((b"", *CODERS)))],
)
def test_twice_the_bytes_take_twice_the_work_and_no_turn_takes_much(
    path: bytes, content_type: bytes, start: bytes, part: bytes, coding: bytes
) -> None:
    counts = []
    for times in (1, 2, 4):
        body = flood(start, part, times * SIZE)
        count, worst, _ = metered(path, content_type, coding, CODERS[coding](body), 64 * SIZE)
        assert worst < CALLS_A_TURN
        assert count < CALLS_A_BYTE * len(body)
        counts.append(count)
    check_growth(counts)


@pytest.mark.parametrize("coding", CODERS)
def test_no_more_than_a_slice_is_looked_at_together(coding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Watching:
        steps = 0

        def feed(self, piece: bytes) -> None:
            sizes.append(len(piece))

        def finish(self, ended: bool = True) -> Outcome:
            return Outcome()

    from flowstack.http.codings import Decoder, codings_of

    codings = codings_of(coding)
    body = CODERS[coding](bytes(10 * SIZE))
    look(InTurns(Watching(), Decoder(codings) if codings else None), [body])
    assert sum(sizes) == 10 * SIZE
    assert max(sizes) <= SLICE


@pytest.mark.parametrize("content_type", [EVENTS, JSON])
@pytest.mark.parametrize(
    ("start", "part"), [(b"", b"\r\n"), (b"data:", b"x"), (b'data:{"usage":[', b"1,"), *OBJECTS[::5]]
)
def test_very_small_pieces_cost_no_more_for_each_the_more_there_are(
    content_type: bytes, start: bytes, part: bytes
) -> None:
    counts = []
    for times in (1, 2, 4):
        body = flood(start, part, times * SIZE)
        counts.append(metered(b"chat/completions", content_type, b"", body, 9)[0])
    check_growth(counts)


def with_usage(event: bytes, numbers: range) -> list[bytes]:
    """Events whose usage has names that no other has, longer than those that orjson remembers."""
    figures = (b'"a%065d":1,"%065d":1,"b%065d":{"c%065d":[[]]}' % (n, n, n, n) for n in numbers)
    return [b"data: " + event % figure + b"\n\n" for figure in figures]


@pytest.mark.parametrize("event", [b'{"usage":{%b}}', b'{"message":{"usage":{%b}}}', b'{"response":{"usage":{%b}}}'])
@pytest.mark.parametrize("path", [b"chat/completions", b"responses", b"messages"])
def test_figures_of_ever_new_names_cost_no_more_the_more_there_were(path: bytes, event: bytes) -> None:
    bodies = [b"".join(with_usage(event, range(100 * times))) for times in (1, 2, 4)]
    check_growth([metered(path, EVENTS, b"", body, SLICE)[0] for body in bodies])
    meter = meter_for(operation_of(b"POST", path), 200, {b"content-type": EVENTS})
    assert meter is not None
    pieces = with_usage(event, range(2000))
    tracemalloc.start()
    try:
        for piece in pieces[:1000]:
            meter.feed(piece)
        before = tracemalloc.get_traced_memory()[0]
        for piece in pieces[1000:]:
            meter.feed(piece)
        assert tracemalloc.get_traced_memory()[0] < before + 16 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", [coding for coding in CODERS if coding])
@pytest.mark.parametrize("part", [b"\r\n", b"data:\r\n", b"\x00", b'data:{"usage":{"prompt_tokens":1}}\r\n\r\n'])
def test_a_few_kilobytes_that_decode_to_very_much_are_given_up(coding: bytes, part: bytes) -> None:
    start = b'data: {"model":"m","usage":{"prompt_tokens":1}}\n\n'
    body = CODERS[coding](flood(start, part, 16 * 1024 * 1024))
    count, worst, outcome = metered(b"chat/completions", EVENTS, coding, body, SIZE)
    assert outcome.usage is None
    assert outcome.model in ("m", None)
    assert count < 12 * (turns.MAX_STEPS + len(body))
    assert worst < CALLS_A_TURN


@pytest.mark.parametrize("fault", [ValueError, RecursionError, OverflowError, UnicodeError, KeyError, AssertionError])
@pytest.mark.parametrize("size", [10, 10 * SLICE])
@pytest.mark.parametrize("where", ["feed", "finish"])
def test_a_fault_of_a_meter_s_leaves_the_usage_unknown(fault: type[Exception], size: int, where: str) -> None:
    class Faulty:
        steps = 0

        def feed(self, piece: bytes) -> None:
            if where == "feed":
                raise fault

        def finish(self, ended: bool = True) -> Outcome:
            if where == "finish":
                raise fault
            return Outcome("m", None, Usage(1))

    meter = InTurns(Faulty())
    for _ in range(3):
        assert meter.feed(bytes(size)) is False
    assert meter.finish() == Outcome("m" if where == "feed" else None)
