"""What the messages of a WebSocket ask for and say: OpenAI's Realtime, and the WebSocket mode of responses.

Each message is one JSON object with a ``type``. Payloads come unmasked, in pieces, of one message after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final, Generic, Protocol, TypeVar

import orjson
from attrs import define

from flowstack.usage.answers import MEMBERS, is_finished, take_answer
from flowstack.usage.calls import Calls, calls_in
from flowstack.usage.estimate import BYTES_A_TOKEN, STORED_CONTEXT, Measure, estimated
from flowstack.usage.inner import MAX_NAME, SPOKEN_BYTES_A_TOKEN
from flowstack.usage.members import Members, Names
from flowstack.usage.model import Outcome
from flowstack.usage.operations import Operation
from flowstack.usage.request_facts import MAX_NUMBER, NAMES, JsonReader, RequestFacts, read_request_facts
from flowstack.usage.turns import MAX_HELD

MAX_TEXT: Final = 128
"""Characters of a type or an id that are kept."""

MAX_HEARD: Final = 64 * 1024
"""Bytes of an upstream's message that are held; a larger one is read as it comes."""

_MAX_MEMBER: Final = 16 * 1024

DENSE_BYTES_A_TOKEN: Final = 1_066
"""Of sound in base64 as telephones have it (G.711): 8,000 bytes a second, in which 10 tokens are spoken; compare
:data:`flowstack.usage.inner.SPOKEN_BYTES_A_TOKEN`."""

_SHORT: Final = 1024

_OPEN: Final = ord("{")
_JSON: Final = {b"content-type": b"application/json"}
_PLAIN: Final = RequestFacts()
_TEXT: Final = Measure()

_CREATE: Final = "response.create"
_INNER: Final = {
    _CREATE: "response", "session.update": "session", "transcription_session.update": "session",
}  # fmt: skip
"""Where a message of such a type has what it asks for."""

_SOUND: Final = frozenset(("input_audio_buffer.append", "session.input_audio_buffer.append"))
_COMMIT: Final = "input_audio_buffer.commit"
_SILENT: Final = _SOUND | {
    _COMMIT, "input_audio_buffer.clear", "output_audio_buffer.clear", "response.cancel",
    "conversation.item.delete", "conversation.item.retrieve", "conversation.item.truncate", "session.close",
}  # fmt: skip
"""Types of messages that name neither models nor what is stored (OpenAI reference, Realtime, client events)."""

_ITEM: Final = "conversation.item.create"
"""Of what adds to a conversation, and names only what else is in it."""

_ASKED: Final = Names.of(
    ("type", "event_id", "stream_id", "model", "previous_response_id"), places=("response", "session")
)
_SPOKEN: Final = Names.of(
    (*NAMES.all, "conversation", "audio", "input_audio_format", "input_audio_transcription"), inner=True
)
_OWN: Final = (None, "auto", "none")
"""Conversations that are this WebSocket's own, or none (OpenAI reference, Realtime, ``response.conversation``)."""

_HEARD: Final = Names.of(
    ("type", "usage", "error", "code", "status", "stream_id", "item_id"), places=("response", "session"), answered=True
)
_RESPONSE: Final = Names.of(MEMBERS, answered=True)
_STANDING: Final = ("instructions", "tools")
_SESSION: Final = Names.of((
    "model", "audio", "input_audio_format", "input_audio_transcription", "max_output_tokens",
    "max_response_output_tokens",
), inner=True, places=_STANDING, answered=True)  # fmt: skip

_TELLING: Final = (b'"usage"', b'"response"', b'"session"', b'"error"')
"""One of these stands in every message that matters here, or the last one, in a short one; most have none, and cost
these searches. In a text they would not stand so: there a quote has a backslash before it."""

_COMMITTED: Final = b'"input_audio_buffer.committed"'

_ENDS: Final = frozenset(("response.done", "response.completed", "response.incomplete", "response.failed"))
_WRITTEN: Final = ".input_audio_transcription.completed", ".input_audio_transcription.failed"
_TELLS_SESSION: Final = "session.created", "session.updated"
_code: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}").fullmatch


class _Reader(Protocol):
    def feed(self, fragment: bytes) -> None:
        """Read on."""


