"""What a body is estimated as: its input, and its output, by hand from the provider's reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.estimate import (
    IMAGE_TOKENS,
    MAX_PROMPT_TOKENS,
    OUTPUT_TOKENS,
    STORED_CONTEXT,
    Estimate,
    estimated,
    measure_of,
    output_of,
)
from flowstack.usage.operations import operation_of
from flowstack.usage.request_facts import read_request_facts

JSON = {b"content-type": b"application/json"}
FORM = {b"content-type": b"multipart/form-data; boundary=B"}
ENDPOINTS = {
    "chat": b"chat/completions", "completions": b"completions", "responses": b"responses", "messages": b"messages",
    "embeddings": b"embeddings", "moderations": b"moderations", "images": b"images/generations",
    "edits": b"images/edits", "speech": b"audio/speech", "transcriptions": b"audio/transcriptions",
}  # fmt: skip


def raw_estimate(family: str, body: bytes, headers: dict[bytes, bytes] = JSON) -> Estimate:
    operation = operation_of(b"POST", ENDPOINTS[family])
    asked = read_request_facts(operation.body, headers, body)
    assert asked is not None
    assert asked.fault is None
    return estimated(asked, len(body), measure_of(operation))


def estimate(family: str, undeclared: int = OUTPUT_TOKENS, **members: Any) -> tuple[int, int]:
    """Tokens of the input, as usual but for what is as large as a context, and of the output."""
    used = raw_estimate(family, json.dumps({"model": "m", **members}, separators=(",", ":")).encode())
    assert used[0] <= used[1]
    return STORED_CONTEXT if used[1] == STORED_CONTEXT else used[0], output_of(used, undeclared)


SMALL = range(1, 120)
"""The input of a short body."""
CONTEXT = range(STORED_CONTEXT, STORED_CONTEXT + 1)
URL = "https://a.test/b"
WEB = {"tools": [{"type": "web_search"}]}


def content(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


TABLE: list[tuple[str, dict[str, Any], range, int]] = [
    # What declares the most output, and what does not.
    ("chat", {"messages": []}, SMALL, 4096),
    ("chat", {"max_tokens": 10}, SMALL, 10),
    ("chat", {"max_completion_tokens": 10}, SMALL, 10),
    ("chat", {"max_tokens": 10, "max_completion_tokens": 20}, SMALL, 20),
    ("chat", {"max_output_tokens": 10}, SMALL, 4096),
    ("chat", {"max_output_tokens": 5000}, SMALL, 5000),
    ("chat", {"max_tokens": 10, "max_output_tokens": 5000}, SMALL, 5000),
    ("chat", {"max_tokens": -1}, SMALL, 4096),
    ("chat", {"max_tokens": 0}, SMALL, 0),
    ("completions", {"prompt": "x"}, SMALL, 4096),
    ("completions", {"prompt": "x", "max_tokens": 10}, SMALL, 10),
    ("completions", {"prompt": "x", "max_completion_tokens": 10}, SMALL, 4096),
    ("responses", {"input": "x"}, SMALL, 4096),
    ("responses", {"input": "x", "max_output_tokens": 10}, SMALL, 10),
    ("responses", {"input": "x", "max_tokens": 1}, SMALL, 4096),
    ("responses", {"input": "x", "max_completion_tokens": 1}, SMALL, 4096),
    ("messages", {"max_tokens": 10}, SMALL, 10),
    ("messages", {"max_output_tokens": 1}, SMALL, 4096),
    ("messages", {"max_tokens": 100, "thinking": {"type": "enabled", "budget_tokens": 16_000}}, SMALL, 16_000),
    ("messages", {"max_tokens": 20_000, "thinking": {"type": "enabled", "budget_tokens": 16_000}}, SMALL, 20_000),
    ("messages", {"thinking": {"type": "disabled"}}, SMALL, 4096),
    ("chat", {"reasoning": {"max_tokens": 9_000}}, SMALL, 9_000),
    ("chat", {"reasoning": {"effort": "high"}}, SMALL, 4096),
    # What multiplies.
    ("chat", {"max_tokens": 10, "n": 8}, SMALL, 80),
    ("chat", {"n": 8}, SMALL, 8 * 4096),
    ("chat", {"max_tokens": 10, "n": 0}, SMALL, 10),
    ("completions", {"prompt": ["a"] * 100, "max_tokens": 1000}, range(200, 300), 100_000),
    ("completions", {"prompt": ["a"] * 4, "n": 2, "best_of": 5, "max_tokens": 100}, SMALL, 2_000),
    ("completions", {"prompt": ["a"] * 4, "n": 2}, SMALL, 8 * 4096),
    ("completions", {"prompt": [7] * 40_000, "max_tokens": 100}, range(40_000, 40_100), 100),
    ("completions", {"prompt": [[7] * 1000] * 40, "max_tokens": 100}, range(40_000, 40_100), 4_000),
    ("embeddings", {"input": "a text"}, SMALL, 0),
    ("embeddings", {"input": ["a text"] * 2048}, range(9_216, 9_300), 0),
    ("embeddings", {"input": [7] * 8000}, range(8_000, 8_100), 0),
    ("embeddings", {"input": [[7] * 1000] * 300}, range(300_000, 300_400), 0),
    ("moderations", {"input": "x" * 400}, range(100, 120), 0),
    ("images", {"prompt": "x"}, SMALL, 4096),
    ("images", {"prompt": "x", "n": 10, "quality": "high"}, SMALL, 40_960),
    ("speech", {"input": "x" * 4096, "voice": "alloy"}, range(1_000, 1_100), 8_272),
    ("chat", {"prediction": {"type": "content", "content": "y" * 4000}, "max_tokens": 10}, range(1_000, 1_100), 1_029),
    # What refers.
    ("chat", {"max_tokens": 1, "messages": content({"type": "image_url", "image_url": {"url": URL}})}, CONTEXT, 1),
    ("chat", {"max_tokens": 1, "messages": content({"type": "file", "file": {"file_id": "file-1"}})}, CONTEXT, 1),
    ("chat", {"max_tokens": 1, "web_search_options": {}}, CONTEXT, 1),
    ("responses", {"previous_response_id": "resp_1"}, CONTEXT, 4096),
    ("responses", {"conversation": "conv_1"}, CONTEXT, 4096),
    ("responses", {"prompt": {"id": "pmpt_1"}}, CONTEXT, 4096),
    ("responses", {"input": content({"type": "input_file", "file_id": "file-1"})}, CONTEXT, 4096),
    ("responses", {"input": content({"type": "input_file", "file_url": URL})}, CONTEXT, 4096),
    ("responses", {"input": content({"type": "input_image", "image_url": URL})}, CONTEXT, 4096),
    ("responses", {"input": content({"type": "input_image", "file_id": "file-1"})}, CONTEXT, 4096),
    ("responses", WEB, CONTEXT, 4096),
    ("responses", WEB | {"max_tool_calls": 1}, CONTEXT, 4096),
    ("responses", {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, CONTEXT, 4096),
    ("responses", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, CONTEXT, 4096),
    ("responses", {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, CONTEXT, 4096),
    ("responses", {"tools": [{"type": "mcp", "server_url": URL}]}, CONTEXT, 4096),
    ("messages", {"max_tokens": 1, "mcp_servers": [{"type": "url", "url": URL}]}, CONTEXT, 1),
    ("messages", {"max_tokens": 1, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, CONTEXT, 1),
    ("messages", {"max_tokens": 1, "container": "container_1"}, CONTEXT, 1),
    ("messages", {"max_tokens": 1, "messages": content({"source": {"type": "url", "url": URL}})}, CONTEXT, 1),
    ("messages", {"max_tokens": 1, "messages": content({"source": {"type": "file", "file_id": "f"}})}, CONTEXT, 1),
    ("chat", {"max_tokens": 1, "tools": [{"type": "function", "function": {"name": "f"}}]}, SMALL, 1),
    # What is long.
    ("chat", {"max_tokens": 1, "messages": "x" * 2_000_000}, range(500_000, 500_100), 1),
    ("chat", {"max_tokens": 1, "messages": "x" * 9_000_000}, range(MAX_PROMPT_TOKENS, MAX_PROMPT_TOKENS + 1), 1),
    ("responses", {"previous_response_id": "resp_1", "input": "x" * 2_000_000}, range(500_000, 500_100), 4096),
]  # fmt: skip


@pytest.mark.parametrize(("family", "members", "prompt", "output"), TABLE)
def test_what_a_body_is_estimated_as(family: str, members: dict[str, Any], prompt: range, output: int) -> None:
    found = estimate(family, **members)
    assert found[0] in prompt
    assert found[1] == output


@pytest.mark.parametrize("text", ["plain English words ", "བོད་སྐད་", "0123456789", "漢字", "🙂"])
@pytest.mark.parametrize(
    ("family", "member"),
    [("chat", "messages"), ("responses", "input"), ("messages", "messages"), ("completions", "prompt"),
     ("embeddings", "input"), ("moderations", "input")],
)  # fmt: skip
def test_a_byte_of_text_is_a_token_at_most(family: str, member: str, text: str) -> None:
    value: Any = content({"type": "text", "text": text * 3_000}) if member == "messages" else text * 3_000
    body = json.dumps({"model": "m", member: value}, ensure_ascii=False).encode()
    used = raw_estimate(family, body)
    assert used[1] == len(body) >= len((text * 3_000).encode())
    assert used[0] == -(-len(body) // (2 if family in ("completions", "embeddings") else 4))


def test_what_has_an_address_is_usually_a_picture_and_at_most_a_context() -> None:
    body = json.dumps({"messages": content({"type": "image_url", "image_url": {"url": URL}})}).encode()
    used = raw_estimate("chat", body)
    assert used[:2] == (-(-len(body) // 4) + 1_500, STORED_CONTEXT)


def test_no_most_is_taken_for_each_choice_and_each_prompt() -> None:
    assert estimate("chat", 128_000)[1] == 128_000
    assert estimate("completions", 16_000, prompt=["a", "b"], n=3)[1] == 96_000
    assert estimate("images", IMAGE_TOKENS, n=10)[1] == 66_000
    assert estimate("messages", 100, thinking={"budget_tokens": 5_000})[1] == 5_000
    assert estimate("chat", 2**53, n=2**53)[1] == 2**53


def form(*parts: tuple[bytes, bytes]) -> bytes:
    head = b'--B\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    whole = [head % (name, b'; filename="f"' if len(data) > 99 else b"", data) for name, data in parts]
    return b"".join(whole) + b"--B--\r\n"


def test_what_a_recording_is_estimated_as() -> None:
    """A minute is 1,000 tokens, and at least 45,000 bytes; 25 MB may be sent."""
    minute = raw_estimate("transcriptions", form((b"model", b"gpt-4o-transcribe"), (b"file", b"x" * 45_000)), FORM)
    assert 1_000 <= minute[0] < 1_200
    assert minute[2] is None
    largest = raw_estimate("transcriptions", form((b"model", b"whisper-1"), (b"file", b"x" * 25_000_000)), FORM)
    assert largest[0] == STORED_CONTEXT


def test_what_pictures_in_a_form_are_estimated_as() -> None:
    two = [(b"image[]", b"x" * 4_000_000), (b"image[]", b"x" * 4_000_000)]
    used = raw_estimate("edits", form((b"model", b"gpt-image-1"), (b"n", b"3"), *two), FORM)
    assert 2 * 6_240 < used[0] <= 4 * 8_000
    assert output_of(used, IMAGE_TOKENS) == 3 * IMAGE_TOKENS
    plain = [(b"image[]", b"x" * 1_000)] * 16  # of one colour, a large picture is as few bytes
    assert raw_estimate("edits", form((b"model", b"gpt-image-1"), *plain), FORM)[0] >= 16 * 6_240


def test_what_media_are_estimated_as() -> None:
    def prompt(**members: Any) -> int:
        return raw_estimate("chat", json.dumps({"model": "m", **members}).encode())[0]

    photo = f"data:image/jpeg;base64,{'A' * 400_000}"
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": photo}}]}]
    assert 1_500 < prompt(messages=chat) < 1_550
    assert 3_000 < prompt(messages=chat * 2) < 3_100
    assert 48_200 < prompt(model="gpt-4o-mini", messages=chat) < 48_300
    assert 48_200 < prompt(fallbacks=["GPT-4o-mini"], messages=chat) < 48_300
    minute = [{"content": [{"type": "input_audio", "input_audio": {"data": "A" * 528_384, "format": "mp3"}}]}]
    assert 600 < prompt(messages=minute) < 4_100
    assert 100_000 < prompt(messages=[{"role": "user", "content": "A" * 400_000}]) < 100_100
    assert prompt(messages=[{"role": "user", "content": photo}]) > 100_000
    assert 300_000 < prompt(messages=chat * 200) < 310_000


_MORE = [
    {"n": 2}, {"n": 3}, {"best_of": 5}, {"max_tokens": 7_000}, {"max_completion_tokens": 8_000},
    {"max_output_tokens": 9_000}, {"previous_response_id": "r"}, {"conversation": "c"}, {"prediction": {"x": "y"}},
    {"thinking": {"budget_tokens": 5_000}}, {"reasoning": {"max_tokens": 6_000}}, {"file_id": "f"}, WEB,
    {"web_search_options": {}}, {"image_url": URL}, {"b64_json": "A" * 400}, {"user": "u" * 300}, {"container": "c"},
    {"models": ["gpt-4o-mini"]}, {"mcp_servers": []}, {"stop": [1, 2, 3]},
]  # fmt: skip


@given(st.sampled_from(sorted(ENDPOINTS)), st.lists(st.sampled_from(_MORE), max_size=8), st.data())
def test_what_is_added_to_a_body_never_lowers_its_estimate(
    family: str, more: list[dict[str, Any]], data: st.DataObject
) -> None:
    prompts: list[Any] = data.draw(st.lists(st.sampled_from(["a", "b" * 99, [1, 2], [3] * 50]), min_size=1, max_size=5))
    members: dict[str, Any] = {"prompt": prompts[:1], "max_tokens": 5_000}
    before = estimate(family, **members)
    for number in range(len(prompts)):
        members["prompt"] = prompts[: number + 1]
        after = estimate(family, **members)
        assert after[0] >= before[0] and after[1] >= before[1]
        before = after
    for each in more:
        if any(isinstance(value, int) and value < members.get(name, 0) for name, value in each.items()):
            continue
        members |= each
        after = estimate(family, **members)
        assert after[0] >= before[0] and after[1] >= before[1], each
        before = after
