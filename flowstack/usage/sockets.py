"""What the messages of a WebSocket ask for and say: OpenAI's Realtime, and the WebSocket mode of responses.

Each message is one JSON object with a ``type``. Payloads come unmasked, in pieces, of one message after the other.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from attrs import define

from flowstack.usage.answers import MEMBERS, is_finished, take_answer
from flowstack.usage.calls import Calls, calls_in
from flowstack.usage.estimate import BYTES_A_TOKEN, PICTURE_TOKENS
from flowstack.usage.members import Members, Names, NestedMembers
from flowstack.usage.model import Outcome
from flowstack.usage.operations import Operation
from flowstack.usage.request_facts import MAX_NUMBER, RequestFacts, read_request_facts

MAX_TEXT: Final = 128
"""Characters of a type, an id or a code that are kept."""

MAX_ASKED: Final = 64 * 1024
"""Bytes of a client's message that are held where nobody else holds it."""

MAX_HEARD: Final = 64 * 1024
"""Bytes of an upstream's message that are held; a larger one is read as it comes."""

SOUND_BYTES_A_TOKEN: Final = 6400
"""Of sound as Realtime takes it by default: 24,000 samples of two bytes a second, in Base64, of which 10 tokens are
made (OpenAI, "Managing costs": one for 100 ms)."""

_PICTURES: Final = 8
"""In one item of a conversation, at most, as is thought."""

_JSON: Final = {b"content-type": b"application/json"}

_SESSIONS: Final = frozenset(("session.update", "transcription_session.update"))
_CREATE: Final = "response.create"
_INNER: Final = ("response", "session")
_ASKED: Final = Names.of(("type", "event_id", "stream_id", "model", "previous_response_id", *_INNER))
_HEARD: Final = Names.of(("type", "response", "error", "stream_id", "session", "status", "usage"))
_RESPONSE: Final = (("response", Names.of(MEMBERS)),)

_TELLING: Final = (b'"usage"', b"response.created", b'"error"', b"session.created", b"session.updated")
"""What stands in every message that matters here; most have none of it, and cost these searches."""

_ENDS: Final = frozenset(("response.done", "response.completed", "response.incomplete", "response.failed"))
_TRANSCRIBED: Final = ".input_audio_transcription.completed"


@define(slots=True)
class ClientEvent:
    """What a client's message asks for.

    :ivar type: None where it has none.
    :ivar facts: of a response, or of a session, as a request's body would say them; None for all else.
    :ivar models: every model that it names, of whichever role.
    :ivar previous: whether what is asked for goes on from what was said before; ``previous_id`` from which response.
    :ivar tokens: of input that it adds, by estimate.
    :ivar fault: why not every parser would read it alike, or None; it stands behind "it cannot be read: ".
    """

    type: str | None = None
    event_id: str | None = None
    stream_id: str | None = None
    facts: RequestFacts | None = None
    models: frozenset[str] = frozenset()
    previous: bool = False
    previous_id: str | None = None
    tokens: float = 0
    fault: str | None = None


