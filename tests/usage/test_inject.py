from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.inject import ADDED, OPTIONS, Gate, with_usage
from flowstack.usage.members import MAX_VALUE
from flowstack.usage.request_facts import RequestFacts, read_request_facts, reader_for
from tests.usage.bodies import VALUES, pieces_of, splits, written

JSON = {b"content-type": b"application/json"}
FORM = {b"content-type": b"multipart/form-data; boundary=B"}
FORM_BODY = (
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n' + b"\r\n--" * 20 +
    b'\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
)  # fmt: skip


def injected(body: bytes) -> bytes:
    asked = read_request_facts("json", JSON, body)
    assert asked is not None
    return with_usage(body, asked)


def gate(headers: dict[bytes, bytes] = JSON, overrule: bool = False) -> Gate:
    reader = reader_for("json", headers)
    assert reader is not None
    return Gate(reader, overrule)


ASKS = b'"include_usage":true'
OVERRULED = [
    (b'{"stream":true,"stream_options":{"include_usage":false}}', b'{"include_usage":true }'),
    (b'{"stream":true,"stream_options":{"include_usage":null},"x":1}', b'{"include_usage":true}'),
    (b'{"stream":true,"stream_options" : { "a" : 1 , "include\\u005fusage" : false } }',
     b'{ "a" : 1 , "include\\u005fusage" : true  }'),
    (b'{"stream":true,"stream_options":null}', b"{" + ASKS + b"}"),
    (b'{"stream":true,"stream_options":{}}', b"{" + ASKS + b"}"),
    (b'{"stream":true,"stream_options":{ },"x":[]}', b"{ " + ASKS + b"}"),
    (b'{"stream":true,"stream_options":{"a":{"include_usage":false}}}',
     b'{"a":{"include_usage":false},' + ASKS + b"}"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "options"), OVERRULED)
def test_a_client_s_no_counts_for_nothing_where_its_key_pays_by_what_it_uses(body: bytes, options: bytes) -> None:
    asked = read_request_facts("json", JSON, body)
    assert asked is not None
    before, colon, rest = body.partition(b'"stream_options"')
    space = rest[: len(rest) - len(rest.lstrip(b" :"))]
    changed = with_usage(body, asked, True)
    assert changed.startswith(before + colon + space + options), changed
    assert orjson.loads(changed)["stream_options"]["include_usage"] is True
    for pieces in splits(body):
        held = gate(overrule=True)
        passed = b"".join(map(held.feed, pieces))
        finished = held.finish()
        assert finished == asked
        assert (held.asks, held.injectable) == (True, False)
        assert passed + held.tail(True) == changed, pieces
        assert held.passed + held.grown == len(passed)
        assert held.grown == len(changed) - len(body) <= ADDED


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":0}}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":"x"}',
        b'{"stream":true,"stream_options":{"include_usage":false',
        b'{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}',
    ],
)
def test_what_asks_already_or_is_refused_stays_also_where_a_no_counts_for_nothing(body: bytes) -> None:
    asked = read_request_facts("json", JSON, body)
    assert asked is not None
    assert with_usage(body, asked, True) == body
    for pieces in splits(body):
        held = gate(overrule=True)
        assert b"".join(map(held.feed, pieces)) + held.tail(True) == body
        assert not held.asks


def test_a_no_that_comes_before_what_is_streamed_is_overruled_and_nothing_is_added_there() -> None:
    """A body without ``stream`` must not get options that only a stream may have."""
    for options, sent in ((b'{"include_usage":false}', b'{"include_usage":true }'), (b"{}", b"{}"), (b"null", b"null")):
        body = b'{"stream_options":%b,"x":"' + b"y" * 99 + b'","stream":true}'
        for pieces in splits(body % options):
            held = gate(overrule=True)
            assert b"".join(map(held.feed, pieces)) + held.tail() == body % sent


