"""What a JSON body names at any depth: models, what the upstream has stored, tools that work there, pictures and sound.

An upstream may be a router, which takes models from other places than the top-level ``model``; and the OpenAI reference
refers to stored things from many. So members are judged by their names, wherever they stand and in whatever case, but
for what the reference leaves to the client to name (:data:`_FREE`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, Final

MAX_MODELS: Final = 64
"""Different models that one body may name below its top level."""

MAX_NAME: Final = 256
"""Bytes of a model's name there; and of any other value that is looked at; the rest is only measured."""

ORIGINAL: Final = 7
"""As how many pictures one with ``detail: original`` counts, which is not made smaller."""

AUDIO_TOKENS: Final = 10
"""For 1,000 bytes of sound: OpenAI counts 10 tokens a second, and no MP3 has less than 1,000 bytes of it."""

SPOKEN_BYTES_A_TOKEN: Final = 6_400
"""Of sound as Realtime takes it, in base64: 24,000 samples of two bytes a second, of which 10 tokens are made (OpenAI,
"Managing costs": one for 100 ms)."""

PDF_TOKENS: Final = 200
"""For 1,000 bytes of a PDF, in addition to a picture: a page's text and picture are some 2,500 tokens, and seldom less
than 12,000 bytes."""

STORED_TOKENS: Final = 8_000
"""Of one stored item that is bounded by what one answer holds: its reasoning, its picture, its sound."""

_KNOWN: Final = 4096  # names of members that are remembered
_REFERENCES: Final = 16  # names of references that an error shows


class Fault(Exception):
    """Why a body cannot be relied on."""


@dataclass(frozen=True, eq=False)
class Kind:
    """What a member's name says of its value.

    :ivar name: folded; empty where it says nothing.
    :ivar models: whether text in it, at any depth, is a model's name.
    :ivar refers: whether text in it stands for what the upstream has stored; None: only text that is not in an object.
    :ivar context: whether what it refers to may be of any size.
    :ivar adds: whether it being there lets the upstream add input of any size.
    :ivar noted: whether its value matters together with the others of its object: see :meth:`Inner.ended`.
    :ivar harmless: whether an object that has no others than such needs no closer look.
    :ivar free_in: the names of the members in which it is the client's own, with all that is in it.
    """

    name: str = ""
    models: bool = False
    refers: bool | None = False
    context: bool = False
    adds: bool = False
    noted: bool = False
    harmless: bool = True
    free_in: frozenset[str] = frozenset()


PLAIN: Final = Kind()
BODY: Final = Kind("the body")
"""At the top level. No member has that name."""

FREE: Final = Kind()
"""Within what is the client's own."""

_ITEMS: Final = ("tools", "functions", "function")
_FREE: Final[Mapping[str, Iterable[str]]] = {
    # OpenAI reference, responses and chat: "Set of 16 key-value pairs"; token ids with their bias.
    "metadata": (BODY.name,),
    "logit_bias": (BODY.name,),
    # JSON schemas: of functions (chat ``tools[].function.parameters``, responses ``tools[].parameters``, the old
    # ``functions``), of MCP's tools, of Anthropic's; of ``response_format`` and ``text.format``.
    "parameters": _ITEMS,
    "input_schema": _ITEMS,
    "output_schema": _ITEMS,
    "input_examples": _ITEMS,
    "schema": ("json_schema", "format", "output_format", "response_format"),
    "guided_json": (BODY.name,),  # vLLM's ways to say the same
    "json": ("structured_outputs",),
    # HTTP fields that are sent to an MCP server; environment variables of a local shell's call.
    "headers": ("tools",),
    "env": ("action",),
    # Where an earlier answer's text came from; what an earlier answer called a tool with (Anthropic).
    "annotations": ("content", "messages", "tools"),
    "input": ("content",),
}
"""Members whose inside is the client's own, with the members within which that is so. Arguments of a call are text."""

