"""Read from a request's body what its limits, its checks and its row need.

No byte is changed. A complete body is read at once (:func:`read_request_facts`), any other as it passes
(:func:`reader_for`), both in bounded memory. Names are those of the OpenAI reference, each in its own API: chat,
completions, responses, embeddings, images, audio.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, Protocol

import orjson

from flowstack.usage.forms import FLAG, NUMBER, TEXT, Fields, Wanted, boundary_of
from flowstack.usage.inner import Inner
from flowstack.usage.members import MAX_VALUE, Found, Members, Names, items_of, plain_members

BodyKind = Literal["json", "multipart"] | None
"""What an operation takes: JSON, a form, or nothing that is read."""

NAMES: Final = Names.of((
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens",
    "max_response_output_tokens", "n", "best_of", "service_tier", "prompt", "thinking", "reasoning", "prediction",
), inner=True)  # fmt: skip

MAX_NUMBER: Final = 2**53
"""The largest number of tokens or choices that is believed: up to it all parsers agree on what a number is (RFC 8259
§6)."""

USUAL: Final = 256
"""Characters of a model's name, and names, of what is kept for the next body that asks for no more."""

_READ: Final = frozenset(("model", "stream"))
_LIMITS: Final = frozenset((
    "max_tokens", "max_completion_tokens", "max_output_tokens", "max_response_output_tokens",
))  # fmt: skip
_NO_MOST: Final = "inf"
"""What Realtime calls an answer that may be as long as it gets."""

_CHOICES: Final = frozenset(("n", "best_of"))
_THINKING: Final = {"thinking": "budget_tokens", "reasoning": "max_tokens"}
"""What may be said of how long a model thinks: Anthropic's extended thinking, and what routers call it."""

_STORED: Final = frozenset(("conversation", "previous_response_id"))

_FORM: Final = Wanted(
    dict.fromkeys(("model", "service_tier", "conversation", "previous_response_id"), TEXT)
    | dict.fromkeys(_LIMITS | _CHOICES, NUMBER)
    | {"stream": FLAG}
)
"""What is read of a form; there ``prompt`` is a text, and ``stream_options`` is nothing."""

_NONE: Final[Set[str]] = frozenset()
NOTHING: Final = Inner()
"""What most bodies name there."""


_json_type = re.compile(rb'application/json[ \t]*(?:;[ \t]*charset="?utf-?8"?[ \t]*)?', re.IGNORECASE).fullmatch
"""No other type that ends in ``json``: some servers look for words in it, and read ``urlencoded+json`` as a form."""


@dataclass
class RequestFacts:
    """What a body asks for; None is what it does not say.

    :ivar model: as it stands in the body; None too where it is no text.
    :ivar stream: whether the answer is to be streamed.
    :ivar include_usage: what ``stream_options`` says of it.
    :ivar limits: the most tokens that each choice may have, by the member that declares it.
    :ivar boundless: whether it says that there is no most.
    :ivar thinking: tokens that it may think, by what is declared.
    :ivar predicted: whether it has a prediction of its answer, which is billed as output where it is wrong.
    :ivar n: choices asked for: the larger of ``n`` and ``best_of``.
    :ivar prompts: how many are to be answered, with ``n`` choices each (completions API).
    :ivar stored_prompt: whether the prompt is kept by the upstream, and may name another model (responses API).
    :ivar parts: of a form; ``files`` of these have the name of a file.
    :ivar inner: what it names below its top level; never changed.
    :ivar repeated: what came more than once, of all that is read here: two parsers may take different ones.
    :ivar fault: why the body cannot be relied on, or None. It stands behind "the request body cannot be read: ".
    :ivar vague: why it is unclear whether the answer will report its usage, or None; completes the same sentence where
        that matters.
    """

    model: str | None = None
    stream: bool = False
    include_usage: bool | None = None
    limits: dict[str, int] | None = None
    boundless: bool = False
    thinking: int = 0
    predicted: bool = False
    n: int | None = None
    prompts: int = 1
    service_tier: str | None = None
    stored_prompt: bool = False
    parts: int = 0
    files: int = 0
    inner: Inner = field(default_factory=lambda: NOTHING)
    repeated: Set[str] = _NONE
    fault: str | None = None
    vague: str | None = None

    @property
    def repeated_model(self) -> bool:
        """Whether the body names a model more than once."""
        return "model" in self.repeated


class BodyReader(Protocol):
    """Reads a body as it passes."""

    @property
    def pending(self) -> int:
        """The offset from which on nothing may go upstream yet, so that the upstream has no whole body."""

    @property
    def fault(self) -> str | None:
        """Why the body cannot be relied on, as soon as that has come; as :attr:`RequestFacts.fault` will say it."""

    def feed(self, piece: bytes) -> None:
        """Read on."""

    def so_far(self) -> RequestFacts:
        """What was asked for by now. What has a fault will have one, or will say a name twice, whatever follows."""

    def finish(self) -> RequestFacts:
        """The end has come: what was asked for."""


