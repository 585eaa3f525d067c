"""What an upstream repeats of its client's making hides no usage, however strange it is."""

from __future__ import annotations

import orjson
import pytest

from flowstack.usage.members import MAX_DEPTH, MAX_DEPTH_ANSWERED, Members, Names
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Outcome
from flowstack.usage.operations import operation_of
from flowstack.usage.sockets import UpstreamEvents
from tests.usage.fixtures import EVENTS, JSON

DEEP = MAX_DEPTH + 8
"""As deep as a client may send it, and some levels around it."""

STRANGE = {
    "lists": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "too large a number": b"1e999",
    "a long number": b"1" * 20_000,
    "a long fraction": b"0." + b"1" * 20_000,
    "a long name": b'{"%b":1}' % (b"n" * 70_000),
    "half of a surrogate pair": rb'"cut \ud83d"',
    "half of one in a name": rb'{"cut \ud83d":1}',
    "no number": b"[NaN,Infinity,-Infinity]",
    "a name that comes twice": b'{"a":1,"a":2}',
}
USAGE = b'{"input_tokens":10,"output_tokens":5,"total_tokens":15}'
RESPONSE = b'{"id":"resp_1","status":"completed","model":"gpt-4o","text":%b,"usage":%b,"padding":"%b"}'
PADDING = [b"", b"p" * 20_000, b"p" * 100_000]


@pytest.fixture(params=STRANGE, ids=str)
def strange(request: pytest.FixtureRequest) -> bytes:
    return STRANGE[request.param]


@pytest.fixture(params=PADDING, ids=len)
def padding(request: pytest.FixtureRequest) -> bytes:
    padding: bytes = request.param
    return padding


def metered(content_type: bytes, body: bytes, size: int, path: bytes = b"responses") -> Outcome:
    meter = meter_for(operation_of(b"POST", path), 200, {b"content-type": content_type})
    assert meter is not None
    for at in range(0, len(body), size):
        more = meter.feed(body[at : at + size])
        while more:
            more = meter.work()
    return meter.finish()


def check(outcome: Outcome | None) -> None:
    assert outcome is not None
    assert outcome.usage is not None
    assert (outcome.usage.prompt_tokens, outcome.usage.total_tokens, outcome.partial) == (10, 15, False)


@pytest.mark.parametrize("size", [997, 10**6])
def test_in_an_answer(strange: bytes, padding: bytes, size: int) -> None:
    check(metered(JSON, RESPONSE % (strange, USAGE, padding), size))
    check(metered(JSON, RESPONSE % (b'{"a":[%b,%b]}' % (strange, strange), USAGE, padding), size))


@pytest.mark.parametrize("size", [997, 10**6])
def test_in_the_event_that_ends_a_stream(strange: bytes, padding: bytes, size: int) -> None:
    event = b'data: {"type":"response.completed","response":' + RESPONSE % (strange, USAGE, padding) + b"}\n\n"
    check(metered(EVENTS, event, size))


@pytest.mark.parametrize("size", [997, 10**6])
@pytest.mark.parametrize("wanted", [b"", b',"tools":%b', b',"id":%b', b',"service_tier":%b', b',"error":%b'])
def test_in_an_event_of_a_websocket(strange: bytes, padding: bytes, size: int, wanted: bytes) -> None:
    """Also in place of what is looked at, beside the usage."""
    reader = UpstreamEvents(operation_of(b"POST", b"responses"))
    response = RESPONSE % (strange, USAGE, padding)
    text = b'{"type":"response.completed","response":%b' % response
    text = text[:-1] + (wanted % strange if wanted else b"") + b"}}"
    for at in range(0, len(text), size):
        reader.feed(text[at : at + size])
    event = reader.end()
    assert event is not None
    assert (event.ends, event.unread) == (True, False)
    check(event.outcome)


def test_what_is_wanted_and_is_no_json_is_not_known_and_the_rest_is() -> None:
    names = Names.of(("usage", "tools", "id"), answered=True)
    for size in (1, 7, 10_000):
        members = Members(names)
        text = b'{"id":"r","tools":[1e999],"usage":{"a":1}}'
        for at in range(0, len(text), size):
            members.feed(text[at : at + size])
        members.finish()
        assert members.fault is None
        assert members.values == {"id": "r", "usage": {"a": 1}}
        assert members.too_large == {"tools": ord("[")}


def test_what_is_deeper_than_anything_that_a_client_sends_is_not_read_on() -> None:
    members = Members(Names.of(("usage",), answered=True))
    members.feed(b'{"a":' + b"[" * MAX_DEPTH_ANSWERED)
    assert members.fault == f"it is nested more than {MAX_DEPTH_ANSWERED} levels deep"


@pytest.mark.parametrize("text", [b'{"a":}', b'{"a":,"b":1}', b'{"a" 1}', b'{"a":1 2}', b'{"a":"\x01"}', b'{"a":@}'])
def test_brackets_commas_and_strings_must_hold(text: bytes) -> None:
    for size in (1, 100):
        members = Members(Names.of(("usage",), answered=True))
        for at in range(0, len(text), size):
            members.feed(text[at : at + size])
        members.finish()
        assert members.fault is not None


def test_a_client_may_send_little_of_that() -> None:
    passing = {"a long fraction", "half of a surrogate pair", "a name that comes twice"}
    for name, text in STRANGE.items():
        members = Members(Names.of(("usage",), inner=True))
        members.feed(b'{"x":%b}' % text)
        members.finish()
        assert (members.fault is None) is (name in passing), name


def test_the_fixtures_are_what_they_say() -> None:
    orjson.loads(RESPONSE % (b"1", USAGE, b""))