_STORED: Final = (
    "previous_response_id", "conversation_id", "item_reference", "file_id", "file_ids", "file_url",
    "input_file_id", "vector_store_id", "vector_store_ids", "container_id", "thread_id", "assistant_id", "skill_id",
    "connector_id", "instance_id", "prompt_id",
)  # fmt: skip
"""References of the OpenAI reference; ``file_url`` adds what is not in the body either."""

_OWN_IDS: Final = (
    "tool_call_id", "call_id", "caller_id", "tool_use_id", "approval_request_id", "continuation_id", "stream_id",
    "user_id", "session_id", "trace_id", "request_id", "tool_id", "custom_id",
)  # fmt: skip
"""Of this conversation, or of the client."""

_CHECKS: Final = ("pending_safety_checks", "acknowledged_safety_checks")
_ID_FREE: Final = frozenset((BODY.name, "tool_calls", "plugins", *_CHECKS))
"""Where an ``id`` without a ``type`` is no reference: calls of tools always have one, and routers' plugins."""

_MODELS: Final = ("route", "router", "engine", "engine_id", "deployment", "deployment_id", "deployment_name", "preset")
"""What names a model, in addition to all names with ``model`` or ``fallback`` in them."""

_ADDING: Final = ("web_search_options", "search_parameters", "plugins", "mcp_servers")
"""What has the upstream search, or ask others, and read what it finds: chat, xAI, OpenRouter, Anthropic."""

_CLIENTS: Final = frozenset((
    "function", "custom", "namespace", "local_shell", "apply_patch", "computer", "computer_use_preview",
))  # fmt: skip
_is_clients = re.compile(r"(?:bash|text_editor|computer|memory)_\d+").fullmatch
"""Tools, by their type, that the client works: each call ends the answer. All others work at the upstream, which
reads what they give, again and again (responses API, ``tools``; Anthropic's reference, ``tools``)."""

DRAWS: Final = "image_generation"
"""The tool whose work is pictures."""

_BY_ID: Final = frozenset(("audio", "voice", "prompt", "conversation", "container", "workflow"))
"""What is referred to by an ``id`` in an object, whatever its ``type``."""

_IN_FULL: Final[Mapping[str, str]] = {"reasoning": "encrypted_content", "image_generation_call": "result"}
"""Items of an earlier response, by their type, which are looked up by their ``id`` where this is not in them."""

REQUEST: Final = "params"
"""One request of a message batch (Anthropic reference, ``requests[].params``)."""

_COMPANIONS: Final = frozenset(("type", "media_type", "detail", "encrypted_content", "model"))
_NOTED: Final = ("id", "url", "image_url", "data", "file_data", "b64_json", "result")
_PLACES: Final = (
    "content", "tools", "functions", "function", "tool_calls", "json_schema", "format",
    "output_format", "response_format", "action", "input_audio", "audio_url", "source", "prompt", "audio",
    "voice", "workflow", "messages", "structured_outputs", "thinking",
)  # fmt: skip
"""Names that say where something stands, and nothing of it."""

_TABLE: Final[dict[str, Kind]] = {
    **{name: Kind(name) for name in (*_PLACES, *_CHECKS, *_OWN_IDS, *_FREE)},
    **{name: Kind(name, models=True, harmless=False) for name in _MODELS},
    **{name: Kind(name, refers=True, context=True, harmless=False) for name in _STORED},
    **{name: Kind(name, refers=None, context=True, harmless=False) for name in ("container", "conversation")},
    **{name: Kind(name, adds=True, harmless=False) for name in _ADDING},
    **{name: Kind(name, noted=True) for name in _COMPANIONS},
    **{name: Kind(name, noted=True, harmless=False) for name in _NOTED},
    **{name: Kind(name, noted=True) for name in ("max_tokens", "budget_tokens")},
    REQUEST: Kind(REQUEST, harmless=False),
    "model": Kind("model", models=True, noted=True, harmless=False),
    "audio": Kind("audio", noted=True),
}
for _name, _places in _FREE.items():
    _TABLE[_name] = replace(_TABLE[_name], free_in=frozenset(_places))