class JsonReader:
    """A JSON body.

    :param names: of its members; more than :data:`NAMES` are for the caller to read.
    :ivar members: what was found in it so far.
    """

    __slots__ = ("members",)

    def __init__(self, names: Names = NAMES) -> None:
        self.members = Members(names)

    @property
    def pending(self) -> int:
        """The object's closing brace, or the last byte that came while there is none to be relied on."""
        members = self.members
        return members.size - 1 if members.closed is None or members.fault is not None else members.closed

    @property
    def fault(self) -> str | None:
        """What is wrong with what came so far."""
        return self.members.fault

    def feed(self, piece: bytes) -> None:
        """Read on. More white space behind the object than can be held back with its end is a fault."""
        members = self.members
        members.feed(piece)
        if members.fault is None and members.closed is not None and members.size - members.closed > MAX_VALUE:
            members.fault = f"more than {MAX_VALUE} bytes of white space follow the object"

    def so_far(self) -> RequestFacts:
        """See :class:`BodyReader`."""
        members = self.members
        asked = _facts_with_care(members)
        assert members.inner is not None
        asked.inner = members.inner
        return asked

    def finish(self) -> RequestFacts:
        """The end has come."""
        self.members.finish()
        return self.so_far()


class FormReader:
    """A ``multipart/form-data`` body."""

    __slots__ = ("_fields",)

    def __init__(self, boundary: bytes) -> None:
        self._fields = Fields(boundary, _FORM)

    @property
    def pending(self) -> int:
        """What may belong to the last delimiter."""
        return min(self._fields.pending, self._fields.size - 1)

    @property
    def fault(self) -> str | None:
        """What is wrong with what came so far."""
        return self._fields.fault

    def feed(self, piece: bytes) -> None:
        """Read on."""
        self._fields.feed(piece)

    def finish(self) -> RequestFacts:
        """The end has come."""
        self._fields.finish()
        return self.so_far()

    def so_far(self) -> RequestFacts:
        """See :class:`BodyReader`."""
        fields = self._fields
        values = {name: _form_value(name, text) for name, text in fields.values.items()}
        too_large = dict.fromkeys(fields.too_large, 0)
        asked = _facts_with_care(Found(values, fields.repeated, too_large, fields.fault))
        asked.parts, asked.files = fields.parts, fields.files
        asked.vague = "it is a form, where application/json is expected"
        return asked


class OpaqueReader:
    """A body that cannot be read; its bytes are counted."""

    __slots__ = ("_size", "fault")

    def __init__(self, fault: str) -> None:
        self.fault: str | None = fault
        self._size = 0

    @property
    def pending(self) -> int:
        """The last byte that came."""
        return self._size - 1

    def feed(self, piece: bytes) -> None:
        """Count."""
        self._size += len(piece)

    def so_far(self) -> RequestFacts:
        """See :class:`BodyReader`."""
        return RequestFacts(fault=self.fault)

    def finish(self) -> RequestFacts:
        """The end has come."""
        return self.so_far()


def reader_for(body: BodyKind, headers: Mapping[bytes, bytes]) -> BodyReader | None:
    """What reads the body of a request, or None where the operation has none that matters.

    The Content-Type decides between JSON and a form, for some operations take both; without one the operation does.

    :param headers: by lower-case name. Whether Content-Type and Content-Encoding came once is for the caller to see.
    """
    if body is None:
        return None
    coding = headers.get(b"content-encoding", b"identity")
    if coding.strip().lower() not in (b"identity", b""):
        return OpaqueReader("it is content-coded; send it without a Content-Encoding")
    content_type = headers.get(b"content-type")
    if content_type == b"application/json" or (content_type is None and body == "json"):
        return JsonReader()
    content_type = b"" if content_type is None else content_type.strip()
    if _json_type(content_type):
        return JsonReader()
    boundary = boundary_of(headers.get(b"content-type", b""))
    if boundary is not None:
        return FormReader(boundary)
    wanted = "application/json in UTF-8" if body == "json" else "multipart/form-data with one plain boundary"
    return OpaqueReader(f"its Content-Type is not {wanted}")


def read_request_facts(kind: BodyKind, headers: Mapping[bytes, bytes], body: bytes) -> RequestFacts | None:
    """Read a complete body: the same result as from :func:`reader_for`, in 1 to 2 µs more than orjson takes."""
    if kind is None:
        return None
    if headers.get(b"content-type") != b"application/json" or b"content-encoding" in headers:
        reader = reader_for(kind, headers)
        if not isinstance(reader, JsonReader):
            assert reader is not None
            reader.feed(body)
            return reader.finish()
    values = plain_members(body, NAMES)
    if values is not None:
        if len(values) < 3:
            model, stream = values.get("model"), values.get("stream")
            if len(values) == 1 + (type(stream) is bool) and type(model) is str and len(model) <= USUAL:
                return _usual(model, stream is True)
        return _facts(values)
    reader = JsonReader()
    reader.feed(body)
    return reader.finish()