_R = TypeVar("_R", bound=_Reader)


class _Nested(Generic[_R]):
    """Reads an object, and some of the objects that are its members, each to its end.

    :param names: wanted of the object.
    :param readers: by name what reads a member that is an object.
    :ivar whole: what is known of the object.
    :ivar within: the readers of those members that came.
    """

    __slots__ = ("_readers", "whole", "within")

    def __init__(self, names: Names, most: int, readers: Mapping[str, Callable[[], _R]]) -> None:
        self._readers = readers
        self.whole = Members(names, most)
        self.within: dict[str, _R] = {}

    def feed(self, piece: bytes) -> None:
        whole = self.whole
        before = whole.size
        whole.feed(piece)
        if not whole.spans:
            return
        for name, make in self._readers.items():
            if (span := whole.spans.get(name)) is None:
                continue
            _, start, end = span
            start -= before
            if name not in self.within:
                if start < 0 or piece[start] != _OPEN:
                    continue
                self.within[name] = make()
            if end < 0:
                self.within[name].feed(piece[max(start, 0) :])
            elif end > before:
                self.within[name].feed(piece[max(start, 0) : end - before])


@define(slots=True)
class ClientEvent:
    """What a client's message asks for.

    :ivar type: None where it has none.
    :ivar facts: of a response, of a session, or of what is not known here, as a request's body would say them; None
        where nothing has to be held against a key but the models.
    :ivar models: every model that it names, of whichever role.
    :ivar apart: whether what is asked for is no part of the conversation.
    :ivar previous: whether what is asked for goes on from what was said before; ``previous_id`` from which response.
    :ivar tokens: of input that it adds, by estimate.
    :ivar speaks: whether sound is added by it, or is at its end, which may be written down.
    :ivar standing: of an update of the session, bytes by estimate that it adds to what each response is asked;
        ``sound_bytes`` of a token of the sound that follows, where it says the format, and ``transcription_model`` of
        what writes it down.
    :ivar fault: why not every parser would read it alike, or None; it stands behind "it cannot be read: ".
    """

    type: str | None = None
    event_id: str | None = None
    stream_id: str | None = None
    facts: RequestFacts | None = None
    models: frozenset[str] = frozenset()
    previous: bool = False
    previous_id: str | None = None
    tokens: int = 0
    apart: bool = False
    speaks: bool = False
    standing: int | None = None
    sound_bytes: int | None = None
    transcription_model: str | None = None
    fault: str | None = None


