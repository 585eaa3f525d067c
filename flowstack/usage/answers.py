"""Read from an answer object what was used, and whether this call or an earlier one is charged for it."""

from __future__ import annotations

from typing import Any, Final

from flowstack.usage.figures import (
    count_message,
    details_of,
    is_positive,
    merge,
    text_of,
    texts,
    usage_of,
    without_zeros,
)
from flowstack.usage.model import Late, Outcome, Usage, Used
from flowstack.usage.operations import Operation, Work

BESIDE: Final = ("tool_usage", "svg_usage", "output_items")
"""What is billed in addition to ``usage``: the tools of a response that OpenAI runs, the drawing of an SVG by another
model (OpenAI reference, responses, images), and, counted by :mod:`flowstack.usage.calls`, calls of tools."""

MEMBERS: Final = ("id", "model", "service_tier", "status", "background", "usage", "container", "tools", *BESIDE)
"""The members of an answer that are looked at, whatever the family."""

LATE_MEMBERS: Final = (*MEMBERS, "output", "processing_status", "request_counts")
"""The same for an answer that shows work which an earlier call began."""

FINISHED: Final = frozenset(("completed", "incomplete", "failed", "cancelled", "expired"))
"""The states of a response or a batch that no other follows (OpenAI reference: responses, batches)."""


def is_finished(status: Any) -> bool:
    """Whether a status, if it is one at all, is of those."""
    return type(status) is str and status in FINISHED


def take_answer(operation: Operation, answer: dict[str, Any], outcome: Outcome) -> None:
    """Put what an answer object says into an outcome; what it does not say stays as it was.

    An answer to a generating call is charged as it stands, unless its work goes on in the background. What other
    answers show of such work, or of a batch, is charged to the call that began it. Any other retrieval repeats what an
    earlier call was charged for.
    """
    if type(model := answer.get("model")) is str and model:
        outcome.model = texts[model]
    if type(tier := answer.get("service_tier")) is str and tier:
        outcome.service_tier = texts[tier]
    if operation.work is not None and (not operation.generates or answer.get("background") is True):
        late = late_of(operation.work, answer)
        if late is not None:
            outcome.late = (late,)
        if operation.generates and not is_finished(answer.get("status")):
            return
    if not operation.generates:
        return
    usage = usage_of_answer(answer)
    if usage is None:
        return
    outcome.late = ()  # this call's own, after all
    add(usage, outcome)


def late_of(work: Work, answer: dict[str, Any]) -> Late | None:
    """What an answer object says of work whose usage is known late; None where it is no such work.

    Where it has no usage, nothing was used if a response failed before any output, if a batch failed, which OpenAI says
    of one whose file is not valid, and if none of a batch's requests was completed: what failed, was cancelled or
    expired is not billed (OpenAI and Anthropic, guides to batches). Else it is not known what was used. A finished
    message batch says it in its results.
    """
    identity, status, usage = text_of(answer.get("id")), answer.get("status"), None
    if identity is None:
        return None
    if work == "message_batch":
        if answer.get("processing_status") != "ended":
            return Late(work, identity)
        if _count_of(answer, "succeeded") == 0:
            usage = _nothing()
    else:
        if work == "response" and answer.get("background") is not True:
            return None
        if not is_finished(status):
            return Late(work, identity)
        if answer.get("usage") is not None:
            usage = usage_of_answer(answer)
        elif (status == "failed" and (work == "batch" or answer.get("output") == [])) or (
            work == "batch" and _count_of(answer, "completed") == 0
        ):
            usage = _nothing()
    if usage is None:
        return Late(work, identity, True)
    return Late(work, identity, True, (Used(usage, text_of(answer.get("model")), text_of(answer.get("service_tier"))),))


def _count_of(answer: dict[str, Any], name: str) -> Any:
    counts = answer.get("request_counts")
    return counts.get(name) if type(counts) is dict else None


def _nothing() -> Usage:
    return Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)


def take_message(message: dict[str, Any], outcome: Outcome) -> None:
    """The same for an Anthropic message, or for a part of one in an event (Anthropic reference, messages).

    Its tier stands among the figures, which are put together by :func:`flowstack.usage.figures.count_message`
    once all is said. A container is billed by time.
    """
    outcome.model = text_of(message.get("model")) or outcome.model
    usage = usage_of(message.get("usage"))
    if usage is None:
        return
    details = usage.details
    if details is not None and type(tier := details.get("service_tier")) is str:
        outcome.service_tier = tier
    if "container" in message and (container := details_of(message["container"])) is not None:
        usage.details = (details or {}) | {"container": container}
    add(usage, outcome)


def usage_of_answer(answer: dict[str, Any]) -> Usage | None:
    """All that an answer object says was used; None where it says nothing."""
    usage = usage_of(answer.get("usage"))
    if "output_items" in answer or "tool_usage" in answer or "svg_usage" in answer:
        found = ((name, details_of(answer.get(name))) for name in BESIDE)
        extra = {name: details for name, details in found if details is not None and is_positive(details)}
        if extra:
            if named := _tool_models(answer):
                extra["tool_models"] = named
            if usage is None:
                usage = Usage()
            usage.details = (usage.details or {}) | extra
    return usage


def add(usage: Usage, outcome: Outcome) -> None:
    """Add what one object says to what earlier ones of the same answer said."""
    if outcome.usage is None:
        outcome.usage = usage
    else:
        merge(outcome.usage, usage)


def finish_message(outcome: Outcome) -> None:
    """Nothing of the message comes any more."""
    if outcome.usage is not None:
        count_message(outcome.usage)


def break_off(outcome: Outcome) -> None:
    """The answer ended before its own end: what it said may not be all."""
    if outcome.usage is not None:
        outcome.usage = without_zeros(outcome.usage)
        outcome.partial = outcome.usage is not None


def _tool_models(answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer says of its tools that their prices go by: the model that makes images, which search it was where
    that is the preview, and the memory of the containers."""
    named: dict[str, Any] = {}
    tools = answer.get("tools")
    for tool in tools if type(tools) is list else ():
        if type(tool) is not dict:
            continue
        kind = text_of(tool.get("type")) or ""
        container = tool.get("container") or tool.get("environment")
        if kind == "image_generation" and (model := text_of(tool.get("model"))):
            named[kind] = model
        elif kind.startswith("web_search_preview"):
            named["web_search"] = kind
        elif type(container) is dict and (memory := text_of(container.get("memory_limit"))):
            named["code_interpreter"] = memory
    return named
