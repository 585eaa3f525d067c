from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.inner import Inner
from flowstack.usage.request_facts import BodyKind, RequestFacts, model_of, read_request_facts, reader_for
from tests.usage.bodies import VALUES, pieces_of, splits, written

JSON = {b"content-type": b"application/json"}
FORM = {b"content-type": b"multipart/form-data; boundary=B"}


def form(**fields: str) -> bytes:
    parts = [f'--B\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    return "".join([*parts, "--B--\r\n"]).encode()


def asked_in(pieces: list[bytes], headers: dict[bytes, bytes], kind: BodyKind = "json") -> RequestFacts:
    reader = reader_for(kind, headers)
    assert reader is not None
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def test_a_body_that_says_nothing_asks_for_nothing() -> None:
    assert read_request_facts("json", JSON, b"{}") == RequestFacts()


NO_NUMBER = "max_tokens is no number from 0 to 9007199254740992, nor null"

TABLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model": "gpt-4o"}, {"model": "gpt-4o"}),
    ({"model": 4}, {}),
    ({"model": None}, {}),
    ({"model": ["gpt-4o"]}, {"inner": Inner(models={"gpt-4o"})}),
    ({"stream": True}, {"stream": True}),
    ({"stream": False}, {}),
    ({"stream": None}, {}),
    ({"stream": "true"}, {"vague": "stream is a text, where true or false is expected"}),
    ({"stream": 1}, {"vague": "stream is a number, where true or false is expected"}),
    ({"stream": 1.0}, {"vague": "stream is a number, where true or false is expected"}),
    ({"stream": []}, {"vague": "stream is a list, where true or false is expected"}),
    ({"stream": {}}, {"vague": "stream is an object, where true or false is expected"}),
    ({"stream": True, "stream_options": []},
     {"stream": True, "vague": "stream_options is a list, where an object is expected"}),
    ({"stream": True, "stream_options": False},
     {"stream": True, "vague": "stream_options is true or false, where an object is expected"}),
    ({"stream": True, "stream_options": "none"},
     {"stream": True, "vague": "stream_options is a text, where an object is expected"}),
    ({"stream": True, "stream_options": {"include_usage": 0}},
     {"stream": True, "vague": "include_usage is a number, where true or false is expected"}),
    ({"stream": True, "stream_options": {"include_usage": "false"}},
     {"stream": True, "vague": "include_usage is a text, where true or false is expected"}),
    ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True, "include_usage": True}),
    ({"stream": True, "stream_options": {"include_usage": False}}, {"stream": True, "include_usage": False}),
    ({"stream": True, "stream_options": {"include_usage": None}}, {"stream": True}),
    ({"stream": True, "stream_options": {"Include_Usage": True}},
     {"stream": True, "repeated": frozenset(("stream_options",))}),
    ({"stream": True, "stream_options": {}}, {"stream": True}),
    ({"stream": True, "stream_options": None}, {"stream": True}),
    ({"max_tokens": 5}, {"limits": {"max_tokens": 5}}),
    ({"max_tokens": 0}, {"limits": {"max_tokens": 0}}),
    ({"max_completion_tokens": 7}, {"limits": {"max_completion_tokens": 7}}),
    ({"max_output_tokens": 9}, {"limits": {"max_output_tokens": 9}}),
    ({"max_tokens": 5, "max_completion_tokens": 7, "max_output_tokens": 6},
     {"limits": {"max_tokens": 5, "max_completion_tokens": 7, "max_output_tokens": 6}}),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}, "reasoning": {"max_tokens": 12}}, {"thinking": 12}),
    ({"thinking": {"type": "disabled"}, "reasoning": {"effort": "high"}}, {}),
    ({"thinking": {"budget_tokens": "many"}},
     {"fault": "budget_tokens is no number from 0 to 9007199254740992, nor null"}),
    ({"prediction": {"type": "content", "content": "x"}}, {"predicted": True}),
    ({"prediction": {"type": "content", "content": "x" * 70_000}}, {"predicted": True}),
    ({"prediction": None}, {}),
    ({"max_tokens": 5, "n": 3}, {"limits": {"max_tokens": 5}, "n": 3}),
    ({"max_tokens": 5, "n": 2, "best_of": 4}, {"limits": {"max_tokens": 5}, "n": 4}),
    ({"max_tokens": 5, "n": 0}, {"limits": {"max_tokens": 5}, "n": 0}),
    ({"max_tokens": 5, "n": None}, {"limits": {"max_tokens": 5}}),
    ({"n": 3}, {"n": 3}),
    ({"max_tokens": -5}, {"boundless": True}),
    ({"max_tokens": -1, "n": 2}, {"n": 2, "boundless": True}),
    ({"max_output_tokens": "inf"}, {"boundless": True}),
    ({"max_response_output_tokens": 8}, {"limits": {"max_response_output_tokens": 8}}),
    ({"max_tokens": ""}, {}),
    ({"max_tokens": None}, {}),
    ({"max_tokens": True}, {"fault": NO_NUMBER}),
    ({"max_tokens": 4.5}, {"limits": {"max_tokens": 5}}),
    ({"max_tokens": "12", "n": "2"}, {"limits": {"max_tokens": 12}, "n": 2}),
    ({"max_tokens": "many"}, {"fault": NO_NUMBER}),
    ({"max_tokens": "9" * 30}, {"fault": NO_NUMBER}),
    ({"max_tokens": "1e9"}, {"fault": NO_NUMBER}),
    ({"max_tokens": [5]}, {"fault": NO_NUMBER}),
    ({"max_tokens": {"value": 5}}, {"fault": NO_NUMBER}),
    ({"max_tokens": 2**53}, {"limits": {"max_tokens": 2**53}}),
    ({"max_tokens": 2**53 + 1}, {"fault": NO_NUMBER}),
    ({"max_tokens": 10**30}, {"fault": NO_NUMBER}),
    ({"max_tokens": 2.0**53 + 2}, {"fault": NO_NUMBER}),
    ({"max_tokens": 1e308}, {"fault": NO_NUMBER}),
    ({"max_tokens": 1e308, "n": 1e308}, {"fault": "n is no number from 0 to 9007199254740992, nor null"}),
    ({"max_tokens": -1e308, "n": 4}, {"n": 4, "boundless": True}),
    ({"max_tokens": 2**53, "n": 2**53}, {"limits": {"max_tokens": 2**53}, "n": 2**53}),
    ({"max_tokens": 5, "max_completion_tokens": -1},
     {"limits": {"max_tokens": 5}, "boundless": True,
      "fault": "it declares a maximum of tokens, and that there is none"}),
    ({"n": -1}, {"fault": "n or best_of is -1, which is no number of choices"}),
    ({"n": False}, {"fault": "n is no number from 0 to 9007199254740992, nor null"}),
    ({"service_tier": "flex"}, {"service_tier": "flex"}),
    ({"service_tier": None}, {}),
    ({"prompt": "a text"}, {}),
    ({"prompt": ["a", "b"]}, {"prompts": 2}),
    ({"prompt": []}, {}),
    ({"prompt": [1, 2, 3]}, {}),
    ({"prompt": [[1, 2, 3], [4]]}, {"prompts": 2}),
    ({"prompt": ["a", [1, 2], 3]}, {"prompts": 2}),
    ({"prompt": ["y" * 70_000, "b", "c"]}, {"prompts": 3}),
    ({"prompt": ["a", "b"] * 20_000}, {"prompts": 40_000}),
    ({"prompt": [[1, 2], [3]] * 20_000, "user": ["a", ["b"]]}, {"prompts": 40_000}),
    ({"prompt": [1, 2, 3] * 20_000}, {}),
    ({"prompt": "y" * 70_000, "stop": ["a", "b"]}, {}),
    ({"prompt": {"id": "pmpt_1"}}, {"stored_prompt": True, "inner": Inner(references={"prompt.id"}, context=True)}),
    ({"prompt": {"id": "pmpt_1", "variables": {"x": "y" * 70_000}}},
     {"stored_prompt": True, "inner": Inner(references={"prompt.id"}, context=True)}),
    ({"prompt": "y" * 70_000}, {}),
    ({"previous_response_id": "resp_1"}, {"inner": Inner(references={"previous_response_id"}, context=True)}),
    ({"conversation": {"id": "conv_1"}}, {"inner": Inner(references={"conversation.id"}, context=True)}),
    ({"conversation": None, "previous_response_id": None}, {}),
    ({"model": "m" * 70_000}, {"fault": "the value of model is longer than 65536 bytes"}),
    ({"metadata": {"model": "no", "n": 9}, "messages": [{"n": 7}], "model": "yes"}, {"model": "yes"}),
    ({"messages": [{"model": "too"}], "model": "yes"}, {"model": "yes", "inner": Inner(models={"too"})}),
]  # fmt: skip


