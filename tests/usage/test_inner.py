from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.inner import MAX_MODELS, MAX_NAME, ORIGINAL, STORED_TOKENS, Inner
from flowstack.usage.request_facts import JsonReader, RequestFacts, read_request_facts
from tests.usage.bodies import pieces_of, splits, written

JSON = {b"content-type": b"application/json"}


def whole(body: bytes) -> RequestFacts:
    asked = read_request_facts("json", JSON, body)
    assert asked is not None
    return asked


def in_pieces(pieces: list[bytes]) -> RequestFacts:
    reader = JsonReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


def everywhere(body: bytes) -> RequestFacts:
    """As it is read in any way: whole, at once, and in pieces."""
    asked = whole(body)
    for pieces in splits(body) if len(body) < 300 else ([body], [body[:70], body[70:]], [body[:-70], body[-70:]]):
        assert in_pieces(pieces) == asked, pieces
    return asked


def body_of(**members: Any) -> bytes:
    return json.dumps({"model": "m", **members}).encode()


MODELS: list[tuple[dict[str, Any], set[str]]] = [
    ({"tools": [{"type": "image_generation", "model": "gpt-image-1"}]}, {"gpt-image-1"}),
    ({"tools": [{"type": "image_generation", "Model": "gpt-image-1"}]}, {"gpt-image-1"}),
    ({"models": ["a", "b"]}, {"a", "b"}),
    ({"MODELS": ["a"]}, {"a"}),
    ({"models": []}, set()),
    ({"models": None}, set()),
    ({"fallbacks": ["a", {"model": "b"}, {"c": ["d"]}]}, {"a", "b", "d"}),
    ({"fallbacks": {"c": ["d"]}}, {"d"}),
    ({"context_window_fallbacks": [{"c": ["d"]}]}, {"d"}),
    ({"route": "fallback"}, {"fallback"}),
    ({"provider": {"allow_fallbacks": True, "order": ["openai"]}}, set()),
    ({"plugins": [{"id": "web", "model": "a"}]}, {"a"}),
    ({"session": {"model": "a", "input_audio_transcription": {"model": "b"}}}, {"a", "b"}),
    ({"audio": {"input": {"transcription": {"model": "a"}}}}, {"a"}),
    ({"extra_body": {"model": "a"}}, {"a"}),
    ({"extra": [[[{"x": {"model_name": "a", "base_model": "b"}}]]]}, {"a", "b"}),
    ({"testing_criteria": [{"type": "score_model", "model": "a"}]}, {"a"}),
    ({"deployment_id": "a", "engine": "b"}, {"a", "b"}),
    ({"x": {"model": {"id": "a", "type": "t"}}}, {"a", "t"}),
    ({"x": {"model": 5}}, {"5"}),
    ({"x": {"model": True}, "y": {"model": None}}, set()),
    ({"x": {"fallback\u017f": ["a"], "\u017ftrict": 1}}, {"a"}),
    ({"model": {"name": "a"}}, {"a"}),
    ({"messages": [{"role": "user", "content": "model", "name": "models"}]}, set()),
    # The client's own.
    ({"metadata": {"model": "a"}}, set()),
    ({"x": {"metadata": {"model": "a"}}}, {"a"}),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"model": "a"}}}]}, set()),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"properties": {"model": {"enum": ["a"]}}}}]}, set()),
    ({"parameters": {"model": "a"}}, {"a"}),
    ({"tools": [{"type": "namespace", "tools": [{"type": "function", "parameters": {"model": "a"}}]}]}, set()),
    ({"functions": [{"name": "f", "parameters": {"model": "a"}}]}, set()),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"model": "a"}, "model": "b"}}}, {"b"}),
    ({"text": {"format": {"type": "json_schema", "schema": {"model": "a"}}}}, set()),
    ({"messages": [{"content": [{"type": "tool_use", "id": "t", "input": {"model": "a"}}]}]}, set()),
    ({"input": [{"type": "function_call", "arguments": '{"model":"a"}'}]}, set()),
    ({"logit_bias": {"model": 5}}, set()),
    ({"structured_outputs": {"json": {"properties": {"model": {"type": "string"}}}}}, set()),
    ({"structured_outputs": {"model": "a"}, "x": {"json": {"model": "b"}}}, {"a", "b"}),
]


