"""What an answer object says was used, and whether that is this call's, or an earlier one's."""

from __future__ import annotations

from typing import Any, Final

from flowstack.policy.operations import Operation, Work
from flowstack.policy.usage.figures import message_usage_of, text_of, usage_of
from flowstack.policy.usage.model import Late, Outcome, Usage, Used

MEMBERS: Final = ("id", "model", "service_tier", "status", "background", "usage")
"""The members of an answer that are looked at, whatever the family."""

LATE_MEMBERS: Final = (*MEMBERS, "output", "processing_status", "request_counts")
"""The same for an answer to whoever looks after work that was begun before."""

FINISHED: Final = frozenset(("completed", "incomplete", "failed", "cancelled", "expired"))
"""The states of a response or a batch that no other follows (OpenAI reference: responses, batches)."""


def is_finished(status: Any) -> bool:
    """Whether a status, if it is one at all, is of those."""
    return type(status) is str and status in FINISHED


def take_answer(operation: Operation, answer: dict[str, Any], outcome: Outcome) -> None:
    """Put what an answer object says into an outcome; what it does not say stays as it was.

    An answer to a generating call is charged as it stands, unless its work goes on in the background. What other
    answers show of such work, or of a batch, is for whoever began it. Any other retrieval repeats what an earlier call
    was charged for.
    """
    model = text_of(answer.get("model"))
    if model is not None:
        outcome.model = model
    tier = text_of(answer.get("service_tier"))
    if tier is not None:
        outcome.service_tier = tier
    if operation.work is not None and (not operation.generates or answer.get("background") is True):
        late = late_of(operation.work, answer)
        if late is not None:
            outcome.late = (late,)
        if operation.generates and not is_finished(answer.get("status")):
            return
    if not operation.generates:
        return
    value = answer.get("usage")
    if value is None:
        return
    usage = usage_of(value)
    if usage is not None:
        outcome.usage = usage
        outcome.late = ()  # this call's own, after all


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
        usage = usage_of(answer.get("usage"))
        if usage is None and (
            (status == "failed" and (work == "batch" or answer.get("output") == []))
            or (work == "batch" and _count_of(answer, "completed") == 0)
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
    """The same for an Anthropic message, whose tier stands among the figures (Anthropic reference, messages)."""
    outcome.model = text_of(message.get("model")) or outcome.model
    value = message.get("usage")
    if type(value) is dict:
        outcome.usage = message_usage_of(value)
        outcome.service_tier = text_of(value.get("service_tier"))