ID: Final = _TABLE["id"]
_is_harmless: Final = frozenset(
    [name for name, kind in _TABLE.items() if kind.harmless] + ["role", "text", "name", "arguments"]
).issuperset

_kinds: Final[dict[str, Kind]] = dict(_TABLE)

_OBJECTS: Final = {dict}


def kind_of(name: str) -> Kind:
    """What a member's name says, whatever its case."""
    kind = _kinds.get(name)
    if kind is None:
        folded = name.casefold()
        kind = _TABLE.get(folded) or _by_part(folded)
        if len(name) <= MAX_NAME:
            if len(_kinds) >= _KNOWN:
                _kinds.clear()
            _kinds[name] = kind
    return kind


def _by_part(name: str) -> Kind:
    if "model" in name or "fallback" in name:
        return Kind(name[:MAX_NAME], models=True, harmless=False)
    if name.endswith(("_id", "_ids")):
        return Kind(name[:MAX_NAME], refers=True, harmless=False)
    return PLAIN


def within(role: Kind, kind: Kind, is_object: bool) -> Kind:
    """What holds in a list or an object.

    :param role: what holds around it.
    :param kind: of the member that it is, or is an element of.
    """
    if role is FREE or role.name in kind.free_in:
        return FREE
    if role.models or role.refers or (is_object and kind.refers is None):
        return inherited(role, kind, is_object)
    return kind


@lru_cache(256)
def inherited(role: Kind, kind: Kind, is_object: bool) -> Kind:
    """A kind within what refers or names models itself."""
    refers = False if is_object and kind.refers is None else kind.refers
    return replace(
        kind,
        name=kind.name or role.name,
        models=role.models or kind.models,
        refers=role.refers or refers,
        context=role.context or kind.context,
        harmless=False,
    )


def role_of_member(name: str) -> Kind | None:
    """What holds in a list or an object that is a member of the body itself; None where it needs a closer look."""
    kind = kind_of(name)
    if not kind.harmless:
        return None
    return FREE if BODY.name in kind.free_in else kind


def texts_in(value: Any, role: Kind, levels: int) -> int:
    """How many names and texts a list or an object has, or -1 where something needs a closer look to say what it is.

    Who compares that with the quotes in the body knows whether a name that came twice has hidden something.

    :param role: what holds in it.
    :param levels: that are looked at; what is deeper needs a closer look.
    """
    if not levels:
        return -1
    count = 0
    if role.name == "tools" and any(map(_works, value if type(value) is list else (value,))):
        return -1
    if type(value) is list:
        if {*map(type, value)} == _OBJECTS and _is_harmless(names := [*chain.from_iterable(value)]):
            types = [*map(type, chain.from_iterable(map(dict.values, value)))]
            if list not in types and dict not in types:  # as most lists of messages are
                return len(names) + types.count(str)
        for item in value:
            if type(item) is str:
                count += 1
            elif type(item) is dict or type(item) is list:
                if type(item) is dict and _is_harmless(item):
                    types = [*map(type, item.values())]
                    if list not in types and dict not in types:
                        count += len(types) + types.count(str)
                        continue
                found = texts_in(item, role, levels - 1)
                if found < 0:
                    return -1
                count += found
        return count
    count = len(value)
    if role is not FREE and not _is_harmless(value):
        for name in value:
            kind = _kinds.get(name) or kind_of(name)
            if not kind.harmless and not (kind is ID and role.name in _ID_FREE):
                return -1
    for name, item in value.items():
        if type(item) is str:
            count += 1
        elif type(item) is dict or type(item) is list:
            kind = FREE if role is FREE else _kinds.get(name) or kind_of(name)
            found = texts_in(item, FREE if role.name in kind.free_in else kind, levels - 1)
            if found < 0:
                return -1
            count += found
    return count


def _works(tool: Any) -> bool:
    """Whether a tool, as it is parsed, works at the upstream."""
    return type(tool) is dict and "type" in tool and _hosted(tool["type"])