@pytest.mark.parametrize(("members", "models"), MODELS)
def test_a_model_is_found_wherever_the_body_names_it(members: dict[str, Any], models: set[str]) -> None:
    assert everywhere(body_of(**members)).inner.models == models
    escaped = body_of(**members).replace(b"odel", b"od\\u0065l").replace(b"allb", b"\\u0061llb")
    assert everywhere(escaped).inner.models == models


def test_a_name_that_comes_twice_below_the_top_is_heard_twice() -> None:
    asked = everywhere(b'{"model":"m","tools":[{"model":"a","model":"b","Model":"c","mod\\u0065l":"d"}]}')
    assert asked.inner.models == {"a", "b", "c", "d"}
    assert everywhere(b'{"model":"m","x":[{"file_id":"f","file_id":null}]}').inner.references == {"file_id"}
    for twice in (b'"type":"a","type":"item_reference"', b'"type":"item_reference","Type":"a"', b'"id":"y","type":"a"'):
        asked = everywhere(b'{"model":"m","input":[{"id":"x",%b}]}' % twice)
        assert asked.fault in ("an object in it says type more than once", "an object in it says id more than once")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","tools":[{"model":"a"}],"tools":[]}',
        b'{"model":"m","tools":[{"model":"a"}],"t\\u006fols":[]}',
        b'{"model":"m","messages":[{"content":[{"model":"a"}],"content":"say \\"model\\" \\\\"}]}',
        b'{"model":"m","messages":[{"content":[{"x":{"model":"a"}}] , "content" :"hi"}], "x":1e15}',
        b'{"model":"m","metadata":{},"extra":{"a":[{"model":"a"}],"a":"\\""},"b":"\\\\"}',
        b'{"model":"m","tools":[{"function":{"model":"a"},"function":{"parameters":{}}}]}',
        b'{"model":"m","x":[[{"":{"model":"a"},"":0}]]}',
        b'{"model":"m","x":[' + b'{"role":"user"},' * 200 + b'{"role":{"model":"a"},"role":1},' + b"1," * 900 + b"1]}",
    ],
)
def test_what_comes_twice_hides_nothing_that_stands_in_the_first(body: bytes) -> None:
    assert everywhere(body).inner.models == {"a"}


def test_no_more_models_are_heard_than_can_be_held_against_a_key() -> None:
    assert everywhere(body_of(models=[f"m{i}" for i in range(MAX_MODELS)])).fault is None
    many = everywhere(body_of(models=[f"m{i}" for i in range(MAX_MODELS + 1)]))
    assert many.fault == "it names more than 64 models"
    assert everywhere(body_of(models=["m" * MAX_NAME])).fault is None
    assert everywhere(body_of(models=["m" * (MAX_NAME + 1)])).fault == "a model's name in it is longer than 256 bytes"