class ClientEvents:
    """Reads what a client sends.

    :param family: of the responses: ``realtime`` or ``responses``.
    """

    __slots__ = ("_members", "_pieces", "_realtime", "_size", "_whole")

    def __init__(self, family: str) -> None:
        self._realtime = family == "realtime"
        self._members: Members | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = True  # whether the pieces are all of it

    def feed(self, piece: bytes, held: bool = False) -> bool:
        """More of a message.

        :param held: whether the caller holds all of it. If nobody does, no more than :data:`MAX_ASKED` is held here; of
            a longer one the model alone is known.
        :return: whether it is known by now that it asks for nothing that must be judged, unless it says so a second
            time: :meth:`end` tells.
        """
        members = self._members
        if members is None:
            self._members = members = Members(_ASKED, MAX_ASKED)
        self._size += len(piece)
        if not held and self._size > MAX_ASKED:
            self._pieces.clear()
            self._whole = False
        elif piece and self._whole:
            self._pieces.append(piece)
        members.feed(piece)
        kind = members.values.get("type")
        certain = type(kind) is str and kind != _CREATE and kind not in _SESSIONS and members.fault is None
        if certain:
            self._pieces.clear()
        return certain

    def end(self) -> ClientEvent:
        """The message is complete."""
        members, size = self._members, self._size
        whole = b"".join(self._pieces) if self._whole else None
        self._members, self._pieces, self._size, self._whole = None, [], 0, True
        if members is None:
            return ClientEvent(fault="it is empty")
        members.finish()
        values = members.values
        kind = _kept(values.get("type"))
        event = ClientEvent(kind, _kept(values.get("event_id")), _kept(values.get("stream_id")), fault=members.fault)
        if members.repeated:
            event.fault = f"it says {' and '.join(sorted(members.repeated))} more than once"
        if event.fault is None and kind is None:
            event.fault = "it has no type"
        if event.fault is not None:
            return event
        if kind == _CREATE or kind in _SESSIONS:
            self._ask(event, members, whole)
        else:
            event.tokens = _tokens_of(kind or "", size)
        return event

    def _ask(self, event: ClientEvent, members: Members, whole: bytes | None) -> None:
        """Read what a response is to be, or a session."""
        if whole is None:
            event.facts = RequestFacts(_kept(members.values.get("model")))
            return
        name = "response" if event.type == _CREATE else "session"
        inner = None
        if (span := members.spans.get(name)) is not None and whole[span[1] : span[1] + 1] == b"{":
            inner = read_request_facts("json", _JSON, whole[span[1] : span[2]])
        outer = None if self._realtime or event.type != _CREATE else read_request_facts("json", _JSON, whole)
        each = [facts for facts in (outer, inner) if facts is not None]
        event.facts = facts = each[0] if each else RequestFacts()
        models = {model for one in each for model in (one.model, *one.inner.models) if model is not None}
        if type(model := members.values.get("model")) is str:
            models.add(model)
        for one in each:
            if one.fault is not None or one.repeated:
                event.fault = one.fault or f"it says {' and '.join(sorted(one.repeated))} more than once"
        if outer is not None and "response" in members.spans:
            event.fault = "it has a 'response', where what is asked for stands at its top"
        if name == "session" or self._realtime:
            try:
                values = orjson.loads(whole).get(name)
            except ValueError:
                values = None
            if type(values) is dict:
                models |= _models_in(values)
                if self._realtime and event.type == _CREATE:
                    _put_most(facts, values)
        event.models = frozenset(models)
        previous = members.values.get("previous_response_id")
        event.previous_id = _kept(previous)
        event.previous = self._realtime


def _put_most(facts: RequestFacts, values: dict[str, Any]) -> None:
    for name in ("max_output_tokens", "max_response_output_tokens"):
        most = values.get(name)
        if type(most) is int and 0 <= most <= MAX_NUMBER:
            facts.limits = {**(facts.limits or {}), name: most}


def _models_in(values: Any, depth: int = 6) -> set[str]:
    """What stands as a ``model`` in an object, at whatever depth it may be of use."""
    found: set[str] = set()
    if depth and type(values) is dict:
        for name, value in values.items():
            if name == "model" and type(value) is str:
                found.add(value)
            else:
                found |= _models_in(value, depth - 1)
    elif depth and type(values) is list:
        for value in values:
            found |= _models_in(value, depth - 1)
    return found


