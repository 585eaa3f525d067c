from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.members import MAX_DEPTH, SHAPE, SHAPE_SIZE, SHAPES, Found, Members, Names, plain_members
from tests.usage.bodies import WANTED, pieces_of, splits, written

NAMES = Names.of(WANTED, inner=True)
OUTER = Names.of(WANTED)


def read(pieces: Iterable[bytes], most: int = 64 * 1024, names: Names = NAMES) -> Members:
    members = Members(names, most)
    for piece in pieces:
        members.feed(piece)
    members.finish()
    return members


def members_of(body: bytes, most: int = 64 * 1024, names: Names = NAMES) -> Found:
    """As whoever has a whole body reads it."""
    values = plain_members(body, names, most)
    return read([body], most, names) if values is None else Found(values)


def all_of(members: Found) -> tuple[Any, ...]:
    return members.values, members.repeated, dict(members.too_large), members.fault


GOOD: list[tuple[bytes, dict[str, Any]]] = [
    (b"{}", {}),
    (b" \t\r\n{ \n} \n", {}),
    (b'{"model":"gpt-4o"}', {"model": "gpt-4o"}),
    (b'{"mod\\u0065l":"gpt\\u002d4o"}', {"model": "gpt-4o"}),
    (b'{ "model" : "a\\"b\\\\" , "n":1}', {"model": 'a"b\\', "n": 1}),
    (b'{"messages":[{"model":"no","x":["model",{"model":"no"}]}],"model":"yes"}', {"model": "yes"}),
    (b'{"a":"model","b":["model"],"model":"yes"}', {"model": "yes"}),
    (b'{"a":"\\",\\"model\\":\\"no\\"","model":"yes"}', {"model": "yes"}),
    (b'{"a":"\\\\","model":"yes"}', {"model": "yes"}),
    (b'{"a":"\\\\\\\\\\"","model":"yes"}', {"model": "yes"}),
    (b'{"model":"\\ud83d\\ude00 \xf0\x9f\x98\x80"}', {"model": "😀 😀"}),
    (b'{"n":-1.5e+3,"stream":true}', {"n": -1500.0, "stream": True}),
    (b'{"n":0}', {"n": 0}),
    (b'{"n":1 }', {"n": 1}),
    (b'{"prompt":{"id":"p","variables":{"a":[1,{"b":"]}"}]}},"stream":false}',
     {"prompt": {"id": "p", "variables": {"a": [1, {"b": "]}"}]}}, "stream": False}),
    (b'{"a":[],"b":{},"c":[[],{}],"model":null}', {"model": None}),
    (b'{"":1,"models":2,"model ":3,"N ":4}', {}),
    (b'{"a":"' + b"x" * 70 + b'","b":["' + b"y" * 70 + b'","z"],"model":"m"}', {"model": "m"}),
    (b'{"mod\\u0065ls":1,"\\u004dodels":2,"n":3}', {"n": 3}),
]  # fmt: skip

