"""Take the figures of a usage object: only numbers that can be counts, and none is made up."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from flowstack.memo import CUT, Memo, cut
from flowstack.tokens import hide_keys
from flowstack.usage.model import Usage

_BITS: Final = 38
MAX_COUNT: Final = 1 << _BITS
"""No count of one answer, or one batch, comes near 275 thousand million; and three of them together are fewer than what
the index takes for a figure. ``>> 38`` is the short way to ask: it is 0 for what is below, and -1 for what is below
zero."""

MAX_DETAILS: Final = 32
"""Members kept of one object."""

MAX_ITEMS: Final = 64
"""Items kept of one list. Of a longer one the last is ``…``."""

MAX_DEPTH: Final = 5
"""Levels of objects and lists kept below the usage object."""

MAX_FIGURES: Final = 256
"""Figures and texts kept of all usage objects of one answer, where several are put together."""

MAX_NAME: Final = 64
MAX_TEXT: Final = 256
"""Characters kept of a model's name, a tier, an id, a text among the details."""

_ZERO: Final = 0
_COUNTS: Final = frozenset(("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"))
_NAMES: Final = frozenset((
    "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
    "input_token_details", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "audio_tokens", "text_tokens",
    "image_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens", "seconds", "cache_read_input_tokens",
    "cache_creation_input_tokens", "cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens",
    "server_tool_use", "web_search_requests", "web_fetch_requests", "service_tier", "inference_geo", "speed",
    "thinking_tokens",
))  # fmt: skip
"""Known good, so that these need no look."""

_OUTPUTS: Final = ("completion_tokens_details", "output_tokens_details")

_CACHED: Final = ("cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens")
"""What providers that speak OpenAI's API call the cached input where they say it next to the counts: Moonshot,
DeepSeek, Mistral."""