REFERENCES: list[tuple[dict[str, Any], set[str], bool]] = [
    ({"previous_response_id": "resp_1"}, {"previous_response_id"}, True),
    ({"Previous_Response_ID": "resp_1"}, {"previous_response_id"}, True),
    ({"previous_response_id": None}, set(), False),
    ({"conversation": "conv_1"}, {"conversation"}, True),
    ({"conversation": {"id": "conv_1"}}, {"conversation.id"}, True),
    ({"conversation": {"id": "conv_1", "type": "x"}}, {"conversation.id"}, True),
    ({"prompt": {"id": "pmpt_1", "type": "x"}}, {"prompt.id"}, True),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, {"item_reference"}, True),
    ({"input": [{"Type": " Item_Reference", "ID": "msg_1"}]}, {"item_reference"}, True),
    ({"input": [{"id": "msg_1"}]}, {"input.id"}, True),
    ({"input": [{"id": "msg_1", "type": None}]}, {"input.id"}, True),
    ({"input": [{"id": "msg_1", "type": 5}]}, set(), False),
    ({"messages": [{"id": "run-1", "role": "assistant", "content": "Hi"}]}, set(), False),
    ({"messages": [{"id": "msg_1", "type": "item_reference"}]}, {"item_reference"}, True),
    ({"messages": [{"content": [{"id": "msg_1"}]}]}, {"content.id"}, True),
    ({"messages": [{"content": [{"type": "tool_use", "id": "t", "caller": {"type": "x", "tool_id": "s"}}]}]},
     set(), False),
    ({"request_id": "mine"}, set(), False),
    ({"input": [{"id": "msg_1", "type": "message", "role": "assistant", "content": []}]}, set(), False),
    ({"input": [{"id": "rs_1", "type": "reasoning", "summary": []}]}, {"reasoning"}, False),
    ({"input": [{"id": "rs_1", "type": "reasoning", "encrypted_content": "x"}]}, set(), False),
    ({"input": [{"id": "ig_1", "type": "image_generation_call"}]}, {"image_generation_call"}, False),
    ({"input": [{"id": "ig_1", "type": "image_generation_call", "result": "iVBO"}]}, set(), False),
    ({"input": [{"content": [{"type": "input_image", "file_id": "file-1"}]}]}, {"file_id"}, True),
    ({"input": [{"content": [{"type": "input_file", "file_url": "https://a.test/b.pdf"}]}]}, {"file_url"}, True),
    ({"input": [{"type": "computer_call_output", "output": {"file_id": "file-1"}}]}, {"file_id"}, True),
    ({"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]}, set(), False),
    ({"messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}, {"file_id"}, True),
    ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, {"audio.id"}, False),
    ({"messages": [{"tool_calls": [{"id": "call_1", "type": "function"}]}]}, set(), False),
    ({"messages": [{"tool_calls": [{"id": "call_1"}]}, {"role": "tool", "tool_call_id": "call_1"}]}, set(), False),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, {"vector_store_ids"}, True),
    ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, set(), True),
    ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, {"container"}, True),
    ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, set(), True),
    ({"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f"]}}]}, {"file_ids"}, True),
    ({"tools": [{"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}}]},
     {"container_id"}, True),
    ({"tools": [{"type": "mcp", "connector_id": "connector_gmail"}]}, {"connector_id"}, True),
    ({"tools": [{"type": "mcp", "headers": {"x-model_id": "a", "file_id": "b"}}]}, set(), True),
    ({"container": {"id": "c", "skills": [{"type": "custom", "skill_id": "s"}]}}, {"container.id", "skill_id"}, True),
    ({"input": [{"type": "computer_call", "id": "cu_1", "call_id": "c", "pending_safety_checks": [{"id": "s"}]}]},
     set(), False),
    ({"input": [{"type": "function_call", "caller": {"type": "program", "caller_id": "p"}}]}, set(), False),
    ({"voice": {"id": "voice_1"}}, {"voice.id"}, False),
    ({"images": [{"file_id": "file-1"}], "mask": {"file_id": "file-2"}}, {"file_id"}, True),
    ({"x": {"some_new_id": "y"}}, {"some_new_id"}, False),
    ({"x": {"some_new_ids": [{"a": "y"}]}}, {"some_new_ids"}, False),
    ({"fallbacks": [{"model": "m", "messages": [{"content": [{"file_id": "f"}]}]}]}, {"file_id"}, True),
    ({"metadata": {"file_id": "f", "id": "x"}}, set(), False),
    ({"messages": [{"content": [{"type": "output_text", "annotations": [{"type": "file_citation", "file_id": "f"}]}]}]},
     set(), False),
    ({"tools": [{"type": "function", "parameters": {"properties": {"file_id": {"type": "string"}}}}]}, set(), False),
]  # fmt: skip


@pytest.mark.parametrize(("members", "names", "context"), REFERENCES)
def test_a_reference_to_what_is_stored_is_found_wherever_it_stands(
    members: dict[str, Any], names: set[str], context: bool
) -> None:
    for body in (body_of(**members), body_of(**members).replace(b"id", b"\\u0069\\u0064")):
        inner = everywhere(body).inner
        assert (inner.references, inner.context) == (names, context)


HOSTED: list[tuple[dict[str, Any], bool]] = [
    ({"tools": [{"type": kind}]}, True)
    for kind in (
        "web_search", "web_search_preview", "web_search_preview_2025_03_11", "file_search", "code_interpreter", "mcp",
        "image_generation", "shell", "web_search_20250305", "web_fetch_20250910", "code_execution_20250825",
        "openrouter:web_search", "x_search", "what_comes_next", 5, None,
    )
] + [
    ({"tools": [{"type": kind, "name": "f"}]}, False)
    for kind in (
        "function", "custom", "local_shell", "apply_patch", "computer_use_preview", "bash_20250124",
        "computer_20250124", "text_editor_20250728", "memory_20250818",
    )
] + [
    ({"tools": [{"name": "f", "input_schema": {"type": "mcp"}}]}, False),
    ({"tools": [{"type": "function", "function": {"parameters": {"tools": [{"type": "mcp"}]}}}]}, False),
    ({"tools": [{"type": "function"}] * 99 + [{"type": "mcp", "server_url": "https://a.test"}]}, True),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}, {"type": "mcp"}]}]}, True),
    ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}}, False),
    ({"input": [{"type": "mcp_list_tools", "tools": [{"name": "t", "input_schema": {}}]}]}, False),
    ({"web_search_options": {}}, True),
    ({"web_search_options": {"search_context_size": "high"}}, True),
    ({"search_parameters": {"mode": "auto"}}, True),
    ({"plugins": [{"id": "web"}]}, True),
    ({"mcp_servers": [{"type": "url", "url": "https://a.test/sse"}]}, True),
    ({"extra_body": {"plugins": [{"id": "web"}]}}, True),
    ({"metadata": {"plugins": "web", "tools": "x"}}, False),
]  # fmt: skip


