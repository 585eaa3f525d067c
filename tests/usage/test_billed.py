"""All that an answer says is billed is in what its meter finds, under the provider's own names, and is priced by it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from flowstack.prices.table import load_prices
from flowstack.usage.calls import MAX_CONTAINERS, Calls, calls_in
from flowstack.usage.model import Outcome, Usage
from tests.usage.fixtures import (
    CHAT,
    EVENTS,
    MESSAGE,
    RESPONSE_FIGURES,
    RESPONSE_USAGE,
    Answer,
    framed,
    message_event,
    metered,
    response,
)

PRICES = load_prices()
NOW = 1_764_600_000.0


def found(request: str, body: Any, content_type: bytes = b"application/json") -> Outcome:
    """What the meter finds, in one piece and in many."""
    answer = Answer("", request, body, Outcome(), content_type=content_type)
    whole = framed(body) if content_type == EVENTS else orjson.dumps(body)
    outcome = metered(answer, [whole])
    assert metered(answer, (whole[at : at + 500] for at in range(0, len(whole), 500))) == outcome
    return outcome


def cost(outcome: Outcome, asked: str | None = None) -> float | None:
    assert outcome.usage is not None
    return PRICES.cost(outcome.model or asked, outcome.usage, outcome.service_tier, False, NOW)[0]


def ended(body: dict[str, Any]) -> list[Any]:
    """The same response as a stream."""
    created = {"type": "response.created", "response": body | {"status": "in_progress", "usage": None, "output": []}}
    return [(None, created), (None, {"type": "response.completed", "response": body})]


# Responses.

PADDING = {"type": "message", "content": [{"type": "output_text", "text": 'say "type":"web_search_call" ' * 2000}]}
IMAGE_GEN = {
    "input_tokens": 60,
    "input_tokens_details": {"text_tokens": 60, "image_tokens": 0},
    "output_tokens": 7024,
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 7024},
    "total_tokens": 7084,
}
NO_TOOLS = {"image_gen": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, "web_search": {"num_requests": 0}}


def search(kind: str | None = "search") -> dict[str, Any]:
    action = {} if kind is None else {"action": {"type": kind, "query": "weather"}}
    return {"id": "ws_1", "type": "web_search_call", "status": "completed", **action}


def code(container: str) -> dict[str, Any]:
    return {"id": "ci_1", "type": "code_interpreter_call", "code": "1", "container_id": container, "outputs": None}


FILES = {"id": "fs_1", "type": "file_search_call", "queries": ["a"], "status": "completed", "results": None}
DRAWN = {"type": "image_generation_call", "result": "aGk="}
CALLED = {"type": "function_call", "name": "f", "arguments": '{"type":"web_search_call"}'}

RESPONSES: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [  # what it costs beside its own tokens
    ("nothing", {}, {}, 0),
    ("tools that were not used", {"tool_usage": NO_TOOLS, "tools": [{"type": "web_search"}]}, {}, 0),
    ("a function's call", {"output": [CALLED]}, {}, 0),
    ("an image",
     {"tool_usage": {**NO_TOOLS, "image_gen": IMAGE_GEN}, "output": [DRAWN],
      "tools": [{"type": "image_generation", "model": "gpt-image-2"}]},
     {"tool_usage": {**NO_TOOLS, "image_gen": IMAGE_GEN}, "output_items": {"image_generation_call": 1},
      "tool_models": {"image_generation": "gpt-image-2"}},
     (60 * 5 + 7024 * 30) / 1e6),
    ("searches as billed, whatever is in the output",
     {"tool_usage": {**NO_TOOLS, "web_search": {"num_requests": 2}}, "output": [search()] * 5},
     {"tool_usage": {**NO_TOOLS, "web_search": {"num_requests": 2}}, "output_items": {"web_search_call": 5}},
     0.02),
    ("searches in the output", {"output": [search(), search("open_page"), search("find_in_page"), search(None)]},
     {"output_items": {"web_search_call": 2}}, 0.02),
    ("pages opened alone", {"output": [search("open_page")]}, {}, 0),
    ("files", {"output": [FILES, PADDING, FILES]}, {"output_items": {"file_search_call": 2}}, 0.005),
    ("containers", {"output": [code("a"), code("b"), code("a")]},
     {"output_items": {"code_interpreter_call": 3, "containers": 2}}, 0.06),
    ("large containers",
     {"output": [code("a")],
      "tools": [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}]},
     {"output_items": {"code_interpreter_call": 1, "containers": 1}, "tool_models": {"code_interpreter": "4g"}}, 0.12),
    ("all of it, in a large response", {"output": [search(), PADDING, FILES, PADDING, code("a")]},
     {"output_items": {"web_search_call": 1, "file_search_call": 1, "code_interpreter_call": 1, "containers": 1}},
     0.01 + 0.0025 + 0.03),
]  # fmt: skip


@pytest.mark.parametrize(
    ("further", "details", "beside"), [case[1:] for case in RESPONSES], ids=[case[0] for case in RESPONSES]
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_response_says_is_billed_beside_its_tokens_is_kept_and_priced(
    further: dict[str, Any], details: dict[str, Any], beside: float, stream: bool
) -> None:
    body = response("completed", RESPONSE_USAGE, service_tier="default", **further)
    outcome = found("POST responses", ended(body), EVENTS) if stream else found("POST responses", body)
    assert outcome.usage is not None
    assert outcome.usage.details == (RESPONSE_FIGURES.details or {}) | details
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens, outcome.partial) == (36, 87, False)
    assert cost(outcome) == pytest.approx((36 * 1.25 + 87 * 10) / 1e6 + beside)


def test_calls_are_counted_alike_however_they_come() -> None:
    output = [search(), FILES, search("open_page"), code("a"), CALLED, code("b")]
    counts = {"web_search_call": 1, "file_search_call": 1, "code_interpreter_call": 2, "containers": 2}
    for body in (orjson.dumps(output), orjson.dumps(output, option=orjson.OPT_INDENT_2)):
        assert calls_in(body) == counts
        for size in (1, 7, 100, 300):
            calls = Calls()
            for at in range(0, len(body), size):
                calls.feed(body[at : at + size])
            assert calls.counts() == counts


def test_containers_without_end_are_told_apart_up_to_a_bound() -> None:
    assert calls_in(orjson.dumps([code(f"c{number}") for number in range(5000)])) == {
        "code_interpreter_call": 5000,
        "containers": MAX_CONTAINERS,
    }


# Messages.

COMPACTION = {
    "input_tokens": 23_000,
    "output_tokens": 1_000,
    "iterations": [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
    ],
}
MESSAGES: list[tuple[str, dict[str, Any], dict[str, Any], tuple[int, int], float | None]] = [
    ("a compaction", COMPACTION, {}, (203_000, 4_500), 0.6765),
    ("no iterations", {**COMPACTION, "iterations": None}, {}, (23_000, 1_000), 0.084),
    ("web searches", {"input_tokens": 1_000, "output_tokens": 100, "server_tool_use": {"web_search_requests": 3}}, {},
     (1_000, 100), (1_000 * 3 + 100 * 15) / 1e6 + 0.03),
    ("a place that costs more", {"input_tokens": 1_000, "output_tokens": 100, "inference_geo": "us"}, {},
     (1_000, 100), (1_000 * 3 + 100 * 15) / 1e6 * 1.1),
    ("a speed without a price", {"input_tokens": 1_000, "output_tokens": 100, "speed": "fast"}, {}, (1_000, 100), None),
    ("an hour in the cache",
     {"input_tokens": 1_000, "output_tokens": 100, "cache_creation_input_tokens": 500,
      "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 300}}, {},
     (1_500, 100), (1_000 * 3 + 200 * 3.75 + 300 * 6 + 100 * 15) / 1e6),
    ("an advisor of another model",
     {"input_tokens": 400, "output_tokens": 500,
      "iterations": [{"type": "message", "input_tokens": 400, "output_tokens": 500},
                     {"type": "advisor_message", "model": "claude-opus-4-6", "input_tokens": 800,
                      "output_tokens": 1_600}]}, {},
     (1_200, 2_100), (400 * 3 + 500 * 15 + 800 * 5 + 1_600 * 25) / 1e6),
]  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "further", "tokens", "price"), [case[1:] for case in MESSAGES], ids=[case[0] for case in MESSAGES]
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_message_says_is_billed_is_kept_and_priced(
    usage: dict[str, Any], further: dict[str, Any], tokens: tuple[int, int], price: float | None, stream: bool
) -> None:
    message = MESSAGE | {"model": "claude-sonnet-4-6", **further}
    if stream:
        first = {name: usage[name] for name in usage if name not in ("iterations", "server_tool_use")}
        last = {name: usage[name] for name in ("iterations", "server_tool_use", "output_tokens") if name in usage}
        events = [
            message_event("message_start", message=message | {"usage": first | {"output_tokens": 1}}),
            message_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": None, **last}),
            message_event("message_stop"),
        ]
        outcome = found("POST messages", events, EVENTS)
    else:
        outcome = found("POST messages", message | {"usage": usage})
    assert outcome.usage is not None
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == tokens
    kept = {name: value for name, value in usage.items() if name[-6:] != "tokens" or "cache" in name if value}
    assert outcome.usage.details == (kept or None)
    assert cost(outcome) == (None if price is None else pytest.approx(price))


def test_a_message_s_container_is_kept_where_it_is_named() -> None:
    container = {"id": "container_1", "expires_at": "2026-12-01T00:00:00Z"}
    usage = {"input_tokens": 5, "output_tokens": 7}
    used = Usage(5, None, 7, details={"container": container})
    assert found("POST messages", MESSAGE | {"container": container, "usage": usage}).usage == used
    events = [
        message_event("message_start", message=MESSAGE | {"usage": usage}),
        message_event("message_delta", delta={"stop_reason": "end_turn", "container": container}, usage=usage),
        message_event("message_stop"),
    ]
    assert found("POST messages", events, EVENTS).usage == used


# The rest.

SVG = {"model": "gpt-5", "input_tokens": 20, "output_tokens": 900, "reasoning_tokens": 300, "total_tokens": 920}
IMAGES = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens": 272,
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 272},
    "total_tokens": 322,
}
SPOKEN = {
    "type": "tokens",
    "input_tokens": 114,
    "input_token_details": {"text_tokens": 14, "audio_tokens": 100},
    "output_tokens": 45,
    "total_tokens": 159,
}
WRITTEN = {
    "prompt_tokens": 1_000,
    "completion_tokens": 10,
    "total_tokens": 1_010,
    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 600},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


@pytest.mark.parametrize(
    ("request_", "body", "asked", "price"),
    [
        ("POST images/generations", {"data": [], "usage": IMAGES}, "gpt-image-1.5",
         (10 * 5 + 40 * 8 + 272 * 32) / 1e6),
        ("POST images/edits", {"data": [], "usage": IMAGES}, "gpt-image-1.5", (10 * 5 + 40 * 8 + 272 * 32) / 1e6),
        ("POST images/generations", {"data": [], "usage": IMAGES, "svg_usage": SVG}, "gpt-image-1.5",
         (10 * 5 + 40 * 8 + 272 * 32) / 1e6 + (20 * 1.25 + 900 * 10) / 1e6),
        ("POST audio/transcriptions", {"text": "Hi", "usage": SPOKEN}, "gpt-4o-transcribe",
         (14 * 2.5 + 100 * 6 + 45 * 10) / 1e6),
        ("POST audio/transcriptions", {"text": "Hi", "usage": {"type": "duration", "seconds": 90}}, "whisper-1", 0.009),
        ("POST embeddings", {"data": [], "usage": {"prompt_tokens": 1_000, "total_tokens": 1_000}},
         "text-embedding-3-small", 0.00002),
        ("POST completions", {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5,
                                                       "total_tokens": 15}}, "gpt-3.5-turbo-instruct", 0.000025),
    ],
)  # fmt: skip
def test_an_answer_without_a_model_is_priced_by_the_one_asked_for(
    request_: str, body: dict[str, Any], asked: str, price: float
) -> None:
    outcome = found(request_, body)
    assert outcome.model is None
    assert cost(outcome, asked) == pytest.approx(price)
    assert cost(outcome) is None


def test_what_a_chat_wrote_to_the_cache_is_a_figure_of_its_own() -> None:
    outcome = found("POST chat/completions", CHAT | {"usage": WRITTEN})
    assert outcome.usage is not None
    assert (outcome.usage.prompt_tokens, outcome.usage.cache_write_tokens) == (1_000, 600)