def _tokens_of(kind: str, size: int) -> float:
    if kind == "input_audio_buffer.append":
        return size / SOUND_BYTES_A_TOKEN  # most are parts of a token
    if kind == "conversation.item.create":
        # What is very long is Base64, of sound or pictures; the upstream's figures take the estimate's place.
        return min(size // BYTES_A_TOKEN, size // SOUND_BYTES_A_TOKEN + _PICTURES * PICTURE_TOKENS)
    return 0


@define(slots=True)
class UpstreamEvent:
    """What an upstream's message says.

    :ivar begins: whether a response has begun, asked for or by itself.
    :ivar ends: whether one has ended, or what was asked for is an error.
    :ivar outcome: what was used.
    :ivar error_status: of an error, where it says one; ``error_code`` likewise.
    :ivar event_id: the client's event that an error is about.
    :ivar transcription: whether a client's speech was written down.
    :ivar session: whether it tells of the session in force.
    :ivar session_model: of that; ``transcription_model`` of what writes speech down.
    :ivar max_output_tokens: of each response of that session.
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
    transcription: bool = False
    session: bool = False
    session_model: str | None = None
    transcription_model: str | None = None
    max_output_tokens: int | None = None


class UpstreamEvents:
    """Reads what an upstream sends.

    :param operation: of the responses.
    """

    __slots__ = ("_calls", "_held", "_large", "_operation")

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._held = b""
        self._large: NestedMembers | None = None
        self._calls: Calls | None = None

    def feed(self, piece: bytes) -> None:
        """More of a message."""
        if self._large is None and len(self._held) + len(piece) <= MAX_HEARD:
            self._held = self._held + piece if self._held else piece
            return
        if self._large is None or self._calls is None:
            self._large, self._calls = NestedMembers(_HEARD, _RESPONSE, MAX_HEARD), Calls()
            self._large.feed(self._held)
            self._calls.feed(self._held)
            self._held = b""
        self._large.feed(piece)
        self._calls.feed(piece)

    def end(self) -> UpstreamEvent | None:
        """The message is complete.

        :return: None where it says nothing that matters here.
        """
        held, large, calls = self._held, self._large, self._calls
        self._held, self._large, self._calls = b"", None, None
        if large is not None and calls is not None:
            event, *response = large.levels
            values = dict(event.values)
            if response:
                values["response"] = dict(response[0].values)
                if is_finished(values["response"].get("status")):
                    values.setdefault("type", "response.done")  # which may come behind the response, and was not read
            return self._read(values, calls.counts())
        for telling in _TELLING:
            if held.find(telling) >= 0:
                break
        else:
            return None
        try:
            values = orjson.loads(held)
        except ValueError:
            return None
        return self._read(values, calls_in(held)) if type(values) is dict else None

    def _read(self, values: dict[str, Any], calls: dict[str, Any] | None) -> UpstreamEvent | None:
        kind = values.get("type")
        if type(kind) is not str:
            return None
        event = UpstreamEvent(kind[:MAX_TEXT], stream_id=_kept(values.get("stream_id")))
        response, session, error = values.get("response"), values.get("session"), values.get("error")
        if kind == "response.created" or kind in _ENDS:
            response = response if type(response) is dict else {}
            event.response_id = _kept(response.get("id"))
            event.begins, event.ends = kind == "response.created", kind in _ENDS
            if event.ends:
                self._end(event, response, calls)
        elif kind == "error":
            error = error if type(error) is dict else {}
            event.ends = True
            event.event_id, event.error_code = _kept(error.get("event_id")), _kept(error.get("code"))
            status = values.get("status")
            event.error_status = status if type(status) is int and 400 <= status <= 599 else None
        elif kind.endswith(("session.created", "session.updated")):
            event.session = True
            if type(session) is dict:  # or it is too long to be read
                self._take_session(event, session)
        elif kind.endswith(_TRANSCRIBED):
            event.transcription, event.outcome = True, Outcome()
            take_answer(self._operation, {"usage": values.get("usage")}, event.outcome)
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

    def _take_session(self, event: UpstreamEvent, session: dict[str, Any]) -> None:
        """The session that is in force (OpenAI reference, Realtime; the beta's has the transcription at its top)."""
        event.session_model = _kept(session.get("model"))
        sound = session.get("audio")
        heard = sound.get("input") if type(sound) is dict else session
        for name in ("transcription", "input_audio_transcription"):
            transcription = heard.get(name) if type(heard) is dict else None
            if type(transcription) is dict:
                event.transcription_model = _kept(transcription.get("model"))
        for name in ("max_output_tokens", "max_response_output_tokens"):
            most = session.get(name)
            if type(most) is int and 0 < most <= MAX_NUMBER:
                event.max_output_tokens = most


def _kept(value: Any) -> str | None:
    return value[:MAX_TEXT] if type(value) is str and value else None