class ClientEvents:
    """Reads what a client sends.

    :param family: of the responses: ``realtime`` or ``responses``.
    :ivar sound_bytes: of a message with sound, of which a token is made.
    """

    __slots__ = ("_body", "_first", "_nested", "_realtime", "_size", "_sound", "sound_bytes")

    def __init__(self, family: str) -> None:
        self._realtime = family == "realtime"
        self._nested: _Nested[JsonReader] | None = None  # of the present message
        self._first: bytes | None = None  # the only piece of it that came, while all of it may matter
        self._body: JsonReader | None = None  # reads all of it, where it comes in several
        self._size = 0
        self._sound = 0  # bytes of sound that make no whole token
        self.sound_bytes = SPOKEN_BYTES_A_TOKEN

    def feed(self, piece: bytes) -> bool:
        """More of a message.

        :return: whether it is known by now that it asks for nothing that must be judged, unless it says so a second
            time: :meth:`end` tells.
        """
        nested, begins = self._nested, self._nested is None
        if nested is None:
            self._nested = nested = _Nested(_ASKED, MAX_HELD, _SPOKEN_IN if self._realtime else _ASKED_IN)
            self._size = 0
        self._size += len(piece)
        nested.feed(piece)
        whole = nested.whole
        kind = _kind(whole.values.get("type"))
        if kind in _SILENT or (self._realtime and kind in _INNER):
            self._body = self._first = None
        elif begins:
            self._first = piece
        else:
            if self._first is not None:
                self._body = JsonReader()
                self._body.feed(self._first)
                self._first = None
            if self._body is not None:
                self._body.feed(piece)
        harmless = kind in _SILENT or (self._realtime and kind == _ITEM)
        return harmless and whole.fault is None and not whole.repeated

    def end(self) -> ClientEvent:
        """The message is complete."""
        nested, first, body = self._nested, self._first, self._body
        self._nested = self._first = self._body = None
        if nested is None:
            return ClientEvent(fault="it is empty")
        whole = nested.whole
        whole.finish()
        get = whole.values.get
        kind = _kind(get("type"))
        event = ClientEvent(kind, _kept(get("event_id")), _kept(get("stream_id")), fault=whole.fault)
        if whole.repeated:
            event.fault = _twice(whole)
        elif event.fault is None and whole.too_large:
            event.fault = f"the value of {min(whole.too_large)} is longer than {MAX_HELD} bytes"
        if event.fault is None and kind is None:
            event.fault = "it has no type"
        if event.fault is None and kind not in _SILENT:
            facts = None if body is None else body.finish()
            self._judge(event, nested, facts if first is None else read_request_facts("json", _JSON, first))
        elif kind in _SOUND:
            event.tokens, self._sound = divmod(self._sound + self._size, self.sound_bytes)
            event.speaks = True
        elif kind == _COMMIT:
            event.speaks = True
        return event

    def _judge(self, event: ClientEvent, nested: _Nested[JsonReader], body: RequestFacts | None) -> None:
        """Read what is asked for.

        :param body: what the whole message says as a request's body, where that counts.
        """
        get = nested.whole.values.get
        reader = nested.within.get(_INNER.get(event.type or "", ""))
        if body is None:
            facts, event.previous = RequestFacts(), True
            if reader is not None:
                facts = reader.finish()
                conversation = reader.members.values.get("conversation")
                event.apart = conversation == "none"
                if conversation not in _OWN:
                    facts.inner.refers("conversation")
                # It is to the items of this WebSocket's own conversation.
                facts.inner.references.discard("item_reference")
            if event.type != _CREATE:
                event.standing = estimated(facts, self._size, _TEXT)[0] * BYTES_A_TOKEN
                if reader is not None:
                    event.sound_bytes = _sound_bytes(reader.members.values)
                    event.transcription_model = _kept(_transcription_in(reader.members.values).get("model"))
        else:
            facts = body
            if reader is not None and event.type == _CREATE:
                facts = _one_of(facts, reader.finish())
            if event.type != _CREATE:
                event.tokens = estimated(facts, self._size, _TEXT)[0]
            if not any(one.so_far().inner.references for one in nested.within.values()):  # or that one may count
                event.previous_id = _identity(get("previous_response_id"))
            event.previous = bool(facts.inner.references & _BEFORE)
        event.fault = facts.fault if not facts.repeated else _twice(facts)
        if len(facts.model or "") > MAX_NAME or len(facts.service_tier or "") > MAX_NAME:
            # What many messages of one WebSocket ask for is kept until it is answered.
            event.fault = f"the name of a model or a service tier in it is longer than {MAX_NAME} characters"
            return
        named = (facts.model, get("model"), *facts.inner.models)
        event.models = frozenset([model for model in named if type(model) is str])
        if not (self._realtime and event.type == _ITEM):
            event.facts = facts


_BEFORE: Final = {"previous_response_id", "conversation", "conversation.id"}
_ASKED_IN: Final[Mapping[str, Callable[[], JsonReader]]] = {"response": JsonReader}
_SPOKEN_IN: Final[Mapping[str, Callable[[], JsonReader]]] = dict.fromkeys(
    ("response", "session"), lambda: JsonReader(_SPOKEN)
)


def _one_of(flat: RequestFacts, nested: RequestFacts) -> RequestFacts:
    """What a message asks for that may say it at its top or in an object; not in both, as servers take either.

    What is named at any depth is in ``flat`` all the same.
    """
    if replace(nested, inner=_PLAIN.inner) == _PLAIN:
        return flat
    if replace(flat, inner=_PLAIN.inner) == _PLAIN:
        return replace(nested, inner=flat.inner)
    fault = flat.fault or nested.fault or "it says what is asked for at its top and in its response"
    return replace(flat, fault=fault)


def _kind(value: Any) -> str | None:
    """A type. Some server may take another case for the same."""
    return value[:MAX_TEXT].strip().casefold() if type(value) is str and value else None


