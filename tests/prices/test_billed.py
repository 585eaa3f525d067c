"""Usage objects as the providers send them, held against arithmetic by hand.

Each case is ``(model, usage, what it costs)``; the sum is written out at the prices that the providers publish, in US
dollars for a million tokens, so that it can be read against their pages.
"""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config import Price
from flowstack.prices.cost import CONFIG
from flowstack.prices.table import load_prices
from flowstack.usage.model import Usage

PRICES = load_prices()
NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
M = 1e-6

Further = dict[str, Any]


def chat(prompt: int, output: int, cached: int = 0, reasoning: int = 0, **inner: Any) -> Usage:
    """Chat completions, with what else stands in ``prompt_tokens_details``."""
    return Usage(prompt, cached, output, reasoning, prompt + output, {
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0, **inner},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    })  # fmt: skip


def response(prompt: int, output: int, cached: int = 0, written: int = 0, **more: Any) -> Usage:
    """The responses API, with what else is known beside the tokens."""
    return Usage(prompt, cached, output, 0, prompt + output, {
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens_details": {"reasoning_tokens": 0},
        **more,
    })  # fmt: skip


def message(new: int, output: int, read: int = 0, minutes: int = 0, hour: int = 0, **more: Any) -> Usage:
    """An Anthropic message: what was written to the cache for five minutes and for an hour."""
    written = minutes + hour
    return Usage(new + read + written, read, output, None, None, {
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hour},
        "service_tier": "standard",
        **more,
    })  # fmt: skip


def entry(kind: str, new: int, output: int, read: int = 0, written: int = 0, model: str | None = None) -> Further:
    """One of an Anthropic answer's iterations."""
    return {
        "type": kind, "input_tokens": new, "output_tokens": output, "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written, "model": model,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
    }  # fmt: skip