@pytest.mark.parametrize(("members", "context"), HOSTED)
def test_what_works_at_the_upstream_and_reads_what_it_finds_may_add_a_context(
    members: dict[str, Any], context: bool
) -> None:
    for body in (body_of(**members), body_of(**members).replace(b"tools", b"t\\u006fols")):
        inner = everywhere(body).inner
        assert (inner.context, inner.references) == (context, set())


def test_tools_that_draw_are_counted() -> None:
    assert everywhere(body_of(tools=[{"type": "image_generation"}, {"type": "function"}])).inner.draws == 1
    assert everywhere(body_of(tools=[{"type": "image_generation", "model": "a"}] * 2)).inner.draws == 2


REMOTE: list[tuple[dict[str, Any], bool]] = [
    ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}]}]}, True),
    ({"input": [{"content": [{"type": "input_image", "image_url": "HTTP://a.test/b.png"}]}]}, True),
    ({"input": [{"content": [{"type": "input_image", "image_url": "gs://bucket/b"}]}]}, True),
    ({"messages": [{"content": [{"source": {"type": "url", "url": "https://a.test/b.pdf"}}]}]}, True),
    ({"messages": [{"content": [{"type": "audio_url", "audio_url": {"url": "https://a.test/b.mp3"}}]}]}, True),
    ({"messages": [{"content": [{"image_url": {"url": "data:image/png;base64,QUJD"}}]}]}, False),
    ({"messages": [{"content": [{"image_url": {"url": "DATA:image/png;base64,QUJD"}}]}]}, False),
    ({"messages": [{"content": "see https://a.test/b.png"}]}, False),
]  # fmt: skip


@pytest.mark.parametrize(("members", "remote"), REMOTE)
def test_what_is_named_by_its_address_is_found(members: dict[str, Any], remote: bool) -> None:
    assert everywhere(body_of(**members)).inner.remote == remote


def test_references_of_bounded_size_are_reserved_as_such() -> None:
    for item in ({"id": "rs_1", "type": "reasoning"}, {"id": "ig_1", "type": "image_generation_call"}):
        assert everywhere(body_of(input=[item])).inner.tokens == STORED_TOKENS
    assert everywhere(body_of(messages=[{"audio": {"id": "audio_1"}}])).inner.tokens == STORED_TOKENS