def _twice(found: Members | RequestFacts) -> str:
    return f"it says {' and '.join(sorted(found.repeated))} more than once"


@define(slots=True)
class UpstreamEvent:
    """What an upstream's message says.

    :ivar begins: whether a response has begun, asked for or by itself.
    :ivar ends: whether one has ended, or what was asked for is an error.
    :ivar outcome: what was used.
    :ivar error_status: of an error, where it says one; ``error_code`` likewise, if it is a plain word.
    :ivar event_id: the client's event that an error is about.
    :ivar item_id: of a client's speech.
    :ivar committed: whether that is at its end, and is written down next, where it is at all.
    :ivar transcription: whether it was written down, or could not be: then there is no outcome.
    :ivar session: whether it tells of the session in force.
    :ivar unread: whether something of it that matters could not be read: it is too long, or no JSON.
    :ivar session_model: of the session; ``transcription_model`` of what writes speech down, with each time so many
        ``transcription_bytes`` of a prompt.
    :ivar max_output_tokens: of each response of that session.
    :ivar standing: bytes by estimate of what each of them is asked in addition; ``sound_bytes`` of a token of sound,
        where the format is told.
    """

    type: str
    response_id: str | None = None
    stream_id: str | None = None
    begins: bool = False
    ends: bool = False
    outcome: Outcome | None = None
    error_status: int | None = None
    error_code: str | None = None
    event_id: str | None = None
    item_id: str | None = None
    committed: bool = False
    transcription: bool = False
    session: bool = False
    unread: bool = False
    session_model: str | None = None
    transcription_model: str | None = None
    transcription_bytes: int = 0
    max_output_tokens: int | None = None
    standing: int = 0
    sound_bytes: int | None = None


_HEARD_IN: Final[Mapping[str, Callable[[], Members]]] = {
    "response": lambda: Members(_RESPONSE, _MAX_MEMBER),
    "session": lambda: Members(_SESSION),
}