def test_nothing_of_stream_options_goes_before_it_is_known_what_they_say_and_64_kib_are_held_at_most() -> None:
    held = gate(overrule=True)
    before = b'{"stream":true,"stream_options":'
    assert held.feed(before) == before[: held.passed]
    sent = held.passed
    for byte in b'{"include_usage":fals':
        assert held.feed(bytes([byte])) == before[sent:]
        before = before[:sent]
    assert held.feed(b"e") == b""
    assert held.feed(b"},") == b'{"include_usage":true }'
    held = gate(overrule=True)
    came, passed = 0, b""
    for _ in range(200):
        passed += held.feed(b'{"stream_options":{"x":"' if not came else b"y" * 1000)
        came += 1000
        assert came - len(passed) < MAX_VALUE + 3000
    assert held.finish().fault is not None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{ "stream" : true }\r\n', b'{ "stream" : true ,"stream_options":{"include_usage":true}}\r\n'),
        (b'{"stream":true,"a":"}"}', b'{"stream":true,"a":"}","stream_options":{"include_usage":true}}'),
        (b'{"stream":true,"a":"\\u005f\\u4e2d"}',
         b'{"stream":true,"a":"\\u005f\\u4e2d","stream_options":{"include_usage":true}}'),
        (b'{"a":"stream_options","stream":true}',
         b'{"a":"stream_options","stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"a":{"stream_options":{}},"stream":true}',
         b'{"a":{"stream_options":{}},"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream_options":{},"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b'{"stream_options": { } ,"stream":true}', b'{"stream_options": { "include_usage":true} ,"stream":true}'),
        (b'{"stream_options":null,"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b'{"stream":true,"stream_options":{"x":{"y":"}"} }}',
         b'{"stream":true,"stream_options":{"x":{"y":"}"} ,"include_usage":true}}'),
        (b'{"stream":true,"stream\\u005foptions":{"x":1}}',
         b'{"stream":true,"stream\\u005foptions":{"x":1,"include_usage":true}}'),
    ],
)  # fmt: skip
def test_usage_is_asked_for_and_all_else_stays(body: bytes, expected: bytes) -> None:
    assert injected(body) == expected
    wanted = orjson.loads(body)
    wanted["stream_options"] = {**(wanted.get("stream_options") or {}), "include_usage": True}
    assert orjson.loads(expected) == wanted
    assert injected(expected) is expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":false}',
        b"{}",
        b'{"stream":"true"}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":false}}',
        b'{"stream":true,"stream_options":{"include_usage":null}}',
        b'{"stream":true,"stream_options":{"include\\u005fusage":0}}',
        b'{"stream":true,"stream_options":"x"}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":true,"stream_options":{"x":"' + b"y" * 70_000 + b'"}}',
        b'{"stream":true,"stream_options":{},"stream_options":{}}',
        b'{"stream":true,"stream":true}',
        b'{"stream":true',
        b'[{"stream":true}]',
        b'{"stream":true}}',
        b"",
    ],
)
def test_a_client_that_has_spoken_or_cannot_be_understood_is_left_alone(body: bytes) -> None:
    assert injected(body) is body


def test_a_form_is_left_alone() -> None:
    assert with_usage(FORM_BODY, RequestFacts(stream=True)) is FORM_BODY
    assert with_usage(b"", RequestFacts(stream=True)) == b""


@given(st.data())
def test_whatever_the_body_the_upstream_sees_but_this_one_change(data: st.DataObject) -> None:
    options = st.none() | VALUES | st.dictionaries(st.sampled_from(["include_usage", "x"]), VALUES, max_size=2)
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(["model", "x", "y"]), VALUES), max_size=3))
    pairs.insert(data.draw(st.integers(0, len(pairs))), ("stream", True))
    if data.draw(st.booleans()):
        pairs.insert(data.draw(st.integers(0, len(pairs))), ("stream_options", data.draw(options)))
    body = data.draw(written(st.just(pairs)))
    asked = read_request_facts("json", JSON, body)
    assert asked is not None
    result = with_usage(body, asked)
    before, after = json.loads(body), json.loads(result)
    said = before.get("stream_options")
    if asked.repeated or asked.fault or not (said is None or (isinstance(said, dict) and "include_usage" not in said)):
        assert result is body
    else:
        assert after == {**before, "stream_options": {**(said or {}), "include_usage": True}}
        assert list(after)[: len(before)] == list(before)


# The gate.


def through(pieces: list[bytes], inject: bool, headers: dict[bytes, bytes] = JSON) -> tuple[bytes, RequestFacts, bytes]:
    held = gate(headers)
    passed = b"".join(map(held.feed, pieces))
    asked = held.finish()
    assert held.passed == len(passed)
    return passed, asked, held.tail(inject)


@pytest.mark.parametrize(
    ("headers", "body", "end"),
    [
        (JSON, b'{"model":"m","stream":true}', b"}"),
        (JSON, b'{"model":"m","a":{}} \n', b"} \n"),
        (JSON, b"{}", b"}"),
        (JSON, b'{"model":"m"', b'"'),
        (JSON, b"no json at all", b"l"),
        (JSON, b'{"model":"m"}x', b"x"),
        (JSON, b"x", b"x"),
        (JSON, b"", b""),
        (FORM, FORM_BODY, b"\r\n--B--\r\n"),
        (FORM, FORM_BODY[:-2], b"\r\n--B--"),
        (FORM, FORM_BODY + b"x", b"x"),
        (FORM, b"--B--\r\n", b"--B--\r\n"),
        (FORM, b"no form", b"m"),
        ({b"content-type": b"text/plain"}, b"whatever", b"r"),
        ({**JSON, b"content-encoding": b"gzip"}, b"\x1f\x8b...", b"."),
    ],
)
def test_the_end_is_withheld_and_nothing_is_changed_at_every_split(
    headers: dict[bytes, bytes], body: bytes, end: bytes
) -> None:
    expected = read_request_facts("json", headers, body)
    for pieces in splits(body):
        passed, asked, tail = through(pieces, False, headers)
        assert passed + tail == body, pieces
        assert tail.endswith(end), pieces
        assert asked == expected
    assert through([body], False, headers)[2] == end


