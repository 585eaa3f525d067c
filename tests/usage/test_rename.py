"""Another model in a body: one value changes, and no other byte; or nothing does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.rename import with_model

JSON = {b"content-type": b"application/json"}
FORM = {b"content-type": b"multipart/form-data; boundary=B"}


def renamed(body: bytes, model: str = "other", headers: dict[bytes, bytes] = JSON) -> bytes | None:
    return with_model("multipart" if headers is FORM else "json", headers, body, model)


CHANGED = {
    "plain": (b'{"model":"m","n":1}', b'{"model":"other","n":1}'),
    "with space": (b' {\n"n" : 1 ,\t"model" :  "m"  } ', b' {\n"n" : 1 ,\t"model" :  "other"  } '),
    "an escaped name": (b'{"mod\\u0065l":"m"}', b'{"mod\\u0065l":"other"}'),
    "an escaped value": (b'{"model":"a\\u002db\\/c"}', b'{"model":"other"}'),
    "nested ones": (
        b'{"x":{"model":"m"},"y":[{"model":"m"}],"model":"m","z":"\\"model\\":\\"m\\""}',
        b'{"x":{"model":"m"},"y":[{"model":"m"}],"model":"other","z":"\\"model\\":\\"m\\""}',
    ),
    "numbers as they were": (b'{"a":1e5,"b":1.0,"c":-0,"model":"m"}', b'{"a":1e5,"b":1.0,"c":-0,"model":"other"}'),
}


@pytest.mark.parametrize("name", CHANGED)
def test_the_one_value_changes(name: str) -> None:
    body, expected = CHANGED[name]
    assert renamed(body) == expected


LEFT = {
    "named twice": b'{"model":"m","model":"m"}',
    "named twice, one escaped": b'{"model":"m","mod\\u0065l":"m"}',
    "named in two cases": b'{"model":"m","Model":"m"}',
    "no model": b'{"n":1}',
    "no text": b'{"model":1}',
    "no object": b'["model","m"]',
    "no JSON": b'{"model":"m"',
    "two objects": b'{"model":"m"}{"model":"m"}',
    "another encoding": '{"model":"m"}'.encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_can_be_read_in_two_ways_is_left_alone(name: str) -> None:
    assert renamed(LEFT[name]) is None


def test_a_coded_body_is_left_alone() -> None:
    assert renamed(b'{"model":"m"}', headers=JSON | {b"content-encoding": b"gzip"}) is None


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'--B\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name, more, value)


def test_a_form_s_field_changes_and_its_file_does_not() -> None:
    file = part(b"file", b"\x00model\r\nm" * 1000, b'; filename="model"')
    for fields in ((part(b"model", b"%b"), file), (file.replace(b"%", b"%%"), part(b"model", b"%b"))):
        body = b"".join(fields) + b"--B--\r\n"
        assert renamed(body % b"m", headers=FORM) == body % b"other"
    assert renamed(part(b"model", b"m") * 2 + b"--B--\r\n", headers=FORM) is None
    assert renamed(part(b"model", b"m", b"\r\nContent-Length: 1") + b"--B--\r\n", headers=FORM) is None
    assert renamed(file + b"--B--\r\n", headers=FORM) is None


def test_a_body_of_five_megabytes_changes_in_one_place() -> None:
    text = "a\\u00e9" * 600_000
    body = b'{"messages":[{"content":"%b"}],"model":"m"}' % text.encode()
    changed = renamed(body)
    assert changed is not None and len(changed) > 4_000_000
    assert changed == body[:-4] + b'"other"}'


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["model", "a"]), inner, max_size=2),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text(max_size=8).filter(lambda name: name.lower() != "model"), VALUES, max_size=5),
    st.text(st.characters(codec="ascii", exclude_characters="\x7f", min_codepoint=33), min_size=1, max_size=20),
    st.sampled_from(["other", "gpt-4o:ft/x", "a.b"]),
    st.integers(0, 5),
    st.booleans(),
)
def test_all_else_is_as_every_parser_reads_it(
    members: dict[str, Any], model: str, other: str, place: int, plain: bool
) -> None:
    items = list(members.items())
    items.insert(min(place, len(items)), ("model", model))
    body = json.dumps(dict(items), ensure_ascii=plain).encode()
    changed = renamed(body, other)
    if changed is not None:
        assert json.loads(changed) == members | {"model": other}
        assert len(changed) - len(body) == len(json.dumps(other)) - len(json.dumps(model, ensure_ascii=plain))