def iterated(*entries: dict[str, Any], **more: Any) -> Usage:
    """A message of several iterations, whose figures are the sums of theirs."""
    new, output, read, written = (
        sum(each[name] for each in entries)
        for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    return message(new, output, read, written, iterations=list(entries), **more)


def image(text: int, shown: int, drawn: int, said: int | None = None) -> Usage:
    """The images API; *said* is the text in the output, which not every model tells apart."""
    details: dict[str, Any] = {"input_tokens_details": {"text_tokens": text, "image_tokens": shown}}
    if said is not None:
        details["output_tokens_details"] = {"text_tokens": said, "image_tokens": drawn}
    output = drawn + (said or 0)
    return Usage(text + shown, None, output, None, text + shown + output, details)


def heard(text: int, spoken: int, output: int) -> Usage:
    """A transcription that is billed by tokens."""
    details = {"type": "tokens", "input_token_details": {"text_tokens": text, "audio_tokens": spoken}}
    return Usage(text + spoken, None, output, None, text + spoken + output, details)


def lasting(seconds: float) -> Usage:
    """One that is billed by its length."""
    return Usage(details={"type": "duration", "seconds": seconds})


def realtime(text: int, spoken: int, read: tuple[int, int], said: int, written: int) -> Usage:
    """A realtime response: of the input, *read* of text and of speech came from the cache."""
    return Usage(text + spoken, sum(read), said + written, None, text + spoken + said + written, {
        "input_token_details": {
            "text_tokens": text, "audio_tokens": spoken, "image_tokens": 0, "cached_tokens": sum(read),
            "cached_tokens_details": {"text_tokens": read[0], "audio_tokens": read[1], "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": written, "audio_tokens": said},
    })  # fmt: skip


def drawing(output: int, text: int, shown: int = 0, cached: int = 0, model: str | None = "gpt-image-2") -> Further:
    """What a response says of pictures that were drawn for it."""
    image_gen: dict[str, Any] = {
        "input_tokens": text + shown, "input_tokens_details": {"text_tokens": text, "image_tokens": shown},
        "output_tokens": output, "total_tokens": text + shown + output,
    }  # fmt: skip
    if cached:
        image_gen["cached_tokens"] = cached
        image_gen["cached_tokens_details"] = {"cached_text_tokens": cached, "cached_image_tokens": 0}
    more: dict[str, Any] = {"tool_usage": {"image_gen": image_gen, "web_search": {"num_requests": 0}}}
    if model is not None:
        more["tool_models"] = {"image_generation": model}
    return more


def searching(times: int, **more: Any) -> dict[str, Any]:
    """What a response says of web searches."""
    return {"tool_usage": {"image_gen": {"input_tokens": 0}, "web_search": {"num_requests": times}}, **more}


def search(times: int, fetches: int = 0) -> dict[str, Any]:
    """The same in an Anthropic message."""
    return {"server_tool_use": {"web_search_requests": times, "web_fetch_requests": fetches}}


Case = tuple[str, Usage, float] | tuple[str, Usage, float, str]

TOKENS: dict[str, Case] = {
    "a snapshot": ("gpt-4o-2024-08-06", chat(1000, 200), 1000 * 2.5 * M + 200 * 10 * M),
    "an alias, cached": ("gpt-4o-mini", chat(2048, 100, 1024), 1024 * 0.15 * M + 1024 * 0.075 * M + 100 * 0.6 * M),
    "reasoning within the output": ("o3", chat(500, 900, reasoning=800), 500 * 2 * M + 900 * 8 * M),
    "the responses API": ("gpt-5", response(2048, 1000, 1024), 1024 * 1.25 * M + 1024 * 0.125 * M + 1000 * 10 * M),
    "a large answer": ("gpt-5", response(1000, 100_000), 1.00125),
    "an embedding": ("text-embedding-3-large", Usage(900, total_tokens=900), 900 * 0.13 * M),
    "a completion": ("gpt-3.5-turbo-instruct", Usage(70, None, 30, None, 100), 70 * 1.5 * M + 30 * 2 * M),
    "a router's name": ("openai/gpt-4.1", chat(1000, 100), 1000 * 2 * M + 100 * 8 * M),
    "azure's spelling": ("gpt-35-turbo", chat(1000, 100), 1000 * 0.5 * M + 100 * 1.5 * M),
    "cache writes": (
        "gpt-5.6-sol",
        response(10_000, 500, 4000, 3000),
        3000 * 4 * M + 4000 * 0.4 * M + 3000 * 5 * M + 500 * 20 * M,
    ),
    "cache writes in chat": (
        "gpt-6-luna",
        chat(10_000, 500, 2000, cache_write_tokens=8000),
        2000 * 0.01 * M + 8000 * 0.125 * M + 500 * 0.5 * M,
    ),
    "as long as the short prompt's price holds": ("gpt-6-sol", response(272_000, 10), 272_000 * 2 * M + 10 * 10 * M),
    "a long prompt": (
        "gpt-6-sol",
        response(272_001, 1000, 1000, 1000),
        270_001 * 4 * M + 1000 * 0.4 * M + 1000 * 5 * M + 1000 * 15 * M,
    ),
    "a long prompt of Gemini": (
        "gemini-2.5-pro",
        Usage(200_001, None, 10, None, 200_011),
        200_001 * 2.5 * M + 10 * 15 * M,
    ),
    "thinking that only the total has": (
        "gemini-3.1-pro-preview",
        Usage(20, None, 198, None, 623),
        20 * 2 * M + 603 * 12 * M,
    ),
    "reasoning beside the completion": ("grok-4", Usage(100, 0, 50, 30, 180), 100 * 3 * M + 80 * 15 * M),
    "fine-tuned": ("ft:gpt-4o-2024-08-06:acme::8a7b", chat(1000, 100), 1000 * 3.75 * M + 100 * 15 * M),
    "fine-tuned, cached": (
        "ft:gpt-4o-mini-2024-07-18:acme::8a7b",
        chat(2000, 100, 1024),
        976 * 0.3 * M + 1024 * 0.15 * M + 100 * 1.2 * M,
    ),
    "fine-tuned 4o, cached": (
        "ft:gpt-4o-2024-08-06:acme:x:8a7b",
        chat(2000, 100, 1024),
        976 * 3.75 * M + 1024 * 1.875 * M + 100 * 15 * M,
    ),
    "fine-tuned 4.1, cached": (
        "ft:gpt-4.1-2025-04-14:acme::1:ckpt-step-340",
        chat(2000, 100, 1024),
        976 * 3 * M + 1024 * 0.75 * M + 100 * 12 * M,
    ),
    "fine-tuned 4.1 mini": ("ft:gpt-4.1-mini-2025-04-14:acme::1", chat(1000, 100), 1000 * 0.8 * M + 100 * 3.2 * M),
    "fine-tuned 4.1 nano": ("ft:gpt-4.1-nano-2025-04-14:acme::1", chat(1000, 100), 1000 * 0.2 * M + 100 * 0.8 * M),
    "a chat model that searches": (
        "gpt-4o-search-preview-2025-03-11",
        chat(1000, 200),
        1000 * 2.5 * M + 200 * 10 * M + 0.025,
    ),
    "another": ("gpt-5-search-api", chat(1000, 200), 1000 * 1.25 * M + 200 * 10 * M + 0.01),
    "flex": ("gpt-5", response(1000, 200), (1000 * 1.25 * M + 200 * 10 * M) / 2, "flex"),
    "priority": ("gpt-5", response(1000, 200, 100), 900 * 2.5 * M + 100 * 0.25 * M + 200 * 20 * M, "priority"),
    "fast": ("gpt-5.5", response(1000, 200), 1000 * 12.5 * M + 200 * 75 * M, "fast"),
    "a long prompt at the priority tier": (
        "gpt-6-sol",
        response(300_000, 200, 0, 100_000),
        200_000 * 8 * M + 100_000 * 10 * M + 200 * 30 * M,
        "priority",
    ),
    "the standard tier by name": ("gpt-5", response(1000, 200), 1000 * 1.25 * M + 200 * 10 * M, "default"),
    "a moderation": ("omni-moderation-latest", Usage(50, total_tokens=50), 0.0),
    "a moderation's snapshot": ("omni-moderation-2024-09-26", Usage(0, 0, 0, 0, 0), 0.0),
}

KINDS: dict[str, Case] = {
    "speech in a chat": (
        "gpt-audio",
        Usage(300, 0, 200, 0, 500, {
            "prompt_tokens_details": {"audio_tokens": 250, "cached_tokens": 0},
            "completion_tokens_details": {"audio_tokens": 150, "reasoning_tokens": 0},
        }),
        50 * 2.5 * M + 250 * 32 * M + 50 * 10 * M + 150 * 64 * M,
    ),
    "a realtime response": (
        "gpt-realtime",
        realtime(100, 400, (64, 128), 300, 40),
        36 * 4 * M + 64 * 0.4 * M + 272 * 32 * M + 128 * 0.4 * M + 300 * 64 * M + 40 * 16 * M,
    ),
    "a transcription by tokens": ("gpt-4o-transcribe", heard(10, 90, 20), 10 * 2.5 * M + 90 * 6 * M + 20 * 10 * M),
    "a transcription by its length": ("whisper-1", lasting(90), 1.5 * 0.006),
    "a part of a second": ("whisper-1", lasting(7.25), 7.25 * 0.006 / 60),
    "no sound at all": ("whisper-1", lasting(0), 0.0),
    "another by its length": ("gpt-transcribe", lasting(3600), 0.27),
    "speech from text": ("gpt-4o-mini-tts", Usage(40, None, 500, None, 540), 40 * 0.6 * M + 500 * 12 * M),
    "pictures": ("gpt-image-2", image(60, 0, 7024), 60 * 5 * M + 7024 * 30 * M),
    "pictures from pictures": ("gpt-image-2", image(60, 1000, 7024), 60 * 5 * M + 1000 * 8 * M + 7024 * 30 * M),
    "pictures with words": (
        "gpt-image-1.5",
        image(60, 100, 4160, 80),
        60 * 5 * M + 100 * 8 * M + 4160 * 32 * M + 80 * 10 * M,
    ),
    "an older picture": ("gpt-image-1", image(50, 0, 4160), 50 * 5 * M + 4160 * 40 * M),
}  # fmt: skip

BESIDE: dict[str, Case] = {
    "pictures of a response": (
        "gpt-5",
        response(2320, 1250, **drawing(7024, 60)),
        (2320 * 1.25 * M + 1250 * 10 * M) + (7024 * 30 * M + 60 * 5 * M),
    ),
    "pictures from pictures, cached": (
        "gpt-5",
        response(0, 0, **drawing(1000, 100, 200, 40)),
        60 * 5 * M + 40 * 1.25 * M + 200 * 8 * M + 1000 * 30 * M,
    ),
    "pictures that were drawn in a response at half the price": (
        "gpt-5",
        response(1000, 0, **drawing(1000, 0)),
        1000 * 0.625 * M + 1000 * 30 * M,
        "flex",
    ),
    "an SVG's author": (
        "gpt-image-2",
        Usage(60, None, 1000, None, 1060, {
            "input_tokens_details": {"text_tokens": 60, "image_tokens": 0},
            "svg_usage": {"model": "gpt-5", "input_tokens": 400, "output_tokens": 900, "reasoning_tokens": 100,
                          "total_tokens": 1300},
        }),
        60 * 5 * M + 1000 * 30 * M + 400 * 1.25 * M + 900 * 10 * M,
    ),
    "web searches": ("gpt-5", response(1000, 100, **searching(3)), 1000 * 1.25 * M + 100 * 10 * M + 3 * 0.01),
    "a search of which what it found is billed as a fixed number of tokens": (
        "gpt-4o-mini",
        response(1000, 0, **searching(2)),
        1000 * 0.15 * M + 2 * (0.01 + 8000 * 0.15 * M),
    ),
    "the same of another model": (
        "gpt-4.1-mini-2025-04-14",
        response(0, 0, output_items={"web_search_call": 1}),
        0.01 + 8000 * 0.4 * M,
    ),
    "searches that are billed, not all that were made": (
        "gpt-5",
        response(0, 0, **searching(2, output_items={"web_search_call": 5})),
        2 * 0.01,
    ),
    "searches that only the output has": ("gpt-5", response(0, 0, output_items={"web_search_call": 5}), 5 * 0.01),
    "none of the searches billed": ("gpt-5", response(0, 0, **searching(0, output_items={"web_search_call": 5})), 0.0),
    "the older search with a model that reasons": (
        "o3",
        response(0, 0, **searching(1, tool_models={"web_search": "web_search_preview"})),
        0.01,
    ),
    "the older search with one that does not": (
        "gpt-4.1",
        response(0, 0, **searching(1, tool_models={"web_search": "web_search_preview_2025_03_11"})),
        0.025,
    ),
    "file searches": ("gpt-4.1", response(100, 0, output_items={"file_search_call": 4}), 100 * 2 * M + 4 * 0.0025),
    "code that ran twice in one container": (
        "gpt-5",
        response(0, 0, output_items={"code_interpreter_call": 2, "containers": 1}),
        0.03,
    ),
    "a larger container": (
        "gpt-5",
        response(0, 0, output_items={"code_interpreter_call": 1}, tool_models={"code_interpreter": "4g"}),
        0.12,
    ),
    "what costs nothing": ("gpt-5", response(0, 0, output_items={"shell_call": 3, "mcp_call": 2}), 0.0),
}  # fmt: skip

SONNET, OPUS, HAIKU = "claude-sonnet-4-6", "claude-opus-4-6", "claude-haiku-5-5"

MESSAGES: dict[str, Case] = {
    "a message": (SONNET, message(1000, 200), 1000 * 3 * M + 200 * 15 * M),
    "all kinds of input": (
        SONNET,
        message(100, 200, 5000, 300, 700),
        100 * 3 * M + 5000 * 0.3 * M + 300 * 3.75 * M + 700 * 6 * M + 200 * 15 * M,
    ),
    "compaction": (
        SONNET,
        iterated(entry("compaction", 180_000, 3500), entry("message", 23_000, 1000)),
        203_000 * 3 * M + 4500 * 15 * M,
    ),
    "the top level alone, beside the iterations": (
        SONNET,
        message(23_000, 1000, iterations=[entry("compaction", 180_000, 3500), entry("message", 23_000, 1000)]),
        203_000 * 3 * M + 4500 * 15 * M,
    ),
    "an advisor of another model": (
        SONNET,
        iterated(
            entry("message", 1000, 100, 500, 200),
            entry("advisor_message", 2000, 800, model=OPUS),
            entry("message", 9, 9),
        ),
        1009 * 3 * M + 500 * 0.3 * M + 200 * 3.75 * M + 109 * 15 * M + 2000 * 5 * M + 800 * 25 * M,
    ),
    "iterations of which each is short": (
        HAIKU,
        iterated(entry("message", 60_000, 100), entry("message", 60_000, 100)),
        120_000 * 0.1 * M + 200 * 0.5 * M,
    ),
    "iterations of which one is long": (
        HAIKU,
        iterated(entry("message", 60_000, 100), entry("message", 100_001, 100)),
        60_000 * 0.1 * M + 100 * 0.5 * M + 100_001 * 0.5 * M + 100 * 2.5 * M,
    ),
    "no iterations": (SONNET, message(1000, 200, iterations=[]), 1000 * 3 * M + 200 * 15 * M),
    "web searches": (SONNET, message(1000, 200, **search(3)), 1000 * 3 * M + 200 * 15 * M + 0.03),
    "pages fetched, which are free": (SONNET, message(1000, 200, **search(0, 9)), 1000 * 3 * M + 200 * 15 * M),
    "fast mode": (
        "claude-opus-5",
        message(1000, 200, 100, 50, speed="fast"),
        1000 * 10 * M + 100 * 1 * M + 50 * 12.5 * M + 200 * 50 * M,
    ),
    "inference in one country": (
        "claude-opus-4-6",
        message(1000, 200, 100, inference_geo="us"),
        1.1 * (1000 * 5 * M + 100 * 0.5 * M + 200 * 25 * M),
    ),
    "which searches do not depend on": (
        "claude-opus-4-6",
        message(1000, 0, inference_geo="us", **search(1)),
        1.1 * 1000 * 5 * M + 0.01,
    ),
    "what says nothing of where and how fast": (
        "claude-opus-4-6",
        message(1000, 0, inference_geo="not_available", speed="standard"),
        1000 * 5 * M,
    ),
    "a batch's message": (SONNET, message(1000, 200), (1000 * 3 * M + 200 * 15 * M) / 2, "batch"),
    "a batch's compaction": (
        SONNET,
        iterated(entry("compaction", 180_000, 3500), entry("message", 23_000, 1000)),
        (203_000 * 3 * M + 4500 * 15 * M) / 2,
        "batch",
    ),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {"tokens": TOKENS, "kinds": KINDS, "beside": BESIDE, "messages": MESSAGES}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_all_that_an_answer_says_is_billed_is_in_its_cost(name: str) -> None:
    model, usage, expected, *tier = CASES[name]
    amount, date, reason = PRICES.cost(model, usage, *(tier or (None,)), False, NOW)
    assert reason is None
    assert date == PRICES.date
    assert amount == pytest.approx(expected, rel=1e-12, abs=1e-15)


BY_TOKENS = {name: case for group in (TOKENS, KINDS) for name, case in group.items()}


@pytest.mark.parametrize("name", BY_TOKENS)
def test_no_estimate_is_below_what_the_same_tokens_cost(name: str) -> None:
    model, usage, expected, *_ = BY_TOKENS[name]
    prompt = usage.prompt_tokens
    output = max(usage.completion_tokens or 0, (usage.total_tokens or 0) - (prompt or 0))
    if prompt is None:  # sound, of which a second is estimated as 250 tokens
        prompt, output = ceil(usage.details["seconds"] * 250) if usage.details else 0, 0
    estimated = PRICES.estimate(model, prompt, output)
    assert estimated is not None
    assert estimated >= expected - 1e-15


UNPRICED: dict[str, tuple[str | None, Usage, str] | tuple[str | None, Usage, str, str]] = {
    "no model is named": (None, chat(1, 1), "no_model"),
    "a model that nobody knows": ("in-house", chat(1, 1), "no_price:in-house"),
    "a snapshot that is newer than the table": ("gpt-4o-2099-01-01", chat(1, 1), "no_price:gpt-4o-2099-01-01"),
    "a tier that is paid in advance": ("gpt-4o", chat(1, 1), "no_price_for:tier", "scale"),
    "a tier without a published price": ("gpt-5.6-sol", response(1, 1), "no_price_for:tier", "ultrafast"),
    "Anthropic's priority tier": (SONNET, message(1, 1), "no_price_for:tier", "priority"),
    "a speed that the model does not have": (SONNET, message(1, 1, speed="fast"), "no_price_for:speed"),
    "a speed in a tier": ("claude-opus-5", message(1, 1, speed="fast"), "no_price_for:speed", "batch"),
    "a country without a factor": (SONNET, message(1, 1, inference_geo="eu"), "no_price_for:inference_geo"),
    "a tool that nobody knows": (
        SONNET,
        message(1, 1, server_tool_use={"web_search_requests": 0, "time_travel_requests": 1}),
        "no_price_for:time_travel_call",
    ),
    "a tool whose name is none": (SONNET, message(1, 1, server_tool_use={"a tool": 1}), "no_price_for:tool"),
    "a container of a size that nobody knows": (
        "gpt-5",
        response(1, 1, output_items={"containers": 1}, tool_models={"code_interpreter": "1t"}),
        "no_price_for:container_1t",
    ),
    "a container of Anthropic's": (SONNET, message(1, 1, container={"id": "c"}), "no_price_for:container"),
    "a price that was shifted between models": (
        SONNET,
        message(1, 1, fallback_credit={"status": {"type": "redeemed"}}),
        "no_price_for:fallback_credit",
    ),
    "an advisor without a price": (
        SONNET,
        iterated(entry("message", 1, 1), entry("advisor_message", 1, 1, model="claude-x")),
        "no_price:claude-x",
    ),
    "iterations of which some are not kept": (
        SONNET,
        message(2000, 20, iterations=[entry("message", 1000, 10)]),
        "figures:iterations",
    ),
    "iterations that are none": (SONNET, message(1, 1, iterations=[5]), "figures"),
    "iterations without figures": (SONNET, message(1, 1, iterations=[{"type": "message"}]), "figures"),
    "pictures by a model without a price": ("gpt-5", response(1, 1, **drawing(9, 9, model="dall-e-9")),
                                            "no_price_for:image_gen"),
    "pictures by the default model": ("gpt-5", response(1, 1, **drawing(9, 9, model=None)), "no_price_for:image_gen"),
    "pictures of which nothing is told": ("gpt-5", response(1, 1, output_items={"image_generation_call": 1}),
                                          "figures:image_gen"),
    "pictures with words, not told apart": ("gpt-image-1.5", image(60, 0, 4160), "figures:image_output"),
    "speech that may be in it": ("gemini-2.5-flash", Usage(9, None, 9, None, 18), "figures:audio_input"),
    "sound by its length, of a model billed by tokens": ("gpt-4o-transcribe", lasting(5), "no_price_for:audio_seconds"),
    "no length": ("whisper-1", Usage(details={"type": "duration"}), "figures:seconds"),
    "a length that is none": ("whisper-1", lasting(-1), "figures:seconds"),
    "tokens of a model billed by its length": ("whisper-1", heard(1, 1, 1), "no_price_for:input"),
    "sources of a live search": ("grok-4", Usage(9, 0, 9, 0, 18, {"num_sources_used": 3}), "no_price_for:live_search"),
    "tools of xAI's": ("grok-4", Usage(9, 0, 9, 0, 18, {"num_server_side_tools_used": 1}), "no_price_for:live_search"),
    "none of either": ("grok-4", Usage(9, 0, 9, 0, 19, {"num_sources_used": 0}), "figures:total_tokens"),
    "an SVG's author without a price": ("gpt-image-2", Usage(0, None, 0, None, 0, {"svg_usage": {"model": "x"}}),
                                        "no_price_for:svg"),
    "cache writes for twelve hours": (
        "gpt-6.1-terra",
        chat(9, 9, cache_write_tokens=5, cache_write_tokens_details={"ttl_12h_tokens": 5}),
        "no_price_for:cache_write_12h",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNPRICED)
def test_what_is_billed_and_has_no_price_makes_the_cost_null_never_too_low(name: str) -> None:
    model, usage, reason, *tier = UNPRICED[name]
    assert PRICES.cost(model, usage, *(tier or (None,)), False, NOW) == (None, None, reason)


BROKEN: list[dict[str, Any]] = [
    {"tool_usage": [1]},
    {"tool_usage": {"image_gen": {"input_tokens": "9"}}},
    {"tool_usage": {"web_search": 5}},
    {"tool_usage": {"web_search": {"num_requests": -1}}},
    {"server_tool_use": [1]},
    {"server_tool_use": {"web_search_requests": "3"}},
    {"output_items": "x"},
    {"output_items": {"web_search_call": True}},
    {"speed": ["fast"]},
    {"inference_geo": {"us": 1}},
    {"iterations": {"type": "message"}},
    {"svg_usage": "x"},
    {"type": "duration", "seconds": "9"},
    {"type": "duration", "seconds": float("nan")},
    {"type": "duration", "seconds": float("inf")},
    {"fallback_credit": {"status": "redeemed"}},
    {"tool_models": [1], "output_items": {"web_search_call": 1}},
]


@pytest.mark.parametrize("more", BROKEN, ids=str)
def test_figures_that_are_none_give_no_cost_and_raise_nothing(more: dict[str, Any]) -> None:
    amount, date, reason = PRICES.cost("claude-opus-5", message(1, 1, **more), None, False, NOW)
    assert (amount, date) == (None, None)
    assert reason


NAMES = st.sampled_from([
    "iterations", "tool_usage", "image_gen", "web_search", "num_requests", "tool_models", "image_generation",
    "output_items", "web_search_call", "file_search_call", "containers", "server_tool_use", "web_search_requests",
    "svg_usage", "model", "speed", "inference_geo", "type", "seconds", "container", "fallback_credit", "status",
    "input_tokens", "output_tokens", "cached_tokens", "cached_tokens_details", "input_tokens_details", "image_tokens",
    "cache_creation", "cache_creation_input_tokens", "num_sources_used",
])  # fmt: skip
WORDS = st.sampled_from(["fast", "us", "duration", "gpt-image-2", "gpt-5", "4g", "web_search_preview", "redeemed"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
)


@given(st.sampled_from(["gpt-5", "claude-opus-5", "whisper-1"]), st.dictionaries(NAMES, ANYTHING, max_size=5))
def test_whatever_stands_beside_the_tokens_there_is_a_cost_or_a_reason(model: str, details: Further) -> None:
    amount, date, reason = PRICES.cost(model, Usage(10, 0, 10, 0, 20, details), None, False, NOW)
    assert (amount is None) == (date is None) == (reason is not None)
    assert amount is None or amount >= 0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 50), st.integers(0, 50), st.integers(0, 10**5))
def test_what_is_billed_beside_the_tokens_is_added_to_them(
    prompt: int, output: int, searches: int, files: int, drawn: int
) -> None:
    def of(usage: Usage) -> Fraction:
        amount, _, reason = PRICES.cost("gpt-5", usage, None, False, NOW)
        assert reason is None
        return Fraction(str(amount))

    more = drawing(drawn, drawn) | {"output_items": {"web_search_call": searches, "file_search_call": files}}
    del more["tool_usage"]["web_search"]
    beside = Fraction(searches, 100) + files * Fraction(25, 10_000) + drawn * Fraction(35, 1_000_000)
    assert of(response(prompt, output, **more)) == pytest.approx(of(response(prompt, output)) + beside, abs=1e-9)


def test_the_configuration_prices_what_is_charged_each_time() -> None:
    own = Price("in-house*", input=1, output=2, web_search_call=0.5, file_search_call=0.25, container=2)
    prices = load_prices([own, Price("my-whisper", audio_minute=0.6), Price("gpt-5", input=2, output=3)])
    items = {"web_search_call": 1, "file_search_call": 2, "code_interpreter_call": 1}

    def of(model: str, usage: Usage) -> float | None:
        amount, date, _ = prices.cost(model, usage, None, False, NOW)
        assert date in (None, CONFIG)
        return amount

    assert of("in-house-1", response(1000, 0, output_items=items)) == pytest.approx(1000 * M + 0.5 + 0.5 + 2)
    assert of("in-house-1", message(1000, 0, container={"id": "c"})) == pytest.approx(1000 * M + 2)
    assert of("my-whisper", lasting(90)) == pytest.approx(0.9)
    assert of("my-whisper", chat(1, 1)) is None
    assert of("gpt-5", response(1000, 0, **searching(1))) == pytest.approx(1000 * 2 * M + 0.01)
    assert of("gpt-5", lasting(1)) is None


def test_the_configuration_prices_pictures_and_what_is_kept_for_an_hour() -> None:
    own = Price("m", input=1, output=2, image_input=3, image_output=4, cache_write=5, cache_write_hour=6)
    prices = load_prices([own])
    assert prices.cost("m", image(100, 10, 7, 1), None, False, NOW)[0] == pytest.approx((100 + 30 + 28 + 2) * M)
    assert prices.cost("m", message(10, 0, 0, 1, 2), None, False, NOW)[2] == "figures:image_input"
    plain = load_prices([Price("m", input=1, output=2, cache_write=5, cache_write_hour=6)])
    assert plain.cost("m", message(10, 0, 0, 1, 2), None, False, NOW)[0] == pytest.approx((10 + 5 + 12) * M)


LIMITS = {
    "gpt-5": 128_000,
    "gpt-5-2025-08-07": 128_000,
    "gpt-5-mini": 128_000,
    "gpt-5-pro": 272_000,
    "gpt-5-chat-latest": 16_384,
    "gpt-5.6-sol": 128_000,
    "openai/gpt-6.1-terra": 128_000,
    "gpt-4.1-mini-2025-04-14": 32_768,
    "GPT-4o": 16_384,
    "gpt-4o-2024-05-13": 4096,
    "ft:gpt-4o-mini-2024-07-18:acme::1": 16_384,
    "gpt-4o-transcribe": 2000,
    "gpt-4": 8192,
    "gpt-4-turbo-2024-04-09": 4096,
    "gpt-3.5-turbo-0125": 4096,
    "gpt-35-turbo": 4096,
    "o1": 100_000,
    "o1-mini": 65_536,
    "o3-pro": 100_000,
    "o4-mini-2025-04-16": 100_000,
    "claude-3-5-sonnet-20241022": 8192,
    "claude-3-opus-20240229": 4096,
    "claude-opus-4-1-20250805": 32_000,
    "claude-opus-4-20250514": 32_000,
    "claude-sonnet-4-5-20250929": 64_000,
    "claude-haiku-4-5": 64_000,
    "claude-opus-4-5-20251101": 64_000,
    "claude-opus-4-6": 128_000,
    "anthropic/claude-opus-5-5": 128_000,
    "gemini-2.0-flash": 8192,
    "gemini-2.5-flash": 65_536,
    "google/gemini-3.8-flash": 65_536,
    "in-house": None,
    "elsewhere/gpt-5": None,
    "text-embedding-3-small": None,
    "gpt-5" + "x" * 600: None,
    "": None,
}


@pytest.mark.parametrize("model", LIMITS, ids=lambda model: model[:40])
def test_the_most_output_of_a_model_is_known_as_its_provider_states_it(model: str) -> None:
    assert PRICES.output_limit(model) == LIMITS[model]


@pytest.mark.parametrize("model", ["omni-moderation-latest", "text-moderation-stable"])
def test_a_moderation_is_free_and_may_pass_under_a_budget(model: str) -> None:
    assert PRICES.has_price(model)
    assert PRICES.estimate(model, 1000, 0) == 0