def test_at_no_moment_has_the_upstream_had_all_that_came() -> None:
    json_bodies, form_bodies = (b'{"a":[1,"x"]} \n ', b"nothing"), (FORM_BODY, FORM_BODY + b"x")
    for headers, body in [(JSON, body) for body in json_bodies] + [(FORM, body) for body in form_bodies]:
        held = gate(headers)
        for came, byte in enumerate(body, 1):
            held.feed(bytes([byte]))
            assert held.passed < came


def test_usage_can_be_asked_for_at_the_end() -> None:
    body = b'{"stream":true,"a":"' + b"x" * 300 + b'"} \r\n'
    for pieces in splits(body):
        passed, _, tail = through(pieces, True)
        assert passed + tail == injected(body) == body[:-4] + b"," + OPTIONS + b"} \r\n"
        assert len(passed + tail) == len(body) + ADDED


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, b'{"model":"m"}'),
        (JSON, b'{"stream":true,"stream_options":{}}'),
        (JSON, b'{"stream":true,"stream_options":{"include_usage":false}}'),
        (JSON, b'{"stream":true,"stream":true}'),
        (JSON, b'{"stream":true}x'),
        (JSON, b'{"stream":true'),
        (FORM, FORM_BODY),
        ({b"content-type": b"text/plain"}, b'{"stream":true}'),
    ],
)
def test_what_cannot_be_changed_any_more_is_left_alone(headers: dict[bytes, bytes], body: bytes) -> None:
    for pieces in splits(body):
        passed, _, tail = through(pieces, True, headers)
        assert passed + tail == body


def test_more_white_space_than_is_held_is_a_fault_and_not_held() -> None:
    held = gate()
    body = b'{"stream":true}' + b" " * 200_000
    passed = b""
    for at in range(0, len(body), 1000):
        passed += held.feed(body[at : at + 1000])
        assert at + 1000 - len(passed) < 70_000
        fault = held.so_far().fault
        assert (fault is None) == (at + 1000 - len(b'{"stream":true') <= MAX_VALUE)
        assert (passed == b'{"stream":true') == (fault is None)
    asked = held.finish()
    assert asked.stream
    assert asked.fault == "more than 65536 bytes of white space follow the object"
    assert asked == read_request_facts("json", JSON, body)
    assert not held.injectable
    assert passed + held.tail(True) == body
    assert held.tail() == b" "


_decode = json.JSONDecoder().raw_decode


def is_decoded(sent: bytes) -> bool:
    """Whether a decoder that waits for no more finds a value in what came."""
    try:
        _decode(sent.decode(errors="replace").lstrip())
    except ValueError:
        return False
    return True


_AROUND = [
    b"", b"", b" ", b"\n", b"}", b"{}", b'{"model":"x"}', b",", b"]", b"[", b'"', b"0", b"null", b"\xef\xbb\xbf", b"//",
]  # fmt: skip


def refused(asked: RequestFacts | None) -> bool:
    """Whether limits let nothing through that was read so: of a name that came twice, the later value may be good."""
    assert asked is not None
    return asked.fault is not None or bool(asked.repeated)


@given(st.data())
def test_no_eager_decoder_finds_a_value_in_what_passes_before_the_end_or_a_fault(data: st.DataObject) -> None:
    around = st.sampled_from(_AROUND)
    body = data.draw(around) + data.draw(written() | st.binary(max_size=20)) + data.draw(around) + data.draw(around)
    held, passed = gate(), b""
    for piece in data.draw(pieces_of(body)):
        going = held.feed(piece)
        if held.so_far().fault is not None:
            assert refused(read_request_facts("json", JSON, body))
            return
        passed += going
        assert not is_decoded(passed)


@given(st.data())
def test_what_is_wrong_with_a_beginning_is_wrong_with_all_of_it(data: st.DataObject) -> None:
    body = data.draw(written())
    reader = reader_for("json", JSON)
    assert reader is not None
    whole = read_request_facts("json", JSON, body)
    assert whole is not None
    for piece in data.draw(pieces_of(body)):
        reader.feed(piece)
        by_now = reader.so_far()
        assert refused(whole) or not refused(by_now)
        assert by_now.repeated <= whole.repeated
        assert by_now.model in (None, whole.model) or whole.repeated_model
        assert by_now.stored_prompt <= whole.stored_prompt or "prompt" in whole.repeated
        assert by_now.inner.models <= whole.inner.models
        assert by_now.inner.references <= whole.inner.references
    assert reader.so_far() == reader.finish() == whole


def test_a_fault_in_a_value_that_a_later_one_replaces_is_still_refused() -> None:
    reader = reader_for("json", JSON)
    assert reader is not None
    reader.feed(b'{"n":[]')
    assert reader.so_far().fault == "n is no number from 0 to 9007199254740992, nor null"
    reader.feed(b',"n":null}')
    assert (reader.finish().fault, reader.finish().repeated) == (None, {"n"})


@given(st.data())
def test_any_body_in_any_pieces_comes_out_as_it_was(data: st.DataObject) -> None:
    body = data.draw(written() | st.binary(max_size=40))
    pieces: list[Any] = data.draw(pieces_of(body))
    passed, asked, tail = through(pieces, False)
    assert passed + tail == body
    assert asked == read_request_facts("json", JSON, body)
    assert tail or not body
