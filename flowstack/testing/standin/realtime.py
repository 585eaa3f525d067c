"""The Realtime API's events (OpenAI reference: realtime client and server events): one session and its conversation.

No audio is understood. What was spoken is known by its length: ten tokens a second, as of OpenAI's; what is said takes
a tenth of a second and two tokens of audio a word, beside its transcript's. A response has heard the whole
conversation, of which what the one before it had heard was cached.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, ClassVar

import orjson
from attrs import define, evolve, field, frozen

from flowstack.testing.standin import beta, replies
from flowstack.testing.standin.faults import BadDirective, Directives, merge
from flowstack.testing.standin.pattern import pattern
from flowstack.testing.standin.speech import Speech, speak, text_of, tokens
from flowstack.testing.standin.turns import Turns, event_of
from flowstack.testing.standin.values import CREATED, Refused, Said, Usage

_RATES = {"audio/pcm": 48, "audio/pcmu": 8, "audio/pcma": 8}
"""Bytes of a millisecond."""

_SILENT = {"audio/pcm": b"\0", "audio/pcmu": b"\xff\x7f", "audio/pcma": b"\xd5\x55"}
"""The bytes of which silence consists."""

_WORD = 100
"""Milliseconds that a spoken word takes."""

_IMAGE = 85
"""Tokens of an image."""


@frozen
class Amount:
    """Tokens by kind."""

    text: int = 0
    audio: int = 0
    image: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.text + other.text, self.audio + other.audio, self.image + other.image)

    @property
    def total(self) -> int:
        """All together."""
        return self.text + self.audio + self.image


@define
class _Item:
    """One item of a conversation: as it is shown, and what it counts as a model's input."""

    view: dict[str, Any]
    amount: Amount


@define
class _Response:
    """One response while it is made.

    :ivar wish: the ``response`` of the client's event; empty where the session itself began it.
    :ivar changed: the directives that the wish brought, or None.
    :ivar stop: why it is to be cancelled, or None.
    """

    identity: str
    wish: dict[str, Any]
    directives: Directives
    changed: Directives | None = None
    stop: str | None = None
    told: dict[str, Any] = field(factory=dict)

    @property
    def apart(self) -> bool:
        """Whether it stays out of the conversation."""
        return bool(self.wish.get("conversation") == "none")