def model_of(kind: BodyKind, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
    """Read only the model of a complete body: the same as from :func:`read_request_facts`, faster."""
    if kind is None:
        return None
    plain = headers.get(b"content-type") == b"application/json" and b"content-encoding" not in headers
    if plain and len(body) <= MAX_VALUE:
        try:
            model = orjson.loads(body)["model"]
        except (ValueError, KeyError, TypeError):
            pass  # rare: read again, with care
        else:
            return model if type(model) is str else None
    asked = read_request_facts(kind, headers, body)
    return None if asked is None else asked.model


@lru_cache(USUAL)
def _usual(model: str, stream: bool) -> RequestFacts:
    """What most bodies ask for: shared, so never changed."""
    return RequestFacts(model, stream)


def _facts(values: Mapping[str, Any]) -> RequestFacts:
    model, stream = values.get("model"), values.get("stream")
    asked = RequestFacts(model if type(model) is str else None, stream is True)
    if stream is not None and type(stream) is not bool:
        asked.vague = f"stream is {_shown(stream)}, where true or false is expected"
    n = None
    bounded = False
    for name, value in values.items():
        if name in _READ:
            continue
        if name in _LIMITS:
            if type(value) is int and 0 <= value <= MAX_NUMBER:
                count: int | None = value
            else:
                count = -1 if value == _NO_MOST else _count(asked, name, value)
            if count is None:
                continue
            if count < 0:
                asked.boundless = True
                continue
            bounded = True
            if asked.limits is None:
                asked.limits = {}
            asked.limits[name] = count
        elif name in _CHOICES:
            n = _larger(n, _count(asked, name, value))
        elif name in _STORED:  # in a form; in JSON they are found wherever they stand
            if asked.inner is NOTHING:
                asked.inner = Inner()
            asked.inner.refers(name)
        elif name == "prompt":
            asked.stored_prompt = type(value) is dict
            if type(value) is list:
                asked.prompts = max(1, items_of(value))
        elif name == "service_tier":
            asked.service_tier = value if type(value) is str else None
        elif name == "prediction":
            asked.predicted = value is not None
        elif name == "stream_options":
            _options(asked, value)
        elif type(value) is dict and name in _THINKING:
            asked.thinking = max(asked.thinking, _count(asked, _THINKING[name], value.get(_THINKING[name])) or 0)
    if bounded and asked.boundless:
        asked.fault = "it declares a maximum of tokens, and that there is none"
    if n is not None:
        if n < 0:
            asked.fault = f"n or best_of is {n}, which is no number of choices"
        else:
            asked.n = n
    return asked


def _options(asked: RequestFacts, options: Any) -> None:
    """What ``stream_options`` says of usage."""
    if type(options) is not dict:
        if options is not None:
            asked.vague = f"stream_options is {_shown(options)}, where an object is expected"
        return
    include = options.get("include_usage")
    if type(include) is bool:
        asked.include_usage = include
    elif include is not None:
        asked.vague = f"include_usage is {_shown(include)}, where true or false is expected"
    if any(inner != "include_usage" and inner.casefold() == "include_usage" for inner in options):
        asked.repeated = frozenset(("stream_options",))  # Go's encoding/json takes it for that


def _shown(value: Any) -> str:
    """What a value is, for a person: never more of a body than that."""
    return {bool: "true or false", str: "a text", list: "a list", dict: "an object"}.get(type(value), "a number")


def _facts_with_care(found: Found) -> RequestFacts:
    asked = _facts(found.values)
    if found.repeated:
        asked.repeated = found.repeated | asked.repeated
    if found.too_large:
        _too_large(asked, found.too_large, found.items)
    if found.fault is not None:
        asked.fault = found.fault
    return asked


def _too_large(asked: RequestFacts, sizes: Mapping[str, int], items: int) -> None:
    for name, first in sizes.items():
        if name == "prompt":
            asked.stored_prompt = first == ord("{")
            if first == ord("["):
                asked.prompts = max(1, items)
        elif name == "prediction":
            asked.predicted = True
        else:
            asked.fault = f"the value of {name} is longer than {MAX_VALUE} bytes"


def _count(asked: RequestFacts, name: str, value: Any) -> int | None:
    """A number of tokens or choices, also where it is written as some servers would take it; None is what null says.

    What is less than 0 is -1: some servers take it for "no most". What is no number, or beyond all sense, is a fault.
    """
    if value is None or value == "":
        return None
    if type(value) is str and len(value) < 20 and value.isascii() and value.isdecimal():
        value = int(value)
    if type(value) is float:
        value = math.ceil(value) if -1.0 < value <= MAX_NUMBER else -1 if value < 0.0 else MAX_NUMBER + 1
    if type(value) is not int or value > MAX_NUMBER:
        asked.fault = f"{name} is no number from 0 to {MAX_NUMBER}, nor null"
        return None
    return max(value, -1)


def _larger(one: int | None, other: int | None) -> int | None:
    if one is None:
        return other
    return one if other is None or other < one else other


def _form_value(name: str, text: str) -> Any:
    """What a form's text stands for: there all values are text."""
    return text.lower() in ("true", "1") if name == "stream" else text
