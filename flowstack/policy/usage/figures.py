"""From a usage object to figures: only numbers that can be counts are taken, and nothing is computed in their stead."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from flowstack.memo import Memo, cut
from flowstack.policy.keys import hide_keys
from flowstack.policy.usage.model import Usage

_BITS: Final = 38
MOST: Final = 1 << _BITS
"""No count of one answer, or one batch, comes near 275 thousand million; and three of them together are fewer than what
the index takes for a figure. ``>> 38`` is the short way to ask: it is 0 for what is below, and -1 for what is below
zero."""

MAX_DETAILS: Final = 32
"""Figures kept of one object."""

MAX_DEPTH: Final = 3
"""Levels kept below the usage object."""

MAX_NAME: Final = 64
MAX_TEXT: Final = 256
"""Characters kept of a model's name, a tier, an id."""

_ZERO: Final = 0
_COUNTS: Final = frozenset(("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"))
_NAMES: Final = frozenset((
    "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
    "input_token_details", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "audio_tokens", "text_tokens",
    "image_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens", "seconds",
))  # fmt: skip
"""Known good, so that these need no look."""


def usage_of(value: Any) -> Usage | None:
    """The figures of an OpenAI usage object.

    Its members are ``prompt_tokens`` and ``completion_tokens`` (chat, completions, embeddings) or ``input_tokens`` and
    ``output_tokens`` (responses, images, audio, batches), ``total_tokens``, and objects of details (OpenAI reference).

    :param value: whatever stood as ``usage``.
    :return: None where it holds no figure at all.
    """
    if type(value) is not dict:
        return None
    get = value.get
    if "prompt_tokens" in value or "completion_tokens" in value:
        prompt, completion = get("prompt_tokens"), get("completion_tokens")
        inputs_name, outputs_name = "prompt_tokens_details", "completion_tokens_details"
    else:
        prompt, completion = get("input_tokens"), get("output_tokens")
        inputs_name, outputs_name = "input_tokens_details", "output_tokens_details"
        if "input_token_details" in value:  # audio
            inputs_name = "input_token_details"
    inputs, outputs, total = get(inputs_name), get(outputs_name), get("total_tokens")
    if type(prompt) is not int or prompt >> _BITS:
        prompt = None
    if type(completion) is not int or completion >> _BITS:
        completion = None
    if type(total) is not int or total >> _BITS:
        total = None
    elif len(value) == 5 and prompt is not None and completion is not None and _plain(inputs) and _plain(outputs):
        # As OpenAI has it, whole: no member needs a look of its own.
        details = {inputs_name: inputs, outputs_name: outputs}
        return Usage(prompt, inputs.get("cached_tokens"), completion, outputs.get("reasoning_tokens"), total, details)
    further = _details(value, _COUNTS, MAX_DEPTH)
    if prompt is None and completion is None and total is None and further is None:
        return None
    cached, reasoning = _detail(inputs, "cached_tokens"), _detail(outputs, "reasoning_tokens")
    return Usage(prompt, cached, completion, reasoning, total, further)


def message_usage_of(value: Any) -> Usage | None:
    """The figures of an Anthropic usage object, which counts what was read from and written to the cache apart.

    (Anthropic reference, prompt caching: all input is the sum of the three.)
    """
    usage = usage_of(value)
    if usage is not None:
        usage.cached_tokens = _count(value.get("cache_read_input_tokens"))
        if usage.prompt_tokens is not None:
            written = _count(value.get("cache_creation_input_tokens"))
            usage.prompt_tokens += (usage.cached_tokens or 0) + (written or 0)
    return usage


def text_of(value: Any) -> str | None:
    """A name that an upstream gave, of bounded length; None where it is no text or empty. No key stands in it."""
    return _texts[value] if type(value) is str and value else None


def _name(value: str) -> str:
    return hide_keys(cut(value, MAX_TEXT))


_texts: Final = Memo(_name, longest=MAX_TEXT)


def _count(value: Any) -> int | None:
    """A bool is no count, and neither is what is negative, absurd, or not an integer."""
    return value if type(value) is int and not value >> _BITS else None


def _detail(details: Any, name: str) -> int | None:
    return _count(details.get(name)) if type(details) is dict else None


def _details(value: dict[str, Any], known: frozenset[str], depth: int) -> dict[str, Any] | None:
    """The figures of an object and of those in it, but for the known ones; None where there are none."""
    kept: dict[str, Any] = {}
    for name, figure in value.items():
        if name in known:
            continue
        if name not in _NAMES and not _is_name(name):
            continue
        kind = type(figure)
        if kind is int or kind is float:
            if not 0 <= figure < MOST:
                continue
        elif kind is not dict or depth <= 1:
            continue
        elif not _plain(figure):
            figure = _details(figure, _NOTHING, depth - 1)
            if figure is None:
                continue
        kept[name] = figure
        if len(kept) == MAX_DETAILS:
            break
    return kept or None


def _plain(details: Any) -> TypeGuard[dict[str, int]]:
    """Whether it is what it nearly always is: an object of counts under well-known names, to be kept as it stands."""
    if type(details) is not dict or not details:
        return False
    for name, figure in details.items():
        # Most are 0, which then is this very object, and needs no further look.
        if name not in _NAMES or (figure is not _ZERO and (type(figure) is not int or figure >> _BITS)):
            return False
    return True


_NOTHING: Final[frozenset[str]] = frozenset()


def _is_name(name: str) -> bool:
    """Whether a member's name is one, rather than a place for text."""
    return len(name) <= MAX_NAME and name.isascii() and name.isidentifier()