class Realtime:
    """One session.

    :param session: what the client wishes of it: ``type``, ``model`` and the rest, in the GA form.
    :param identity: what the ids of all that it makes follow from.
    :param directives: those of the handshake.
    :param old: whether the client speaks the beta's form.
    :raises Refused: where the session is of another shape than OpenAI's.
    """

    def __init__(self, session: dict[str, Any], identity: str, directives: Directives, *, old: bool = False) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.over = False
        self._unique = hashlib.sha256(identity.encode()).hexdigest()
        self._directives = directives
        self._old = old
        self._numbers = count(1)
        self._events = count(1)
        self._turns = Turns()
        self._items: list[_Item] = []
        self._running: dict[str, _Response] = {}
        self._queue: deque[_Response] = deque()
        self._cached = Amount()
        self._buffered = 0.0
        self._written = 0.0
        self._silent = 0.0
        self._speaking: str | None = None
        defaults = _TRANSCRIPTION if session.get("type") == "transcription" else _REALTIME
        self.session = _checked(_merged({**defaults, "id": f"sess_{self._unique[:24]}"}, session))
        self._now("session.created", session=self.session)

    # What the socket asks.

    def hear(self, message: str | bytes) -> None:
        """Take a client's event."""
        event: dict[str, Any] = {}
        try:
            event = event_of(message)
            _need(event, "type", str)
            act = self._acts.get(event["type"])
            if act is None:
                known = ", ".join(f"'{name}'" for name in self._acts)
                text = f"Invalid value: '{event['type']}'. Supported values are: {known}."
                raise Refused(400, text, param="type", code="invalid_value")
            act(self, event)
        except Refused as refused:
            self._refuse(refused, event)
        except BadDirective as bad:
            self._refuse(Refused(400, str(bad), code="unknown_directive"), event)

    def say(self) -> Said | None:
        """The next event."""
        return self._turns.say()

    def call(self) -> None:
        """Let somebody speak for two seconds who is connected by other ways, as a call's media are."""
        self._hear_audio(2000.0, loud=True)
        self._hear_audio(1000.0, loud=False)

    def end(self) -> None:
        """Have the WebSocket closed."""
        self.over = True
        self.wake()

    # The client's events.

    def _update(self, event: dict[str, Any]) -> None:
        wish = _need(event, "session", dict)
        wish = beta.session_of(wish) if self._old else wish
        if wish.get("type", self.session["type"]) != self.session["type"]:
            raise Refused(400, "The session's type cannot be changed.", param="session.type", code="invalid_value")
        wish = {name: wish[name] for name in wish if name not in ("id", "object")}
        self.session = _checked(_merged(self.session, wish))
        self._now("session.updated", session=self.session)

    def _append(self, event: dict[str, Any]) -> None:
        try:
            audio = base64.b64decode(_need(event, "audio", str), validate=True)
        except binascii.Error:
            message = "Invalid 'audio'. Expected base64-encoded audio bytes."
            raise Refused(400, message, param="audio", code="invalid_value") from None
        form = self._format("input")
        self._hear_audio(len(audio) / _RATES[form], loud=bool(audio.strip(_SILENT[form])))

    def _commit(self, event: dict[str, Any]) -> None:
        if not self._buffered:
            message = "Error committing input audio buffer: the buffer is empty."
            raise Refused(400, message, code="input_audio_buffer_commit_empty")
        self._take_audio()

    def _clear(self, event: dict[str, Any]) -> None:
        self._buffered, self._speaking = 0.0, None
        self._now("input_audio_buffer.cleared")

    def _create_item(self, event: dict[str, Any]) -> None:
        item = _need(event, "item", dict)
        view = {"id": self._id("item_"), "object": "realtime.item", "status": "completed", **item}
        self._add(_Item(view, _amount(view, self._format("input"))))

    def _delete_item(self, event: dict[str, Any]) -> None:
        self._items.remove(self._item(event))
        self._now("conversation.item.deleted", item_id=event["item_id"])

    def _retrieve_item(self, event: dict[str, Any]) -> None:
        self._now("conversation.item.retrieved", item=self._item(event).view)

    def _truncate_item(self, event: dict[str, Any]) -> None:
        self._item(event)
        place = {name: event.get(name) for name in ("item_id", "content_index", "audio_end_ms")}
        self._now("conversation.item.truncated", **place)

    def _create_response(self, event: dict[str, Any]) -> None:
        wish = _need(event, "response", dict) if event.get("response") is not None else {}
        if self.session["type"] == "transcription":
            raise Refused(400, "A transcription session has no responses.", param="type", code="invalid_value")
        directives = merge(self._directives, wish)
        changed = directives if directives is not self._directives else None
        if changed is not None and changed.status is not None and changed.status >= 400:
            raise replies.error_of(changed.status)
        response = _Response(self._id("resp_"), wish, directives, changed)
        if not response.apart and self._active is not None:
            message = "Conversation already has an active response. Wait until it is finished before creating another."
            raise Refused(400, message, code="conversation_already_has_active_response")
        self._begin(response)

    def _cancel(self, event: dict[str, Any]) -> None:
        named = event.get("response_id")
        response = self._running.get(named) if named else self._active
        if response is None:
            message = "Cancellation failed: no active response found"
            raise Refused(400, message, code="response_cancel_not_active")
        response.stop = response.stop or "client_cancelled"

    _acts: ClassVar[dict[str, Callable[[Realtime, dict[str, Any]], None]]] = {
        "session.update": _update,
        "input_audio_buffer.append": _append,
        "input_audio_buffer.commit": _commit,
        "input_audio_buffer.clear": _clear,
        "conversation.item.create": _create_item,
        "conversation.item.delete": _delete_item,
        "conversation.item.retrieve": _retrieve_item,
        "conversation.item.truncate": _truncate_item,
        "response.create": _create_response,
        "response.cancel": _cancel,
    }

    # Audio.

    def _hear_audio(self, milliseconds: float, *, loud: bool) -> None:
        """Take audio; where turns are detected, speech begins with sound and ends with enough silence."""
        detection = self.session["audio"]["input"]["turn_detection"]
        self._written += milliseconds
        if detection is None:
            self._buffered += milliseconds
            return
        if loud and self._speaking is None:
            self._speaking = self._id("item_")
            began = max(0, int(self._written - milliseconds))
            self._now("input_audio_buffer.speech_started", audio_start_ms=began, item_id=self._speaking)
            if detection.get("interrupt_response", True) and self._active is not None:
                self._active.stop = self._active.stop or "turn_detected"
        if self._speaking is None:
            return
        self._buffered += milliseconds
        self._silent = 0.0 if loud else self._silent + milliseconds
        if self._silent >= detection.get("silence_duration_ms", 500):
            ended = int(self._written)
            self._now("input_audio_buffer.speech_stopped", audio_end_ms=ended, item_id=self._speaking)
            self._take_audio()

    def _take_audio(self) -> None:
        """Make the buffer an item, have it transcribed, and answered where turns are detected."""
        listening = self.session["audio"]["input"]
        milliseconds, self._buffered, self._silent = self._buffered, 0.0, 0.0
        identity, self._speaking = self._speaking or self._id("item_"), None
        view = {
            "id": identity,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        self._now("input_audio_buffer.committed", previous_item_id=self._last, item_id=identity)
        self._add(_Item(view, Amount(audio=_spoken(milliseconds))))
        if listening["transcription"] is not None:
            self._turns.add(self._transcribe(view, milliseconds, listening["transcription"].get("model")))
        detection = listening["turn_detection"]
        if detection and detection.get("create_response", True) and self.session["type"] == "realtime":
            self._begin(_Response(self._id("resp_"), {}, self._directives))

    def _transcribe(self, view: dict[str, Any], milliseconds: float, model: str | None) -> Iterator[Said]:
        """What was said, as its length; tokens are billed, or of Whisper seconds."""
        words = tokens(_transcript(milliseconds))
        name = "conversation.item.input_audio_transcription"
        here = {"item_id": view["id"], "content_index": 0}
        for word in words:
            yield self._event(f"{name}.delta", **here, delta=word)
        view["content"][0]["transcript"] = "".join(words)
        if "whisper" in (model or ""):
            told: dict[str, Any] = {"type": "duration", "seconds": milliseconds / 1000}
            counted = None
        else:
            counted = Usage(prompt=_spoken(milliseconds), completion=len(words))
            told = {
                "type": "tokens",
                "total_tokens": counted.total,
                "input_tokens": counted.prompt,
                "input_token_details": {"text_tokens": 0, "audio_tokens": counted.prompt},
                "output_tokens": counted.completion,
            }
        said = self._event(f"{name}.completed", **here, transcript="".join(words), usage=told)
        yield evolve(said, usage=counted, endpoint="realtime/transcription")

    # Responses.

    @property
    def _active(self) -> _Response | None:
        """The last response that was begun for the conversation and is not yet done."""
        waiting = [*self._running.values(), *self._queue]
        return next((response for response in reversed(waiting) if not response.apart), None)

    def _begin(self, response: _Response) -> None:
        """Have it made; one that begins by itself waits for the end of the one that it interrupts."""
        if self._active is not None and not response.apart:
            self._queue.append(response)
        else:
            self._running[response.identity] = response
            self._turns.add(self._respond(response))

    def _respond(self, response: _Response) -> Iterator[Said]:
        wish = response.wish
        heard, question = self._context(wish)
        spoken = "audio" in self._modalities(wish)
        speech = self._speech(response, question, spoken)
        response.told = {
            "object": "realtime.response",
            "id": response.identity,
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "conversation_id": None if response.apart else f"conv_{self._unique[:24]}",
            "output_modalities": self._modalities(wish),
            "max_output_tokens": self._limit(wish),
            "audio": {"output": {name: self.session["audio"]["output"][name] for name in ("format", "voice")}},
            "usage": None,
            "metadata": wish.get("metadata"),
        }
        yield evolve(self._event("response.created", response=response.told), directives=response.changed)
        yield self._event("rate_limits.updated", rate_limits=_LIMITS)
        item: dict[str, Any] = {"id": self._id("item_"), "object": "realtime.item", "type": "message"}
        item |= {"status": "in_progress", "role": "assistant", "content": []}
        place = {"response_id": response.identity, "output_index": 0}
        yield self._event("response.output_item.added", **place, item=item)
        if not response.apart:
            yield self._event("conversation.item.added", previous_item_id=self._last, item=item)
        here = {**place, "item_id": item["id"], "content_index": 0}
        kind, told = ("audio", "transcript") if spoken else ("text", "text")
        yield self._event("response.content_part.added", **here, part={"type": kind, told: ""})
        words: list[str] = []
        for word in speech:
            if response.stop is not None:
                break
            words.append(word)
            name = "response.output_audio_transcript.delta" if spoken else "response.output_text.delta"
            yield self._event(name, **here, delta=word)
            if spoken:
                yield self._event("response.output_audio.delta", **here, delta=self._audio())
        text = "".join(words)
        if spoken:
            yield self._event("response.output_audio.done", **here)
            yield self._event("response.output_audio_transcript.done", **here, transcript=text)
        else:
            yield self._event("response.output_text.done", **here, text=text)
        yield self._event("response.content_part.done", **here, part={"type": kind, told: text})
        status, details = _ending(response, speech)
        item["status"] = "completed" if status == "completed" else "incomplete"
        item["content"] = [{"type": f"output_{kind}", told: text}]
        previous = self._last
        said = Amount(text=len(words), audio=2 * len(words) if spoken else 0)
        if not response.apart:
            self._items.append(_Item(item, Amount(text=0 if spoken else said.text, audio=said.audio)))
            yield self._event("conversation.item.done", previous_item_id=previous, item=item)
        yield self._event("response.output_item.done", **place, item=item)
        cached = _least(heard, self._cached + Amount(text=response.directives.cached))
        if not response.apart:
            self._cached = heard
        done = {"status": status, "status_details": details, "output": [item], "usage": _usage(heard, cached, said)}
        self._done(response)
        counted = Usage(prompt=heard.total, completion=said.total, cached=cached.total)
        yield evolve(self._event("response.done", response=response.told | done), usage=counted, endpoint="realtime")

    def _done(self, response: _Response) -> None:
        del self._running[response.identity]
        if self._queue and not any(not other.apart for other in self._running.values()):
            following = self._queue.popleft()
            self._running[following.identity] = following
            self._turns.add(self._respond(following))

    def _context(self, wish: dict[str, Any]) -> tuple[Amount, str]:
        """What a response hears: how much it is, and what the user said last."""
        items = self._items
        if isinstance(wish.get("input"), list):
            form, known = self._format("input"), {item.view["id"]: item for item in self._items}
            items = [
                known[view["id"]] if view.get("id") in known else _Item(view, _amount(view, form))
                for view in wish["input"]
                if isinstance(view, dict)
            ]
        heard = Amount(text=len(tokens(wish.get("instructions") or self.session["instructions"])))
        asked = ""
        for item in items:
            heard += item.amount
            if item.view.get("role") == "user":
                asked = text_of(item.view.get("content")) or _transcript(item.amount.audio * 100)
        return heard, asked

    def _speech(self, response: _Response, question: str, spoken: bool) -> Speech:
        limit = self._limit(response.wish)
        if isinstance(limit, int) and spoken:
            limit = max(1, limit // 3)  # of a word there are one token of text and two of audio
        speech = speak(question, response.directives, limit)
        return evolve(speech, count=(speech.count + 1) // 2) if response.directives.fail else speech

    def _limit(self, wish: dict[str, Any]) -> Any:
        return wish.get("max_output_tokens") or wish.get("max_response_output_tokens") or self.session[_MOST]

    def _modalities(self, wish: dict[str, Any]) -> list[str]:
        asked = wish.get("output_modalities") or wish.get("modalities") or self.session["output_modalities"]
        return ["audio" if "audio" in asked else "text"]

    def _audio(self) -> str:
        """A word's audio: no sound, but bytes of the right number."""
        size = _WORD * _RATES[self._format("output")]
        return base64.b64encode(b"".join(pattern(size))).decode("ascii")

    # Helpers.

    def _format(self, way: str) -> str:
        form = self.session["audio"][way]["format"]["type"]
        if form not in _RATES:
            raise Refused(400, f"Invalid value: '{form}'.", param=f"session.audio.{way}.format", code="invalid_value")
        return str(form)

    @property
    def _last(self) -> str | None:
        """The id of the conversation's last item."""
        return self._items[-1].view["id"] if self._items else None

    def _add(self, item: _Item) -> None:
        previous = self._last
        self._items.append(item)
        self._now("conversation.item.added", previous_item_id=previous, item=item.view)
        if not self._old:
            self._now("conversation.item.done", previous_item_id=previous, item=item.view)

    def _item(self, event: dict[str, Any]) -> _Item:
        wanted = _need(event, "item_id", str)
        found = next((item for item in self._items if item.view["id"] == wanted), None)
        if found is None:
            message = f"Item with item_id '{wanted}' does not exist."
            raise Refused(400, message, param="item_id", code="item_not_found")
        return found

    def _id(self, prefix: str) -> str:
        return f"{prefix}{self._unique[:16]}{next(self._numbers):05x}"

    def _event(self, name: str, **fields: Any) -> Said:
        value = {"type": name, "event_id": f"event_{self._unique[:12]}{next(self._events):08x}", **fields}
        # Written down at once, as what it shows may change before it is sent.
        return Said(orjson.loads(orjson.dumps(beta.event_of(value) if self._old else value)))

    def _now(self, name: str, **fields: Any) -> None:
        self._turns.now(self._event(name, **fields))

    def _refuse(self, refused: Refused, event: dict[str, Any]) -> None:
        self._now("error", error={**refused.error, "event_id": event.get("event_id")})


_MOST = "max_output_tokens"

_DETECTION = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
_INPUT = {
    "format": {"type": "audio/pcm", "rate": 24000},
    "transcription": None,
    "noise_reduction": None,
    "turn_detection": _DETECTION,
}
_REALTIME: dict[str, Any] = {
    "type": "realtime",
    "object": "realtime.session",
    "model": "gpt-realtime",
    "output_modalities": ["audio"],
    "instructions": "You are a helpful stand-in.",
    "tools": [],
    "tool_choice": "auto",
    _MOST: "inf",
    "tracing": None,
    "truncation": "auto",
    "prompt": None,
    "expires_at": CREATED + 3600,
    "audio": {
        "input": _INPUT,
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
    },
    "include": None,
}
_TRANSCRIPTION: dict[str, Any] = {
    "type": "transcription",
    "object": "realtime.transcription_session",
    "expires_at": CREATED + 3600,
    "audio": {"input": _INPUT},
    "include": None,
}
_LIMITS = [
    {"name": "requests", "limit": 10000, "remaining": 9999, "reset_seconds": 0.006},
    {"name": "tokens", "limit": 2_000_000, "remaining": 1_990_000, "reset_seconds": 0.3},
]


def _need(event: dict[str, Any], name: str, kind: type) -> Any:
    value = event.get(name)
    if not isinstance(value, kind):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise Refused(400, f"Missing or invalid parameter: '{name}'.", param=name, code=code)
    return value


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old one with what the new one has, member by member; null takes the place of an object."""
    both = {
        name: _merged(old[name], value) if isinstance(old.get(name), dict) and isinstance(value, dict) else value
        for name, value in new.items()
    }
    return {**old, **both}


_SHAPE: tuple[tuple[tuple[str, ...], type | tuple[type, ...]], ...] = (
    (("instructions",), str),
    (("output_modalities",), list),
    (("audio",), dict),
    (("audio", "input"), dict),
    (("audio", "input", "format"), dict),
    (("audio", "input", "transcription"), (dict, type(None))),
    (("audio", "input", "turn_detection"), (dict, type(None))),
    (("audio", "output"), dict),
    (("audio", "output", "format"), dict),
)
"""What is built upon of a session, and its type."""

_ABSENT = object()


def _checked(session: dict[str, Any]) -> dict[str, Any]:
    """The session itself.

    :raises Refused: where something in it is of a type that OpenAI would refuse.
    """
    if session["type"] not in ("realtime", "transcription"):
        raise Refused(400, "Invalid value of 'session.type'.", param="session.type", code="invalid_value")
    for path, kind in _SHAPE:
        value: Any = session
        for name in path:
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT and not isinstance(value, kind):
            param = ".".join(("session", *path))
            raise Refused(400, f"Invalid type for '{param}'.", param=param, code="invalid_type")
    return session


def _spoken(milliseconds: float) -> int:
    return -int(-milliseconds // 100)


def _transcript(milliseconds: float) -> str:
    return f"{milliseconds / 1000:g} seconds of speech"


def _amount(view: dict[str, Any], form: str) -> Amount:
    """What an item of the client's counts."""
    amount = Amount(text=len(tokens(text_of(view.get("output")))))
    parts = view.get("content")
    for part in parts if isinstance(parts, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_audio" and isinstance(part.get("audio"), str):
            amount += Amount(audio=_spoken(len(part["audio"]) * 3 / 4 / _RATES[form]))
        elif kind == "input_image":
            amount += Amount(image=_IMAGE)
        elif kind is not None:
            amount += Amount(text=len(tokens(text_of([part, {"text": part.get("transcript")}]))))
    return amount


def _ending(response: _Response, speech: Speech) -> tuple[str, dict[str, Any] | None]:
    """A response's last status and its details."""
    if response.stop is not None:
        return "cancelled", {"type": "cancelled", "reason": response.stop}
    if response.directives.fail:
        error = {"type": "server_error", "code": "server_error", "message": "The model failed, as was asked for."}
        return "failed", {"type": "failed", "error": error}
    if speech.truncated:
        return "incomplete", {"type": "incomplete", "reason": _MOST}
    return "completed", None


def _least(one: Amount, other: Amount) -> Amount:
    return Amount(min(one.text, other.text), min(one.audio, other.audio), min(one.image, other.image))


def _kinds(amount: Amount) -> dict[str, int]:
    return {"text_tokens": amount.text, "audio_tokens": amount.audio, "image_tokens": amount.image}


def _usage(heard: Amount, cached: Amount, said: Amount) -> dict[str, Any]:
    return {
        "total_tokens": heard.total + said.total,
        "input_tokens": heard.total,
        "output_tokens": said.total,
        "input_token_details": {
            **_kinds(heard),
            "cached_tokens": cached.total,
            "cached_tokens_details": _kinds(cached),
        },
        "output_token_details": {"text_tokens": said.text, "audio_tokens": said.audio},
    }
