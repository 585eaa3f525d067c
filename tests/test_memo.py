"""What is remembered of clients' and upstreams' words is bounded, in entries and in bytes, wherever that is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import pytest

from flowstack import addresses
from flowstack.config import Price
from flowstack.errors import ModelNotAllowed
from flowstack.http import headers
from flowstack.http.head_cache import MAX_BYTES, MAX_SHAPES, KnownHeads, RequestHeads, ResponseHeads
from flowstack.http.headers import ReceivedHeaders, RequestFields
from flowstack.keys import Key, Networks
from flowstack.keys.permits import check_address, check_endpoint, check_model
from flowstack.ledger import access
from flowstack.ledger import row as rows
from flowstack.memo import Memo, cut
from flowstack.metrics.recorder import Recorder
from flowstack.metrics.segment import Segment
from flowstack.prices.table import load_prices
from flowstack.usage import figures, members, meters, request_facts
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Usage
from flowstack.usage.operations import operation_of
from tests.metrics.rows import row

COUNT = 2200
LONG = 16 * 1024


class Shout:
    """Makes texts, and knows which."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.memo = Memo(self.make, most=10, longest=4)

    def make(self, value: str) -> str:
        self.made.append(value)
        return value.upper()


def test_what_is_known_is_not_made_again() -> None:
    shout = Shout()
    assert [shout.memo[value] for value in ("ab", "abcd", "ab", "", "abcd", "")] == ["AB", "ABCD", "AB", "", "ABCD", ""]
    assert shout.made == ["ab", "abcd", ""]


def test_what_is_too_long_is_made_each_time_and_not_remembered() -> None:
    shout = Shout()
    assert shout.memo["abcde"] == shout.memo["abcde"] == "ABCDE"
    assert shout.made == ["abcde", "abcde"]
    assert not shout.memo


def test_beyond_its_bound_a_memo_begins_anew() -> None:
    shout = Shout()
    for number in range(25):
        assert shout.memo[f"{number:04d}"] == f"{number:04d}"
        assert len(shout.memo) <= 10
    assert set(shout.memo) == {"0020", "0021", "0022", "0023", "0024"}


def test_the_size_of_a_key_of_several_parts_is_as_its_maker_says() -> None:
    memo: Memo[tuple[str, str], int] = Memo(len, most=10, longest=4, size=lambda key: len(key[0]) + len(key[1]))
    assert memo["ab", "cd"] == memo["ab", "cde"] == 2
    assert list(memo) == [("ab", "cd")]


@pytest.mark.parametrize(("text", "most", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("", 3, "")])
def test_a_text_that_is_cut_says_so(text: str, most: int, shown: str) -> None:
    assert cut(text, most) == shown


# All that is remembered of others' words. Each is flooded with short fresh texts, and with long ones.


def weight(thing: Any) -> int:
    """Bytes of a container of texts, and of these."""
    size = sys.getsizeof(thing)
    if isinstance(thing, Mapping):
        return size + sum(weight(key) + weight(value) for key, value in thing.items())
    if isinstance(thing, (tuple, list, set, frozenset)):
        return size + sum(map(weight, thing))
    return size if isinstance(thing, (str, bytes, bytearray)) else 0


Flood = Callable[[str], Any]


def _limited() -> tuple[Iterable[Any], Flood]:
    key = Key(id="k1", digest=bytes(32), models=("*",), endpoints=("/*",), allow_ip=(ip_network("::/0"),))

    def flood(text: str) -> None:
        with suppress(ModelNotAllowed):
            check_model(key, text)
        check_endpoint(key, b"GET", b"/" + text.encode())
        check_address(key, "::%x" % (hash(text) & 0xFFFF))

    return (key.memo.models, key.memo.endpoints, key.memo.addresses), flood


def _fields() -> tuple[Iterable[Any], Flood]:
    fields = RequestFields()

    def flood(text: str) -> None:
        there = ReceivedHeaders([(text.encode(), b"1")])
        fields.split(there)
        headers.response_pairs(there)

    return (fields._kinds, headers._response_kinds), flood