@pytest.mark.parametrize(("members", "expected"), TABLE)
def test_what_a_json_body_asks_for(members: dict[str, Any], expected: dict[str, Any]) -> None:
    body = json.dumps(members).encode()
    asked = RequestFacts(**expected)
    assert read_request_facts("json", JSON, body) == asked
    for pieces in splits(body) if len(body) < 200 else ([body], [body[:99], body[99:]]):
        assert asked_in(pieces, JSON) == asked


def test_a_repeated_member_is_told() -> None:
    body = b'{"model":"a","n":1,"mod\\u0065l":"b","n":2}'
    for asked in (read_request_facts("json", JSON, body), *(asked_in(pieces, JSON) for pieces in splits(body))):
        assert asked is not None
        assert (asked.repeated, asked.repeated_model, asked.model) == ({"model", "n"}, True, "b")
    asked = read_request_facts("json", JSON, b'{"model":"a","n":1,"n":2}')
    assert asked is not None
    assert (asked.repeated, asked.repeated_model) == ({"n"}, False)


@pytest.mark.parametrize(
    "options",
    [
        b'{"include_usage":true,"include_usage":false}',
        b'{"include_usage":false,"include_\\u0075sage":true}',
        b'{"x":{"y":1,"y":2}}',
        b'{"include_usage":true,"include_u\xc5\xbfage":false}',
    ],
)
def test_stream_options_that_say_something_twice_are_told(options: bytes) -> None:
    body = b'{"model":"a","stream":true,"stream_options":%b}' % options
    for asked in (read_request_facts("json", JSON, body), *(asked_in(pieces, JSON) for pieces in splits(body))):
        assert asked is not None
        assert (asked.repeated, asked.fault) == ({"stream_options"}, None)