def usage_of(value: Any) -> Usage | None:
    """What an OpenAI usage object says.

    Its members are ``prompt_tokens`` and ``completion_tokens`` (chat, completions, embeddings) or ``input_tokens`` and
    ``output_tokens`` (responses, images, audio, batches, realtime), ``total_tokens``, and objects of details (OpenAI
    reference).

    :param value: whatever stood as ``usage``.
    :return: None where it says nothing at all.
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
        if "input_token_details" in value or "output_token_details" in value:  # audio, realtime
            inputs_name, outputs_name = "input_token_details", "output_token_details"
        elif "prompt_tokens_details" in value or "completion_tokens_details" in value:  # without their counts
            inputs_name, outputs_name = "prompt_tokens_details", "completion_tokens_details"
    inputs, outputs, total = get(inputs_name), get(outputs_name), get("total_tokens")
    # Whole numbers are within bounds together if each of them is.
    counts = type(prompt) is type(completion) is type(total) is int and not (prompt | completion | total) >> _BITS
    if counts and len(value) == 5 and _plain(inputs) and _plain(outputs):
        # As OpenAI has it, whole: no member needs a look of its own.
        details = {inputs_name: inputs, outputs_name: outputs}
        cached, written = inputs.get("cached_tokens"), inputs.get("cache_write_tokens")
        return Usage(prompt, cached, completion, outputs.get("reasoning_tokens"), total, details, written)
    prompt, completion, total = _count(prompt), _count(completion), _count(total)
    further = _details(value, _COUNTS, MAX_DEPTH)
    if prompt is None and completion is None and total is None and further is None:
        return None
    cached, reasoning = _detail(inputs, "cached_tokens"), _detail(outputs, "reasoning_tokens")
    if further is not None:
        if cached is None:
            cached = next((further[name] for name in _CACHED if type(further.get(name)) is int), None)
        if reasoning is None:  # xAI, Perplexity
            reasoning = _count(further.get("reasoning_tokens"))
    return Usage(prompt, cached, completion, reasoning, total, further, _detail(inputs, "cache_write_tokens"))


def count_message(usage: Usage) -> None:
    """Make an Anthropic usage object's figures those of all input and output that is billed.

    It counts what was read from and written to the cache apart: all input is the sum of the three (Anthropic reference,
    prompt caching). And where the model was asked more than once, ``iterations`` has an entry for each time; the
    totals next to it leave out some: a compaction, an advisor, what a tool's result made the model read again. What is
    billed is the sum of the entries (Anthropic reference, compaction, advisor tool). Where an entry says nothing, or
    there are more than are kept, the totals are unknown.
    """
    details = usage.details
    if details is None:
        return
    cached, written = details.get("cache_read_input_tokens"), details.get("cache_creation_input_tokens")
    if type(cached) is not int:
        cached = None
    if type(written) is not int:
        written = None
    usage.cached_tokens, usage.cache_write_tokens = cached, written
    if usage.prompt_tokens is not None:
        usage.prompt_tokens += (cached or 0) + (written or 0)
    if "iterations" in details and type(iterations := details["iterations"]) is list:
        sums = [_input_and_output(entry) for entry in iterations]
        if None in sums:
            usage.prompt_tokens = usage.cached_tokens = usage.cache_write_tokens = usage.completion_tokens = None
            return
        known = [each for each in sums if each is not None]
        usage.prompt_tokens = max(usage.prompt_tokens or 0, sum(each[0] for each in known))
        usage.cached_tokens = max(cached or 0, sum(each[1] for each in known))
        usage.cache_write_tokens = max(written or 0, sum(each[2] for each in known))
        usage.completion_tokens = max(usage.completion_tokens or 0, sum(each[3] for each in known))


def _input_and_output(entry: Any) -> tuple[int, int, int, int] | None:
    """All input of an iteration, what of it was read from and written to the cache, and its output; None if it says
    neither input nor output."""
    if type(entry) is not dict:
        return None
    taken, given = _count(entry.get("input_tokens")), _count(entry.get("output_tokens"))
    if taken is None or given is None:
        return None
    cached, written = _detail(entry, "cache_read_input_tokens") or 0, _detail(entry, "cache_creation_input_tokens") or 0
    return taken + cached + written, cached, written, given


def merge(known: Usage, later: Usage) -> None:
    """Add to what is known what another usage object of the same answer says.

    A later figure takes the place of an earlier one of the same name, as they are cumulative; what is not said (or
    null) takes the place of none, and neither does a 0 that of a count. A total goes when one of its parts is said
    again without it.
    """
    if later.total_tokens is None and (
        _changes(known.prompt_tokens, later.prompt_tokens) or _changes(known.completion_tokens, later.completion_tokens)
    ):
        known.total_tokens = None
    known.prompt_tokens = later.prompt_tokens or _else(known.prompt_tokens, later.prompt_tokens)
    known.cached_tokens = later.cached_tokens or _else(known.cached_tokens, later.cached_tokens)
    known.completion_tokens = later.completion_tokens or _else(known.completion_tokens, later.completion_tokens)
    known.reasoning_tokens = later.reasoning_tokens or _else(known.reasoning_tokens, later.reasoning_tokens)
    known.total_tokens = later.total_tokens or _else(known.total_tokens, later.total_tokens)
    known.cache_write_tokens = later.cache_write_tokens or _else(known.cache_write_tokens, later.cache_write_tokens)
    if later.details is not None:
        if known.details is None:
            known.details = later.details
        else:
            _merge_details(known.details, later.details, _Room(known.details))


def add_output(whole: Usage, share: Usage) -> None:
    """Add one choice's usage to that of others of the same answer: its output, for they share their input."""
    for name in ("completion_tokens", "reasoning_tokens"):
        ours, theirs = getattr(whole, name), getattr(share, name)
        if theirs is not None:
            setattr(whole, name, theirs if ours is None else ours + theirs)
    if share.prompt_tokens is not None:
        whole.prompt_tokens = max(whole.prompt_tokens or 0, share.prompt_tokens)
    whole.total_tokens = None
    if whole.prompt_tokens is not None and whole.completion_tokens is not None:
        whole.total_tokens = whole.prompt_tokens + whole.completion_tokens
    details = {name: inner for name in _OUTPUTS if type(inner := (share.details or {}).get(name)) is dict}
    if whole.details is None:
        whole.details = details or None
        return
    for name, inner in details.items():
        ours = whole.details.setdefault(name, {})
        for detail, figure in inner.items():
            if type(figure) is int and type(had := ours.get(detail, 0)) is int:
                ours[detail] = had + figure


def without_zeros(usage: Usage) -> Usage | None:
    """What an answer that broke off says for sure: a 0 may only have been the beginning. None where that is nothing."""
    if not says_something(usage):
        return None
    if not usage.prompt_tokens:
        usage.prompt_tokens = usage.cached_tokens = usage.cache_write_tokens = None
    if not usage.completion_tokens:
        usage.completion_tokens = usage.reasoning_tokens = None
    usage.total_tokens = usage.total_tokens or None
    return usage


def says_something(usage: Usage) -> bool:
    """Whether any figure is above 0."""
    return bool(usage.prompt_tokens or usage.completion_tokens or usage.total_tokens or is_positive(usage.details))


def is_positive(details: Any) -> bool:
    """Whether a number among them is above 0."""
    kind = type(details)
    if kind is dict:
        return any(map(is_positive, details.values()))
    if kind is list:
        return any(map(is_positive, details))
    return (kind is int or kind is float) and details > 0