def _prices() -> tuple[Iterable[Any], Flood]:
    prices = load_prices((Price("*a*b*c*", input=1.0),))

    def flood(text: str) -> None:
        prices.has_price(text)
        prices.cost(text, Usage(1, completion_tokens=1), text, False, 0.0)

    return (prices._models, prices._lines), flood


def _recorder() -> tuple[Iterable[Any], Flood]:
    recorder = Recorder(Segment.create())

    def flood(text: str) -> None:
        for status, model in ((200, text), (404, None)):
            recorder.record(row(model_requested=text, model=model, status=status), "chat")

    return (recorder._cells, recorder._slots, recorder._models), flood


def _networks() -> tuple[Iterable[Any], Flood]:
    networks = Networks(["10.0.0.0/8"])
    return (networks._known, addresses._entries), lambda text: (
        networks.hold(text),
        addresses.client_address("10.0.0.1", [b"10.0.0.2, " + text.encode()], networks),
    )


def _request_heads() -> tuple[Iterable[Any], Flood]:
    known = KnownHeads()
    heads = RequestHeads(known)
    kept: list[Any] = []

    def flood(text: str) -> None:
        fields = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-It: %b\r\nContent-Length: 5\r\n\r\n"
        heads.read(fields % text.encode(), "192.0.2.1", False)
        kept[:] = [heads._before, heads._after]

    return (kept, known.data), flood


def _response_heads() -> tuple[Iterable[Any], Flood]:
    heads = ResponseHeads()
    kept: list[Any] = []

    def flood(text: str) -> None:
        for _ in range(3):
            heads.read(b"HTTP/1.1 200 OK\r\nX-%b: 1\r\nContent-Length: 5\r\n\r\n" % text.encode(), b"GET")
        kept[:] = [heads._seen, [shape.names for shape in heads._shapes]]
        assert len(heads._shapes) <= MAX_SHAPES

    return (kept,), flood


MEMOS: dict[str, tuple[Callable[[], tuple[Iterable[Any], Flood]], int, int]] = {
    "user agents and paths": (lambda: ((rows.usual_texts,), lambda text: rows.usual_texts[text.encode()]), 1024, 10**6),
    "models asked for": (lambda: ((rows.usual_names,), rows.usual_names.__getitem__), 1024, 2 * 10**6),
    "names in answers": (lambda: ((figures.texts,), figures.text_of), 1024, 2 * 10**6),
    "names of fields": (_fields, 1024, 10**6),
    "types of answers": (
        lambda: (
            (meters._plans,),
            lambda text: meter_for(operation_of(b"POST", b"responses"), 200, {b"content-type": text.encode()}),
        ),
        1024,
        10**6,
    ),
    "shapes of bodies": (
        lambda: (
            (request_facts.NAMES.shapes,),
            lambda text: members.plain_members(b'{"model":"m","%b":1}' % text.encode(), request_facts.NAMES),
        ),
        members.SHAPES,
        10**6,
    ),
    "prices": (_prices, 1024, 10**6),
    "where a row counts": (_recorder, 2048, 4 * 10**6),
    "what a key may do": (_limited, 32, 32 * 1024),
    "addresses": (_networks, 1024, 10**6),
    "words of the request log": (lambda: ((access._words,), access._word), 1024, 10**6),
    "a connection's last head": (_request_heads, 2, 2 * MAX_BYTES),
    "an upstream's heads": (_response_heads, 2, 2 * MAX_SHAPES * MAX_BYTES),
}


@pytest.mark.parametrize("length", [20, 200, LONG], ids=["short", "longer", "long"])
@pytest.mark.parametrize("name", MEMOS)
def test_what_is_remembered_of_others_words_is_bounded(name: str, length: int) -> None:
    make, most, most_bytes = MEMOS[name]
    kept, flood = make()
    for number in range(COUNT):
        flood(f"m{number}-".ljust(length, "x"))
    for container in kept:
        assert len(container) <= most  # type: ignore[arg-type]
        assert weight(container) <= most_bytes