BAD: list[tuple[bytes, str]] = [
    (b"", "it is empty"),
    (b" \n", "it is empty"),
    (b"[]", "found '[' where an object should begin"),
    (b'"model"', "found byte 0x22 where an object should begin"),
    (b"null", "found 'n' where an object should begin"),
    (b'\xef\xbb\xbf{"model":"m"}', "found a byte order mark where an object should begin"),
    (b"\xff\xfe{\x00}\x00", "found byte 0xff where an object should begin"),
    (b"{\x00}\x00", "found byte 0x00 where a member's name should begin"),
    (b"\x0b{}", "found byte 0x0b where an object should begin"),
    (b"{", "it ends before the object is closed"),
    (b'{"model"', "it ends before the object is closed"),
    (b'{"model":"m', "it ends before the object is closed"),
    (b'{"model":"m"', "it ends before the object is closed"),
    (b'{"model":"m",', "it ends before the object is closed"),
    (b'{"n":1', "it ends before the object is closed"),
    (b'{"a":[{"b":1}', "it ends before the object is closed"),
    (b'{"model":"m"}x', "found 'x' after the object's end"),
    (b'{"model":"m"}\x00', "found byte 0x00 after the object's end"),
    (b'{"model":"m"}{"model":"o"}', "found '{' after the object's end"),
    (b'{"model":"m",}', "found '}' where a member's name should begin"),
    (b'{,"model":"m"}', "found ',' where a member's name should begin"),
    (b"{model:1}", "found 'm' where a member's name should begin"),
    (b"{'model':1}", "found \"'\" where a member's name should begin"),
    (b'{"model" "m"}', "found byte 0x22 where a colon should be"),
    (b'{"model":"m" "n":1}', "found byte 0x22 where a comma should be"),
    (b'{"model":"m"]', "found ']' where a comma should be"),
    (b'{"model":}', "found '}' where a value should be"),
    (b'{"a":,"model":"m"}', "found ',' where a value should be"),
    (b'{"a":NaN}', "found 'N' where a value should be"),
    (b'{"n":-}', "a value is no JSON"),
    (b'{"n":01}', "a value is no JSON"),
    (b'{"a":1.}', "a value is no JSON"),
    (b'{"a":truetrue}', "a value is no JSON"),
    (b'{"a":1e999}', "a value is no JSON"),
    (b'{"a":1/**/,"model":"m"}', "found '/' where a value should be"),
    (b'{"a":[1/*"*/],"model":"m"}', "found '/' where a value should be"),
    (b'{"a":[1//"\n],"model":"m"}', "found '/' where a value should be"),
    (b'{"a":[\'"\'],"model":"m"}', "found \"'\" where a value should be"),
    (b'{"a":[NaN]}', "found 'N' where a value should be"),
    (b'{"a":[\x00]}', "found byte 0x00 where a value should be"),
    (b'{"a":[}],"model":"m"}', "found '}' where a value should be"),
    (b'{"a":{"b":[1}]}', "found '}' where a comma should be"),
    (b'{"\xff":1,"model":"m"}', "it is no UTF-8"),
    (b'{"mod\xc1\xa5l":"m"}', "it is no UTF-8"),
    (b'{"\\ud800":1}', "a member's name is no JSON"),
    (b'{"mod\x00el":1}', "found byte 0x00 within a string"),
    (b'{"mod\\x65l":1}', "a string in it has an escape that is none"),
    (b'{"model":"\\ud800"}', "the value of model is no JSON"),
    (b'{"model":"\xff"}', "it is no UTF-8"),
    (b'{"model":"a\nb"}', "found byte 0x0a within a string"),
    (b'{"prompt":{"id":1,}}', "found '}' where a member's name should begin"),
    (b'{"prompt":[1 2]}', "found '2' where a comma should be"),
    (b'{"a":"\xff"}', "it is no UTF-8"),
    (b'{"a":["x\xe2\x82","model"]}', "it is no UTF-8"),
    (b'{"a":{"b":"\xed\xa0\x80"}}', "it is no UTF-8"),  # half of a surrogate pair
    (b'{"a":{"b":"\xc0\xaf"}}', "it is no UTF-8"),
    (b'{"a":"\xf4\x90\x80\x80"}', "it is no UTF-8"),
    (b'{"a":"\xf0\x9f\x98', "it ends before the object is closed"),
    (b'{"a":\xe2\x82\xac}', "found byte 0xe2 where a value should be"),
    (b'{"a":"b\nc"}', "found byte 0x0a within a string"),
    (b'{"a":["' + b"b" * 100 + b'\x1f"]}', "found byte 0x1f within a string"),
    (b'{"a":"' + b"b" * 100 + b'\t' + b"b" * 100 + b'"}', "found byte 0x09 within a string"),
    (b'{"a":{"b\x00":1}}', "found byte 0x00 within a string"),
    (b'{"a":"\\x41"}', "a string in it has an escape that is none"),
    (b'{"a":["\\u12g4"]}', "a string in it has an escape that is none"),
    (b'{"a":["\\u123"]}', "a string in it has an escape that is none"),
    (b'{"a":"\\U0041"}', "a string in it has an escape that is none"),
    (b'{"a":"\\\n"}', "a string in it has an escape that is none"),
    (b'{"a":{"\\q":1}}', "a string in it has an escape that is none"),
    (b'{"a":{"\\udc00":1}}', "a member's name is no JSON"),
    (b'{"a":truefalse}', "a value is no JSON"),
    (b'{"a":[truefalse]}', "a value is no JSON"),
    (b'{"a":[tru]}', "a value is no JSON"),
    (b'{"a":[nulll]}', "a value is no JSON"),
    (b'{"a":[True]}', "found 'T' where a value should be"),
    (b'{"a":[01]}', "a value is no JSON"),
    (b'{"a":[-01]}', "a value is no JSON"),
    (b'{"a":[1.2.3]}', "a value is no JSON"),
    (b'{"a":[.5]}', "found '.' where a value should be"),
    (b'{"a":[+1]}', "found '+' where a value should be"),
    (b'{"a":[1e]}', "a value is no JSON"),
    (b'{"a":[0x10]}', "found 'x' where a value should be"),
    (b'{"a":[1e400]}', "a value is no JSON"),
    (b'{"a":[-Infinity]}', "found 'I' where a value should be"),
    (b'{"a":[,]}', "found ',' where a value should be"),
    (b'{"a":[1,]}', "found ']' where a value should be"),
    (b'{"a":[,1]}', "found ',' where a value should be"),
    (b'{"a":[1 2]}', "found '2' where a comma should be"),
    (b'{"a":[1}', "found '}' where a comma should be"),
    (b'{"a":{"b" 1}}', "found '1' where a colon should be"),
    (b'{"a":{"b"}}', "found '}' where a colon should be"),
    (b'{"a":{"b":}}', "found '}' where a value should be"),
    (b'{"a":{"b":1,}}', "found '}' where a member's name should begin"),
    (b'{"a":{"b":1 "c":2}}', "found byte 0x22 where a comma should be"),
    (b'{"a":{b:1}}', "found 'b' where a member's name should begin"),
    (b'{"a":{1:1}}', "found '1' where a member's name should begin"),
    (b'{"a":{null:1}}', "found 'n' where a member's name should begin"),
    (b'{"a":{"b":1]}', "found ']' where a comma should be"),
    (b'{"a":["b":1]}', "found ':' where a comma should be"),
    (b'{"a":[1]]}', "found ']' where a comma should be"),
    (b'{"a":{}}}', "found '}' after the object's end"),
    (b'{"a":"b"c"}', "found 'c' where a comma should be"),
    (b'{"a":\xa01}', "found byte 0xa0 where a value should be"),
    (b'{"a":\xc2\xa01}', "found byte 0xc2 where a value should be"),
    (b'{"a":\x0c1}', "found byte 0x0c where a value should be"),
    (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", f"it is nested more than {MAX_DEPTH} levels deep"),
]


@pytest.mark.parametrize(("body", "values"), GOOD)
def test_wanted_members_are_found_at_every_split(body: bytes, values: dict[str, Any]) -> None:
    for pieces in splits(body):
        members = read(pieces)
        assert all_of(members) == (values, set(), {}, None), pieces
        assert members.size == len(body)
        assert members.closed == body.rindex(b"}")
        for name, (name_at, value_at, end) in members.spans.items():
            assert orjson.loads(body[value_at:end]) == values[name]
            assert orjson.loads(body[name_at:value_at].rstrip(b" :")) == name
    assert all_of(members_of(body)) == (values, set(), {}, None)


@pytest.mark.parametrize(("body", "fault"), BAD)
def test_what_is_no_object_is_a_fault_at_every_split(body: bytes, fault: str) -> None:
    whole = read([body])
    assert whole.fault is not None
    assert whole.fault.startswith(fault)
    # Deep nesting takes two kilobytes: there, a cut at each byte would say the same a thousand times.
    for pieces in splits(body) if len(body) < 1000 else [[body[at : at + 1] for at in range(len(body))]]:
        assert read(pieces).fault == whole.fault, pieces
    assert members_of(body).fault == whole.fault
    with pytest.raises((orjson.JSONDecodeError, AttributeError)):
        orjson.loads(body).items()


@pytest.mark.parametrize(
    ("body", "values", "repeated"),
    [
        (b'{"model":"a","model":"b"}', {"model": "b"}, {"model"}),
        (b'{"model":"a","mod\\u0065l":"b"}', {"model": "b"}, {"model"}),
        (b'{"\\u006D\\u006f\\u0064\\u0065\\u006c":"a","n":1,"model":"a"}', {"model": "a", "n": 1}, {"model"}),
        (b'{"model":"a","n":1,"n":2,"model":null}', {"model": None, "n": 2}, {"model", "n"}),
        (b'{"model":"a","x":{"model":"b"},"y":"model"}', {"model": "a"}, set()),
        (b'{"x":1,"x":2}', {}, set()),
        (b'{"model":"a","Model":"b"}', {"model": "a"}, {"model"}),
        (b'{"MODEL":"b","N":1}', {}, {"model", "n"}),
        (b'{"\\u004dodel":"b","n":1}', {"n": 1}, {"model"}),
        ('{"\u017ftream":true,"model":"a"}'.encode(), {"model": "a"}, {"stream"}),
    ],
)
def test_a_repeated_name_is_told_after_unescaping(body: bytes, values: dict[str, Any], repeated: set[str]) -> None:
    for pieces in splits(body):
        assert all_of(read(pieces)) == (values, repeated, {}, None), pieces
    assert all_of(members_of(body)) == (values, repeated, {}, None)


@pytest.mark.parametrize("value", [b'"' + b"x" * 9 + b'"', b'["xxxxxxx"]'[:10] + b"]", b'{"a":"bcd"}'])
def test_a_value_longer_than_the_most_is_told_and_not_kept(value: bytes) -> None:
    body = b'{"prompt":' + value + b',"n":1}'
    for pieces in splits(body):
        assert all_of(read(pieces, len(value))) == ({"prompt": orjson.loads(value), "n": 1}, set(), {}, None)
        assert all_of(read(pieces, len(value) - 1)) == ({"n": 1}, set(), {"prompt": value[0]}, None)
        assert all_of(read([*pieces[:-1], pieces[-1][:-1] + b',"prompt":1}'], len(value) - 1)) == (
            {"n": 1, "prompt": 1}, {"prompt"}, {}, None
        )  # fmt: skip
    assert all_of(members_of(body, len(value) - 1)) == ({"n": 1}, set(), {"prompt": value[0]}, None)


@pytest.mark.parametrize("body", [b'{"n":1234567890}', b'{"x":1234567890}', b'{"abcdefghij":1}'])
def test_a_number_or_a_name_longer_than_the_most_is_a_fault(body: bytes) -> None:
    for pieces in splits(body):
        assert read(pieces, 9).fault == "a name or a number in it is longer than 9 bytes", pieces


def test_nesting_may_be_as_deep_as_orjson_allows() -> None:
    deep = b'{"model":"m","a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert orjson.loads(deep)["model"] == "m"
    for body in (deep, deep.replace(b"[]", b"[1]"), deep.replace(b"[]", b"")):
        assert all_of(read([body])) == all_of(members_of(body)) == ({"model": "m"}, set(), {}, None)
    deeper = deep.replace(b"[]", b"[[]]")
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(deeper)
    assert read([deeper]).fault is not None


@pytest.mark.parametrize("unit", [b"A", b'\\"', b"\\\\", b"\\u0041", b"\xf0\x9f\x98\x80", b'\\",\\"model\\":\\"no'])
def test_ten_megabytes_of_one_string_are_skipped_in_little_memory(unit: bytes) -> None:
    piece = unit * (65536 // len(unit))
    for wanted in (b"prompt", b"image"):
        members = Members(NAMES)
        tracemalloc.start()
        members.feed(b'{"%s":"' % wanted)
        for _ in range(160):
            members.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        members.feed(b'","model":"m"}')
        members.finish()
        assert members.values == {"model": "m"}
        assert members.fault is None
        assert set(members.too_large) == {wanted.decode()} & {"prompt"}
        assert peak < 500_000


@pytest.mark.parametrize("endless", [b"1" * 65536, b"a" * 65536])
def test_an_endless_name_or_number_is_not_kept(endless: bytes) -> None:
    for begin in (b'{"', b'{"a":1'):
        members = Members(NAMES)
        members.feed(begin)
        tracemalloc.start()
        for _ in range(50):
            members.feed(endless)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        members.finish()
        assert members.fault is not None
        assert peak < 300_000


@given(st.data())
def test_whatever_a_client_may_write_reads_as_with_the_json_module(data: st.DataObject) -> None:
    body = data.draw(written())
    pairs: list[tuple[str, Any]] = []
    json.loads(body, object_pairs_hook=lambda found: pairs.__setitem__(slice(None), found) or dict(found))
    values = {name: value for name, value in pairs if name in WANTED}
    names = [name for name, _ in pairs]
    repeated = {name for name in WANTED if sum(other.casefold() == name for other in names) > (name in names)}
    expected = (values, repeated, {}, None)
    members = read(data.draw(pieces_of(body)), names=OUTER)
    assert all_of(members) == expected
    assert members.closed == body.rindex(b"}")
    assert all_of(members_of(body, names=OUTER)) == expected


@pytest.mark.parametrize("half", [b"\\ud83d", b"\\udE00", b"\\ude00\\ud83d", b"\\ud83d\\u0041", b"\\ud83d\\ud83d"])
def test_half_of_a_surrogate_pair_passes_where_nobody_reads_it_and_nowhere_else(half: bytes) -> None:
    """JavaScript writes such where a text was cut; parsers keep or replace it, and read all else alike."""
    for body in (b'{"a":"%s","n":1}', b'{"a":["x%sy"],"n":1}', b'{"a":[{"b":"%s"}],"n":1}'):
        for pieces in splits(body % half):
            assert all_of(read(pieces)) == ({"n": 1}, set(), {}, None), pieces
        assert all_of(members_of(body % half)) == ({"n": 1}, set(), {}, None)
    for body in (b'{"model":"%s"}', b'{"%s":1}', b'{"a":{"%s":1}}', b'{"a":{"model":"%s"}}', b'{"prompt":["%s"]}'):
        for pieces in splits(body % half):
            assert read(pieces).fault is not None, pieces
        assert members_of(body % half).fault is not None


@given(st.data())
def test_what_is_damaged_reads_alike_in_any_pieces_and_whole(data: st.DataObject) -> None:
    body = bytearray(data.draw(written()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(at, min(len(body), at + 3)))
        body[at:end] = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\x00", b"\xff", b"\\u00", b"/*"])
            | st.binary(max_size=2)
        )
    damaged = bytes(body)
    members = read(data.draw(pieces_of(damaged)), names=OUTER)
    assert all_of(members) == all_of(read([damaged], names=OUTER)) == all_of(members_of(damaged, names=OUTER))
    looked_into = read(data.draw(pieces_of(damaged)))
    assert all_of(looked_into) == all_of(read([damaged])) == all_of(members_of(damaged))
    try:
        whole = orjson.loads(damaged)
    except orjson.JSONDecodeError:
        # It takes no half of a surrogate pair, nor what is no UTF-8.
        assert looked_into.fault is not None or b"\\u" in damaged
        return
    if isinstance(whole, dict):
        assert members.fault is None
        assert members.values == {name: value for name, value in whole.items() if name in WANTED}
    else:
        assert members.fault is not None


@pytest.mark.parametrize("name", ["", "a-b", "é", 'a"', "a b", "a\\"])
def test_a_name_that_json_may_write_in_many_ways_cannot_be_wanted(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        Names.of([name])


def test_only_so_many_shapes_are_remembered_and_none_that_is_large() -> None:
    names = Names.of(("model",))
    for number in range(SHAPES + 10):
        assert plain_members(b'{"model":"m","x%d":1}' % number, names) == {"model": "m"}
        assert len(names.shapes) <= SHAPES
    known = set(names.shapes)
    many = {"model": "m"} | {f"x{number}": 1 for number in range(SHAPE)}
    assert plain_members(json.dumps(many).encode(), names) == {"model": "m"}
    assert plain_members(json.dumps({"model": "m", "x" * SHAPE_SIZE: 1}).encode(), names) == {"model": "m"}
    assert set(names.shapes) == known


def test_a_shape_that_was_seen_before_says_nothing_of_what_is_repeated_or_hidden() -> None:
    assert plain_members(b'{"mode\\u006c":"m","x":"\\"\\\\"}', NAMES) == {"model": "m"}
    for _ in range(2):
        assert plain_members(b'{"model":"m","x":1}', NAMES) == {"model": "m"}
        assert plain_members(b'{"model":"a","model":"m","x":1}', NAMES) is None
        assert plain_members(b'{"model":"m","x":1,"mode\\u006c":"a"}', NAMES) is None
        assert plain_members(b'{"model":"m","Model":1}', NAMES) is None