BASE64 = "iVBORw0KGgo+/" * 300  # 3,900 bytes
PDF = "JVBERi0xLjcK" + BASE64
PICTURE = f"data:image/png;base64,{BASE64}"

MEDIA: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]}, (len(PICTURE), 1, 0)),
    ({"messages": [{"content": [{"image_url": {"url": PICTURE, "detail": "high"}}] * 3}]}, (3 * len(PICTURE), 3, 0)),
    ({"messages": [{"content": [{"image_url": {"url": PICTURE, "detail": "original"}}]}]}, (len(PICTURE), ORIGINAL, 0)),
    ({"messages": [{"content": [{"image_url": {"url": PICTURE, "detail": "new"}}]}]}, (len(PICTURE), ORIGINAL, 0)),
    ({"messages": [{"content": [{"image_url": {"url": "https://a.test/b.png"}}]}]}, (0, 1, 0)),
    ({"input": [{"content": [{"type": "input_image", "image_url": PICTURE}]}]}, (len(PICTURE), 1, 0)),
    ({"input": [{"content": [{"type": "input_image", "image_url": "https://a.test/b.png"}]}]}, (0, 1, 0)),
    ({"input": [{"type": "computer_call_output", "output": {"image_url": PICTURE}}]}, (len(PICTURE), 1, 0)),
    ({"input": [{"type": "image_generation_call", "id": "i", "result": BASE64}]}, (3900, 1, 0)),
    ({"images": [{"b64_json": BASE64}]}, (3900, 1, 0)),
    ({"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": BASE64, "format": "mp3"}}]}]},
     (3900, 0, 30)),
    ({"messages": [{"content": [{"source": {"type": "base64", "media_type": "image/png", "data": BASE64}}]}]},
     (3900, 1, 0)),
    ({"messages": [{"content": [{"source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}]}]},
     (3912, 1, 587)),
    ({"messages": [{"content": [{"type": "file", "file": {"file_data": PDF}}]}]}, (3912, 1, 587)),
    ({"input": [{"content": [{"file_data": f"data:application/pdf;base64,{PDF}"}]}]}, (3940, 1, 591)),
    # Text, or what may be.
    ({"messages": [{"role": "user", "content": PICTURE}]}, (0, 0, 0)),
    ({"messages": [{"content": [{"type": "text", "text": PICTURE}]}]}, (0, 0, 0)),
    ({"messages": [{"content": [{"image_url": {"url": f"data:text/plain;base64,{BASE64}"}}]}]}, (0, 1, 0)),
    ({"messages": [{"content": [{"image_url": {"url": f"data:image/svg+xml;base64,{BASE64}"}}]}]}, (0, 1, 0)),
    ({"messages": [{"content": [{"image_url": {"url": "data:image/png;base64," + "a word " * 99}}]}]}, (0, 1, 0)),
    ({"messages": [{"content": [{"image_url": {"url": "data:image/png," + BASE64}}]}]}, (0, 1, 0)),
    ({"messages": [{"content": [{"image_url": {"url": PICTURE + " and words"}}]}]}, (0, 1, 0)),
    ({"messages": [{"content": [{"input_audio": {"data": "a word " * 99}}]}]}, (0, 0, 0)),
    ({"messages": [{"content": [{"source": {"type": "text", "media_type": "text/plain", "data": BASE64}}]}]},
     (0, 0, 0)),
    ({"messages": [{"content": [{"source": {"type": "text", "media_type": "image/png", "data": BASE64}}]}]}, (0, 0, 0)),
    ({"messages": [{"content": [{"file": {"file_data": f"data:text/plain;base64,{BASE64}"}}]}]}, (0, 0, 0)),
    ({"messages": [{"content": [{"file": {"file_data": BASE64}}]}]}, (0, 0, 0)),
    ({"data": BASE64, "messages": [{"data": BASE64}]}, (0, 0, 0)),
    ({"messages": [{"content": [{"type": "text", "text": "x", "url": PICTURE}]}]}, (0, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("members", "media"), MEDIA)
def test_pictures_sound_and_documents_are_no_text(members: dict[str, Any], media: tuple[int, int, int]) -> None:
    inner = everywhere(body_of(**members)).inner
    assert (inner.media, inner.pictures, inner.tokens) == media


def test_a_slash_that_is_escaped_makes_no_text_of_a_picture() -> None:
    body = body_of(messages=[{"content": [{"image_url": {"url": PICTURE}}]}]).replace(b"/", b"\\/")
    inner = everywhere(body).inner
    assert (inner.media, inner.pictures) == (len(PICTURE) + PICTURE.count("/"), 1)


_INNER_NAMES = st.sampled_from([
    "model", "Model", "models", "fallbacks", "tools", "function", "parameters", "metadata", "messages", "content",
    "id", "ID", "type", "Type", "file_id", "file_ids", "container", "tool_calls", "image_url", "url", "detail", "data",
    "source", "media_type", "input_audio", "input", "x", "\u017fource", "role", "annotations", "result", "conversation",
])  # fmt: skip
_INNER_TEXTS = st.sampled_from([
    "a", "", "item_reference", "reasoning", "message", "base64", "image/png", "original", "data:image/png;base64,QUJD",
    PICTURE[:400], BASE64[:300], "x" * 300, "\U0001f600",
])  # fmt: skip
_INNER = st.recursive(
    st.none() | st.booleans() | st.integers(0, 5) | _INNER_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(_INNER_NAMES, inner), max_size=4).map(dict),
)


@given(st.data())
def test_whatever_stands_within_is_heard_alike_whole_and_in_pieces(data: st.DataObject) -> None:
    body = data.draw(written(st.lists(st.tuples(_INNER_NAMES, _INNER), max_size=5)))
    if data.draw(st.booleans()):  # something that stands twice
        body = body.replace(b'"x"', data.draw(st.sampled_from([b'"model"', b'"id"', b'"type"', b'"file_id"'])))
    asked = whole(body)
    assert in_pieces(data.draw(pieces_of(body))) == asked
    reader = JsonReader()
    reader.feed(body)
    assert reader.finish() == asked


@pytest.mark.parametrize("padding", [0, 1, 700, 5000])
def test_a_long_list_hides_nothing_at_any_place(padding: int) -> None:
    """Whole elements are read at once where they look harmless; what does not is looked at more closely."""
    plain = [{"role": "user", "content": f"number {i}, " + "x" * padding} for i in range(8000 // (padding + 50) + 3)]
    for place in range(len(plain) + 1):
        for hidden in ({"model": "a"}, [[{"model": "a"}]], {"content": [{"x": {"Model": "a"}}]}):
            body = body_of(messages=[*plain[:place], hidden, *plain[place:]])
            for size in (1000, 65536):
                assert in_pieces([body[i : i + size] for i in range(0, len(body), size)]).inner == Inner({"a"})


def test_a_long_list_is_as_deep_as_any() -> None:
    for levels, good in ((1000, True), (1022, True), (1023, False), (1024, False)):
        element = b"[" * levels + b"]" * levels
        body = b'{"x":[' + element + b"," + b"1," * 2000 + b"1]}"
        body2 = b'{"x":[' + b"1," * 2000 + element + b"," + b"1," * 2000 + b"1]}"
        for each in (body, body2):
            assert (whole(each).fault is None) == good
            assert (in_pieces([each[:100], each[100:]]).fault is None) == good


@pytest.mark.parametrize("wrong", [b"01", b"1 1", b"]", b"1],[1", b"{}x", b'"a', b"nul", b"\xff", b"'a'", b"1:1"])
def test_what_is_no_json_in_a_long_list_is_a_fault(wrong: bytes) -> None:
    for element in (b'{"a":"b"}', b"1", b'"a"', b"[1]"):
        body = b'{"x":[' + (element + b",") * 3000 + wrong + (b"," + element) * 3000 + b"]}"
        for size in (len(body), 1000, 4096):
            assert in_pieces([body[i : i + size] for i in range(0, len(body), size)]).fault is not None