def test_what_a_form_asks_for() -> None:
    body = form(file="x" * 100, model="whisper-1", stream="True", n="2", max_tokens="7", prompt="{text}")
    expected = RequestFacts(
        model="whisper-1", stream=True, n=2, limits={"max_tokens": 7}, parts=6,
        vague="it is a form, where application/json is expected",
    )  # fmt: skip
    for asked in (read_request_facts("multipart", FORM, body), *(asked_in(pieces, FORM) for pieces in splits(body))):
        assert asked == expected
    for name, value in {"n": "1_0", "max_tokens": " 7", "stream": "yes", "model[]": "b", "Model": "b"}.items():
        doubtful = read_request_facts("multipart", FORM, form(model="a", **{name: value}))
        assert doubtful is not None
        assert doubtful.fault is not None
    repeated = read_request_facts("multipart", FORM, form(model="a")[:-7] + form(model="b"))
    assert repeated is not None
    assert (repeated.repeated_model, repeated.fault) == (True, None)
    large = read_request_facts("multipart", FORM, form(model="a" * 70_000))
    assert large is not None
    assert large.fault == "the value of model is longer than 65536 bytes"


def test_an_operation_without_a_body_that_matters_is_not_read() -> None:
    assert reader_for(None, JSON) is None
    assert read_request_facts(None, JSON, b"{}") is None


@pytest.mark.parametrize("kind", ["json", "multipart"])
@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON",
        b" application/json ; charset=UTF-8",
        b'application/json;charset="utf8"',
    ],
)
def test_json_is_read_where_the_content_type_says_so(kind: BodyKind, content_type: bytes) -> None:
    headers = {b"content-type": content_type}
    assert read_request_facts(kind, headers, b'{"model":"m"}') == RequestFacts("m")
    assert asked_in([b'{"model":', b'"m"}'], headers, kind) == RequestFacts("m")


def test_a_form_is_read_where_the_content_type_says_so() -> None:
    for kind in ("json", "multipart"):
        body = form(model="m")
        asked = read_request_facts(kind, FORM, body)
        assert asked is not None
        assert (asked.model, asked.fault, asked.parts) == ("m", None, 1)


def test_without_a_content_type_the_operation_decides() -> None:
    assert read_request_facts("json", {}, b'{"model":"m"}') == RequestFacts("m")
    opaque = read_request_facts("multipart", {}, b'{"model":"m"}')
    assert opaque == RequestFacts(fault="its Content-Type is not multipart/form-data with one plain boundary")


