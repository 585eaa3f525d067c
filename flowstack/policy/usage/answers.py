"""What an answer object says was used, and whether this call is the one that is charged for it."""

from __future__ import annotations

from typing import Any, Final

from flowstack.policy.operations import Operation
from flowstack.policy.usage.figures import message_usage_of, text_of, usage_of
from flowstack.policy.usage.model import Outcome

MEMBERS: Final = ("id", "model", "service_tier", "status", "background", "usage")
"""The members of an answer that are looked at, whatever the family."""

FINISHED: Final = frozenset(("completed", "incomplete", "failed", "cancelled", "expired"))
"""The states of a response or a batch that no other follows (OpenAI reference: responses, batches)."""


def is_finished(status: Any) -> bool:
    """Whether a status, if it is one at all, is of those."""
    return type(status) is str and status in FINISHED


def take_answer(operation: Operation, answer: dict[str, Any], outcome: Outcome) -> None:
    """Put what an answer object says into an outcome; what it does not say stays as it was.

    An answer to a generating call is charged as it stands. What worked in the background (a response with
    ``background``, a batch) is charged when it is seen finished, in whichever answer, and by its id: other answers
    will say the same again. Any other retrieval repeats what an earlier call was charged for.
    """
    model = text_of(answer.get("model"))
    if model is not None:
        outcome.model = model
    tier = text_of(answer.get("service_tier"))
    if tier is not None:
        outcome.service_tier = tier
    value = answer.get("usage")
    if value is None:
        return
    charge_id = None
    if operation.family == "batch" or answer.get("background") is True:
        charge_id = text_of(answer.get("id"))
        if charge_id is None or not is_finished(answer.get("status")):
            return
    elif not operation.generates:
        return
    usage = usage_of(value)
    if usage is not None:
        outcome.usage = usage
        outcome.charge_id = charge_id


def take_message(message: dict[str, Any], outcome: Outcome) -> None:
    """The same for an Anthropic message, whose tier stands among the figures (Anthropic reference, messages)."""
    outcome.model = text_of(message.get("model")) or outcome.model
    value = message.get("usage")
    if type(value) is dict:
        outcome.usage = message_usage_of(value)
        outcome.service_tier = text_of(value.get("service_tier"))
