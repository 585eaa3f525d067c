"""Lists of batches and results of message batches are read object by object, however long and however cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage import several
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Late, Outcome, Usage
from flowstack.usage.operations import operation_of
from flowstack.usage.several import MAX_GROUPS, MAX_HELD, ListMeter, ResultsMeter

LIST = operation_of(b"GET", b"batches")
RESULTS = operation_of(b"GET", b"messages/batches/b/results")
LONG_TEXT = '"}{][\\' * 3000 + "é" * 1000


def batch(number: int, status: str = "completed", **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": number, "output_tokens": 1, "total_tokens": number + 1}
    return {"id": f"batch_{number}", "metadata": {"a": [{"id": "no"}]}, "status": status, "usage": usage, **more}


def succeeded(prompt: int = 10, model: str = "claude-opus-4-5", text: str = "hi", **usage: Any) -> dict[str, Any]:
    figures = {"input_tokens": prompt, "output_tokens": 2, "service_tier": "batch", **usage}
    message = {"id": "msg_1", "content": [{"type": "text", "text": text}], "model": model, "usage": figures}
    return {"custom_id": text, "result": {"type": "succeeded", "message": message}}


def lines(*results: Any) -> bytes:
    return b"".join(orjson.dumps(one) + b"\n" for one in results)


def outcome_of(operation: Any, pieces: Iterable[bytes]) -> Outcome:
    meter = meter_for(operation, 200, {b"content-type": b"application/json"})
    assert meter is not None
    for piece in pieces:
        if meter.feed(piece):
            while meter.work():
                pass
    return meter.finish()


def cut(body: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    return [*pieces, body[at:]]


LARGE = batch(2, description=LONG_TEXT), batch(3, metadata={LONG_TEXT: "x"})
DATA = [batch(0), batch(1, "in_progress"), *LARGE, batch(4)]
PAGE = orjson.dumps({"object": "list", "first": {"id": "batch_9"}, "data": DATA, "has_more": True})
TEXTS = [succeeded(), succeeded(text=LONG_TEXT), {"custom_id": "c", "result": {"type": "canceled"}}, succeeded(7)]


@given(st.lists(st.integers(1, 9000), max_size=12))
def test_a_list_says_the_same_however_it_is_cut(sizes: list[int]) -> None:
    late = outcome_of(LIST, cut(PAGE, sizes)).late
    assert [one.id for one in late] == ["batch_0", "batch_2", "batch_3", "batch_4"]
    assert [one.used[0].usage.total_tokens for one in late] == [1, 3, 4, 5]


@given(st.lists(st.integers(1, 9000), max_size=12))
def test_results_say_the_same_however_they_are_cut(sizes: list[int]) -> None:
    (late,) = outcome_of(RESULTS, cut(lines(*TEXTS), sizes)).late
    (used,) = late.used
    assert (used.model, used.service_tier) == ("claude-opus-4-5", "batch")
    assert (used.usage.prompt_tokens, used.usage.completion_tokens, used.usage.longest) == (27, 6, 10)


@pytest.mark.parametrize("indent", [False, True])
def test_results_may_be_indented_and_their_lines_end_in_any_way(indent: bool) -> None:
    option = orjson.OPT_INDENT_2 if indent else 0
    body = b"\r\n".join(orjson.dumps(one, option=option) for one in TEXTS)
    (late,) = outcome_of(RESULTS, [body]).late
    assert [one.usage.prompt_tokens for one in late.used] == [27]


UNKNOWN = (Late("message_batch", None, True),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"[]\n",
        b"no json\n",
        b"{}\n",
        b'{"result": null}\n',
        b'{"result": {"type": "succeeded"}}\n',
        b'{"result": {"type": "succeeded", "message": {}}}\n',
        b'{"result": {"type": "succeeded", "message": {"usage": {"input_tokens": "x"}}}}\n',
        b'{"result": {"type": "of tomorrow"}}\n',
        b'{"result": {"type": "canceled"}}\n{"result": \n',
        b'{"result": {"type": "canceled"}}\n{"a": "b',
        b'{"result": {"type": "succeeded", "message": {"usage": 1}, "x": "%b"}}\n' % (b"x" * 2 * MAX_HELD),
        b'{"result": {"type": "succeeded", "message": null, "x": "%b"}}\n' % (b"x" * 2 * MAX_HELD),
        lines(succeeded(), *(succeeded(model=f"m{number}") for number in range(MAX_GROUPS))),
    ],
    ids=range(15),
)
def test_of_results_that_are_not_understood_as_a_whole_nothing_is_known(body: bytes) -> None:
    assert outcome_of(RESULTS, [body]).late == UNKNOWN


def test_results_in_which_nothing_succeeded_used_nothing() -> None:
    body = lines(*({"custom_id": kind, "result": {"type": kind}} for kind in ("errored", "canceled", "expired")))
    (late,) = outcome_of(RESULTS, [body]).late
    assert [one.usage for one in late.used] == [Usage(0, None, 0, None, 0)]


def test_figures_are_added_up_within_objects_too_and_texts_keep_requests_apart() -> None:
    body = lines(
        succeeded(cache_read_input_tokens=5, server_tool_use={"web_search_requests": 1}),
        succeeded(server_tool_use={"web_search_requests": 2, "web_fetch_requests": 4}),
        succeeded(250_000),
        succeeded(model="another"),
    )
    (late,) = outcome_of(RESULTS, [body]).late
    found = {(one.model, one.usage.longest): one.usage for one in late.used}
    assert set(found) == {("claude-opus-4-5", 15), ("claude-opus-4-5", 250_000), ("another", 10)}
    both = found["claude-opus-4-5", 15]
    assert (both.prompt_tokens, both.cached_tokens, both.completion_tokens) == (25, 5, 4)
    assert both.details is not None
    assert both.details["server_tool_use"] == {"web_search_requests": 3, "web_fetch_requests": 4}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"data": 7}', b'{"data": [7, "x", [], [{"id": "a"}], {}]}', b"]}]"]
)
def test_a_list_of_another_shape_shows_nothing(body: bytes) -> None:
    assert outcome_of(LIST, [body]).late == ()


def test_no_more_of_an_answer_is_held_than_one_object_may_be() -> None:
    for meter in (ListMeter(LIST), ResultsMeter(RESULTS)):
        for piece in cut(lines({"data": [{"id": "x" * 500_000}]}), [3000] * 150):
            meter.feed(piece)
            assert len(meter._held) <= MAX_HELD


def test_of_a_list_without_end_no_more_works_are_taken_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "MAX_LATE", 3)
    body = orjson.dumps({"data": [batch(number) for number in range(9)]})
    assert len(outcome_of(LIST, [body]).late) == 3


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=8))
def test_no_bytes_make_a_meter_raise_or_say_what_was_used(body: bytes, sizes: list[int]) -> None:
    for operation in (LIST, RESULTS):
        assert not any(one.used for one in outcome_of(operation, cut(body, sizes)).late)