class UpstreamEvents:
    """Reads what an upstream sends.

    :param operation: of the responses.
    """

    __slots__ = ("_calls", "_held", "_large", "_operation")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._held: bytes | bytearray = b""
        self._large: _Nested[Members] | None = None
        self._calls: Calls | None = None

    def feed(self, piece: bytes) -> None:
        """More of a message."""
        if self._large is None:
            held = self._held
            if len(held) + len(piece) <= MAX_HEARD:
                if not held:
                    self._held = piece
                elif isinstance(held, bytearray):
                    held += piece
                else:
                    self._held = bytearray(held)
                    self._held += piece
                return
            self._begin_large(bytes(held))
            self._held = b""
        self._read_large(piece)

    def _begin_large(self, held: bytes) -> None:
        self._large, self._calls = _Nested(_HEARD, _MAX_MEMBER, _HEARD_IN), Calls()
        self._read_large(held)

    def _read_large(self, piece: bytes) -> None:
        assert self._large is not None and self._calls is not None
        self._large.feed(piece)
        self._calls.feed(piece)

    def end(self) -> UpstreamEvent | None:
        """The message is complete.

        :return: None where it says nothing that matters here.
        """
        held, self._held = self._held, b""
        if self._large is None:
            for telling in _TELLING:
                if held.find(telling) >= 0:
                    break
            else:
                if len(held) > _SHORT or held.find(_COMMITTED) < 0:
                    return None
            held = bytes(held)
            try:
                values = orjson.loads(held)
            except ValueError:  # half of a surrogate pair is enough for that
                values = None
            else:
                if type(values) is not dict:
                    return None
            if values is not None and not _tells_session(values.get("type")):
                return self._read(values, calls_in(held))
            self._begin_large(held)
        large, calls, self._large, self._calls = self._large, self._calls, None, None
        assert large is not None and calls is not None
        found = {name: members.values for name, members in large.within.items()}
        event, session = self._read({**large.whole.values, **found}, calls.counts()), large.within.get("session")
        if large.whole.closed is None or large.whole.fault is not None:
            event = event or UpstreamEvent("")
            event.unread = True
        elif event is not None and event.session and session is not None:  # or it is something else
            self._take_session(event, session)
        return event

    def _read(self, values: dict[str, Any], calls: dict[str, Any] | None) -> UpstreamEvent | None:
        kind = values.get("type")
        if type(kind) is not str:
            return None
        event = UpstreamEvent(kind[:MAX_TEXT], stream_id=_kept(values.get("stream_id")))
        response, error = values.get("response"), values.get("error")
        if kind == "response.created" or kind in _ENDS:
            response = response if type(response) is dict else {}
            event.response_id = _identity(response.get("id"))
            event.begins, event.ends = kind == "response.created", kind in _ENDS
            if event.ends:
                self._end(event, response, calls)
        elif kind == "error":
            error = error if type(error) is dict else {}
            event.ends = True
            event.event_id, code = _kept(error.get("event_id")), error.get("code") or values.get("code")
            event.error_code = code if type(code) is str and _code(code) else None
            status = values.get("status")
            event.error_status = status if type(status) is int and 400 <= status <= 599 else None
        elif kind.endswith(_TELLS_SESSION):
            event.session = True
        elif kind.endswith(_WRITTEN):
            event.transcription, event.item_id = True, _identity(values.get("item_id"))
            if kind.endswith(_WRITTEN[0]):
                event.outcome = Outcome()
                take_answer(self._operation, {"usage": values.get("usage")}, event.outcome)
        elif kind == "input_audio_buffer.committed":
            event.committed, event.item_id = True, _identity(values.get("item_id"))
        else:
            return None
        return event

    def _end(self, event: UpstreamEvent, response: dict[str, Any], calls: dict[str, Any] | None) -> None:
        event.outcome = outcome = Outcome()
        if calls is not None:
            response["output_items"] = calls
        response.pop("background", None)  # its usage is here
        take_answer(self._operation, response, outcome)
        outcome.partial = outcome.usage is not None and not is_finished(response.get("status", "completed"))

    def _take_session(self, event: UpstreamEvent, members: Members) -> None:
        """The session that is in force (OpenAI reference, Realtime; the beta's has the transcription at its top)."""
        session = members.values
        event.unread = bool(members.too_large) or members.fault is not None
        event.session_model = _kept(session.get("model"))
        event.sound_bytes = _sound_bytes(session)
        transcription = _transcription_in(session)
        event.transcription_model = _kept(transcription.get("model"))
        event.transcription_bytes = len(str(transcription.get("prompt") or ""))
        for name in _STANDING:
            if name in members.spans:
                _, begin, end = members.spans[name]
                event.standing += max(0, end - begin)
        if members.inner is not None and members.inner.context:  # its tools bring more
            event.standing += STORED_CONTEXT * BYTES_A_TOKEN
        for name in ("max_output_tokens", "max_response_output_tokens"):
            most = session.get(name)
            if type(most) is int and 0 < most <= MAX_NUMBER:
                event.max_output_tokens = most


def _heard_in(session: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a session says of the sound that it hears."""
    sound = session.get("audio")
    heard = sound.get("input") if type(sound) is dict else session
    return heard if type(heard) is dict else {}


def _transcription_in(session: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a session says of how that is written down; the beta says it at its top."""
    heard = _heard_in(session)
    found = heard.get("transcription", heard.get("input_audio_transcription"))
    return found if type(found) is dict else {}


def _sound_bytes(session: Mapping[str, Any]) -> int | None:
    """Bytes in base64 of a token of the sound that a session hears, by its format; None where it says none."""
    form = _heard_in(session).get("format", session.get("input_audio_format"))
    name = form.get("type") if type(form) is dict else form
    if type(name) is not str:
        return None
    return SPOKEN_BYTES_A_TOKEN if name.removeprefix("audio/").startswith("pcm1") or name == "audio/pcm" else (
        DENSE_BYTES_A_TOKEN
    )  # fmt: skip


def _tells_session(kind: Any) -> bool:
    return type(kind) is str and kind.endswith(_TELLS_SESSION)


def _kept(value: Any) -> str | None:
    return value[:MAX_TEXT] if type(value) is str and value else None


def _identity(value: Any) -> str | None:
    """What tells a response from all others: its id, or a digest of one that is too long to keep."""
    if type(value) is not str or len(value) <= MAX_TEXT:
        return value if type(value) is str and value else None
    return sha256(value.encode(errors="surrogatepass")).hexdigest()