def _hosted(kind: Any) -> bool:
    """Whether tools of a type work at the upstream."""
    return not (type(kind) is str and (kind in _CLIENTS or _is_clients(kind)))


@dataclass(frozen=True)
class Long:
    """A text that was too long to keep.

    :ivar head: how it begins.
    :ivar size: its bytes, as it stands in the body.
    :ivar base64: whether it may be nothing but base64, after the first comma of its head where there is one.
    """

    head: str
    size: int
    base64: bool


@dataclass
class Inner:
    """What a body names below its top level, as far as it has been read.

    :ivar models: all that text in members that name models says.
    :ivar references: the names of members that refer to what the upstream has stored.
    :ivar context: whether what the upstream adds to it may be of any size.
    :ivar remote: whether it has something by its address, whose content is unknown here.
    :ivar media: bytes that are no text: pictures, sound and PDFs in base64.
    :ivar pictures: that are added, by whatever way.
    :ivar draws: tools whose work is pictures.
    :ivar drawn_by: the model that it names, where there is one such tool.
    :ivar tokens: of sound and PDFs, and of stored things of bounded size.
    :ivar requests: of a message batch.
    :ivar declared: tokens of output that they declare together, but for the ``undeclared`` ones of them.
    """

    models: set[str] = field(default_factory=set)
    references: set[str] = field(default_factory=set)
    context: bool = False
    remote: bool = False
    media: int = 0
    pictures: int = 0
    draws: int = 0
    drawn_by: str | None = None
    tokens: int = 0
    requests: int = 0
    declared: int = 0
    undeclared: int = 0
    _thinking: int = field(default_factory=int, init=False, compare=False)  # declared since the last request of a batch

    def said(self, kind: Kind, text: str | Long) -> None:
        """A text, or a number, stands in a member.

        :param kind: what holds for it.
        :raises Fault: more models are named than can be held against a key.
        """
        if kind.models:
            if isinstance(text, Long):
                raise Fault(f"a model's name in it is longer than {MAX_NAME} bytes")
            self.models.add(text)
            if len(self.models) > MAX_MODELS:
                raise Fault(f"it names more than {MAX_MODELS} models")
        if kind.refers is not False and text:
            self.refers(kind.name, kind.context)

    def ended(self, role: Kind, noted: Mapping[str, list[str | Long | None]]) -> None:
        """An object has ended.

        :param role: what holds in it.
        :param noted: by name the values of its members of such a kind, the first two of each; None is what is no text.
        :raises Fault: it says something twice that matters.
        """
        if role.name == "tools":
            for kind in noted.get("type", ()):
                self.context |= _hosted(kind)
                if kind == DRAWS:
                    self.draws += 1
                    model = noted.get("model", (None,))[-1]
                    self.drawn_by = model if self.draws == 1 and isinstance(model, str) else None
        said = {name: values[0] for name, values in noted.items()}
        if role.name in _ID_FREE:
            said.pop("id", None)
        if role.name == REQUEST:
            self._asks(_number(said.get("max_tokens")))
        if _COMPANIONS.issuperset(said):
            return
        if role.name == "thinking":
            self._thinking = max(self._thinking, _number(said.get("budget_tokens")) or 0)
        if twice := [name for name in said if len(noted[name]) > 1]:
            raise Fault(f"an object in it says {' and '.join(twice)} more than once")
        if said.get("id"):
            self._identified(role, said)
        get = said.get
        self._picture(get("image_url"), get("detail"))
        if role.name == "image_url":
            self._picture(get("url"), get("detail"))
        elif role.name in ("source", "audio_url"):
            self._linked(role, get("url"))
        for text in (get("b64_json"), get("result")):
            if isinstance(text, Long) and text.base64:
                self.pictures += 1
                self.media += text.size
        text = get("file_data")
        if isinstance(text, Long) and text.base64 and text.head.startswith(_PDF):
            self._pdf(text)
        text = get("audio")
        if isinstance(text, Long) and text.base64:  # of an item of a conversation in Realtime
            self.media += text.size
            self.tokens += -(-text.size // SPOKEN_BYTES_A_TOKEN)
        text = get("data")
        if isinstance(text, Long) and text.base64:
            self._data(role, text, said)

    def _asks(self, most: int | None) -> None:
        """A request of a batch has ended, which declares that much output."""
        self.requests += 1
        if most is None:
            self.undeclared += 1
        else:
            self.declared += max(most, self._thinking)
        self._thinking = 0

    def refers(self, name: str, context: bool = True) -> None:
        """A member refers to what is stored.

        :param context: whether that may be of any size.
        """
        if len(self.references) < _REFERENCES:
            self.references.add(name)
        self.context |= context

    def _identified(self, role: Kind, said: Mapping[str, str | Long | None]) -> None:
        """An object has an id: it is a reference where it is not said what it is, or where that is not in it."""
        kind = said.get("type")
        kind = kind.strip().casefold() if isinstance(kind, str) else ""
        if kind == "item_reference":
            self.refers(kind, context=True)
        elif role.name in _BY_ID or (not kind and role.name != "messages"):  # clients keep chat messages by an id
            # An earlier answer's sound is no longer than an answer; what else is referred to so may be anything.
            self.refers(f"{role.name}.id" if role.name else "id", context=role.name not in ("audio", "voice"))
            self.tokens += STORED_TOKENS if role.name == "audio" else 0
        elif kind in _IN_FULL and not said.get(_IN_FULL[kind]):
            self.refers(kind, context=False)
            self.tokens += STORED_TOKENS

    def _picture(self, text: str | Long | None, detail: str | Long | None) -> None:
        if text is None:
            return
        self.remote |= _is_address(text)
        self.pictures += 1 if detail in _DETAILS else ORIGINAL
        if isinstance(text, Long) and text.base64 and _image(text.head):
            self.media += text.size

    def _linked(self, role: Kind, text: str | Long | None) -> None:
        """A picture or a document by its URL (Anthropic), or sound."""
        if role.name == "audio_url" and isinstance(text, Long) and text.base64 and _sound(text.head):
            self._audio(text)
        elif text is not None:
            self.remote |= _is_address(text)
            self.pictures += 1

    def _data(self, role: Kind, text: Long, said: Mapping[str, str | Long | None]) -> None:
        kind = said.get("media_type")
        if role.name == "input_audio":
            self._audio(text)
        elif role.name == "source" and said.get("type") == "base64":
            if kind == "application/pdf":
                self._pdf(text)
            elif isinstance(kind, str) and _picture_type(kind):
                self.pictures += 1
                self.media += text.size

    def _audio(self, text: Long) -> None:
        self.media += text.size
        self.tokens += _for(text, AUDIO_TOKENS)

    def _pdf(self, text: Long) -> None:
        self.media += text.size
        self.pictures += 1
        self.tokens += _for(text, PDF_TOKENS)


def _number(text: str | Long | None) -> int | None:
    """A number of tokens as it is usually written; None for anything else."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 16 else None


def _is_address(text: str | Long) -> bool:
    """Whether something is named by its address, and not in the text itself (RFC 2397)."""
    return (text.head if isinstance(text, Long) else text)[:5].lower() != "data:"


_DETAILS: Final = (None, "auto", "low", "high")
_picture_type = re.compile(r"image/(?!svg)[a-z0-9.+\-]+", re.IGNORECASE).fullmatch
_image = re.compile(r"data:image/(?!svg)[a-z0-9.+\-]+;base64,", re.IGNORECASE).match  # an SVG is text
_sound = re.compile(r"data:audio/[a-z0-9.+\-]+;base64,", re.IGNORECASE).match
_PDF: Final = ("data:application/pdf;base64,", "JVBERi")
"""How base64 of a PDF begins, with and without its media type."""


def _for(text: Long, tokens: int) -> int:
    """Tokens of base64.

    :param tokens: for 1,000 bytes of what it encodes.
    """
    return -(-text.size * 3 * tokens // 4_000)