@pytest.mark.parametrize(
    "headers",
    [
        {b"content-type": b"application/json; charset=utf-7"},
        {b"content-type": b"application/json; charset=utf-16"},
        {b"content-type": b"application/json; charset=utf-8; charset=utf-7"},
        {b"content-type": b"application/x-www-form-urlencoded"},
        {b"content-type": b"application/x-www-form-urlencoded+json"},
        {b"content-type": b"application/json, application/x-www-form-urlencoded"},
        {b"content-type": b"application/json; boundary=B"},
        {b"content-type": b"application/vnd.api+json"},
        {b"content-type": b"text/json"},
        {b"content-type": b"multipart/form-data; boundary=B "},
        {b"content-type": b"text/plain"},
        {b"content-type": b""},
        {b"content-type": b"multipart/form-data"},
        {b"content-type": b"multipart/mixed; boundary=B"},
        {**JSON, b"content-encoding": b"gzip"},
        {**JSON, b"content-encoding": b"identity, gzip"},
        {**FORM, b"content-encoding": b"br"},
    ],
)
def test_what_an_upstream_may_read_otherwise_is_a_fault(headers: dict[bytes, bytes]) -> None:
    body = b'{"model":"m"}'
    asked = read_request_facts("json", headers, body)
    assert asked is not None
    assert asked.fault is not None
    assert asked.model is None
    assert asked_in([body[:5], body[5:]], headers) == asked


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        (JSON, [b'{"model":"m"', b"x", b"}"]),
        (JSON, [b'{"model":"m"}', b" x", b" "]),
        (FORM, [b"--B\r\n", b"what: ever\r\n\r\n", b"--B--\r\n"]),
        ({b"content-type": b"text/plain"}, [b"", b"a", b"b"]),
    ],
)
def test_a_fault_is_told_as_soon_as_it_has_come(headers: dict[bytes, bytes], pieces: list[bytes]) -> None:
    reader = reader_for("json", headers)
    assert reader is not None
    reader.feed(pieces[0])
    assert (reader.fault is None) == (headers in (JSON, FORM))
    reader.feed(pieces[1])
    fault = reader.fault
    assert fault is not None
    reader.feed(pieces[2])
    assert reader.finish().fault == reader.fault == fault


@pytest.mark.parametrize("coding", [b"identity", b"Identity", b" ", b""])
def test_no_content_coding_may_be_spelled_out(coding: bytes) -> None:
    assert read_request_facts("json", {**JSON, b"content-encoding": coding}, b'{"model":"m"}') == RequestFacts("m")


_PAIRS = st.lists(
    st.tuples(
        st.sampled_from([
            "model", "stream", "stream_options", "max_tokens", "max_output_tokens", "n", "best_of", "service_tier",
            "prompt", "conversation", "x", "models", "tools", "file_id", "container", "metadata", "messages", "input",
        ]),
        VALUES | st.booleans() | st.integers(0, 9) | st.just({"include_usage": True}),
    ),
    max_size=6,
)  # fmt: skip


@given(st.data())
def test_a_body_reads_alike_whole_and_in_pieces(data: st.DataObject) -> None:
    body = data.draw(written(_PAIRS))
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body)))]
    whole = read_request_facts("json", JSON, body)
    assert whole is not None
    assert asdict(asked_in(data.draw(pieces_of(body)), JSON)) == asdict(whole)


@given(st.data())
def test_the_model_alone_is_read_as_the_rest_would_have_it(data: st.DataObject) -> None:
    body = data.draw(written() | VALUES.map(lambda value: json.dumps(value).encode()))
    cut = data.draw(st.just(len(body)) | st.integers(0, len(body)))
    body = body[:cut] + data.draw(st.sampled_from([b"", b"", b"x", b"}", b"\xff"])) + body[cut:]
    asked = read_request_facts("json", JSON, body)
    assert asked is not None
    assert model_of("json", JSON, body) == asked.model


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"a","messages":[{"model":"b"}]}', "a"),
        (b'{"messages":[{"model":"b"}],"model":"a"}', "a"),
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"m\\u006fdel":"a"}', "a"),
        (b'{"Model":"a"}', None),
        (b'{"model":5}', None),
        (b'{"messages":[]}', None),
        (b'["model"]', None),
        (b'{"model":"a","messages":[', "a"),
        (b'{"x":"' + b"y" * 70_000 + b'","model":"a"}', "a"),
        (b"", None),
    ],
)
def test_the_model_alone_of_a_body(body: bytes, model: str | None) -> None:
    assert model_of("json", JSON, body) == model


def test_the_model_alone_is_read_of_what_the_content_type_says() -> None:
    assert model_of("multipart", FORM, form(model="whisper-1")) == "whisper-1"
    assert model_of("json", FORM, form(model="whisper-1")) == "whisper-1"
    assert model_of("json", {b"content-type": b"text/plain"}, b'{"model":"a"}') is None
    assert model_of("json", JSON | {b"content-encoding": b"gzip"}, b'{"model":"a"}') is None
    assert model_of("json", {}, b'{"model":"a"}') == "a"
    assert model_of(None, JSON, b'{"model":"a"}') is None