def details_of(value: Any) -> dict[str, Any] | None:
    """What can be kept of another object than the usage object; None where it says nothing."""
    return _details(value, _NOTHING, MAX_DEPTH - 1) if type(value) is dict else None


def text_of(value: Any) -> str | None:
    """A name that an upstream gave, of bounded length; None where it is no text or empty. No key stands in it."""
    return texts[value] if type(value) is str and value else None


def _name(value: str) -> str:
    return hide_keys(cut(value, MAX_TEXT))


texts: Final = Memo(_name, longest=MAX_TEXT)


def _count(value: Any) -> int | None:
    """A bool is no count, and neither is what is negative, absurd, or not an integer."""
    return value if type(value) is int and not value >> _BITS else None


def _detail(details: Any, name: str) -> int | None:
    return _count(details.get(name)) if type(details) is dict else None


def _details(value: dict[str, Any], known: frozenset[str], depth: int) -> dict[str, Any] | None:
    """What an object and those in it say, but for the known members; None where that is nothing."""
    kept: dict[str, Any] = {}
    for name, figure in value.items():
        if name in known:
            continue
        if name not in _NAMES and not _is_name(name):
            continue
        kind = type(figure)
        if kind is int or kind is float:
            if not 0 <= figure < MAX_COUNT:
                continue
        elif kind is not dict or not _plain(figure):
            figure = _kept(figure, depth)
            if figure is None:
                continue
        kept[name] = figure
        if len(kept) == MAX_DETAILS:
            break
    return kept or None


def _kept(value: Any, depth: int) -> Any:
    """What is kept of a value among the details; None where it says nothing."""
    kind = type(value)
    if kind is str:
        return text_of(value)
    if kind is bool:
        return value
    if kind is int or kind is float:
        return value if 0 <= value < MAX_COUNT else None
    if depth <= 1:
        return None
    if kind is dict:
        return _details(value, _NOTHING, depth - 1)
    if kind is list:
        items = [kept for item in value[:MAX_ITEMS] if (kept := _kept(item, depth - 1)) is not None]
        if len(value) > MAX_ITEMS:
            items[MAX_ITEMS - 1 :] = [CUT]
        return items or None
    return None


def _plain(details: Any) -> TypeGuard[dict[str, int]]:
    """Whether it is what it nearly always is: an object of counts under well-known names, to be kept as it stands."""
    if type(details) is not dict or not details or not _NAMES.issuperset(details):
        return False
    for figure in details.values():
        # Most are 0, which then is this very object, and needs no further look.
        if figure is not _ZERO and (type(figure) is not int or figure >> _BITS):
            return False
    return True


_NOTHING: Final[frozenset[str]] = frozenset()


def _is_name(name: str) -> bool:
    """Whether a member's name is one, rather than a place for text."""
    return len(name) <= MAX_NAME and name.isascii() and name.isidentifier()


def has_figure(usage: Usage) -> bool:
    """Whether there is any, be it 0; texts alone are none."""
    if usage.prompt_tokens is not None or usage.completion_tokens is not None or usage.total_tokens is not None:
        return True
    return _has_figure(usage.details)


def _has_figure(details: Any) -> bool:
    """Whether a number is among them."""
    kind = type(details)
    if kind is dict:
        return any(map(_has_figure, details.values()))
    if kind is list:
        return any(map(_has_figure, details))
    return kind is int or kind is float


def _changes(known: int | None, later: int | None) -> bool:
    return bool(later) and known is not None and known != later


def _else(known: int | None, later: int | None) -> int | None:
    """What is known, where what comes later is 0 or nothing."""
    return later if known is None else known


class _Room:
    """How many figures there may be more among the details; counted only once something new is to be added."""

    __slots__ = ("_details", "_left")

    def __init__(self, details: dict[str, Any]) -> None:
        self._details = details
        self._left: int | None = None

    def has(self, more: int) -> bool:
        """Whether there is room for ``more`` figures; if so, they count as added."""
        if self._left is None:
            self._left = MAX_FIGURES - _size(self._details)
        if more > self._left:
            return False
        self._left -= more
        return True


def _merge_details(known: dict[str, Any], later: dict[str, Any], room: _Room) -> None:
    """As :func:`merge`."""
    for name, value in later.items():
        had = known.get(name)
        kind = type(value)
        if kind is dict and type(had) is dict:
            _merge_details(had, value, room)
        elif had is None or value or kind is bool:
            if (had is None or kind is dict or kind is list) and not room.has(_size(value) - _size(had)):
                continue
            known[name] = value


def _size(value: Any) -> int:
    """How many figures and texts there are, each object and list being one too."""
    kind = type(value)
    if kind is dict:
        return 1 + sum(map(_size, value.values()))
    if kind is list:
        return 1 + sum(map(_size, value))
    return 0 if value is None else 1
