"""What goes in and out of an endpoint: plain values, no socket."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
from attrs import field, frozen
from multipart import MultipartError, MultipartParser, parse_options_header  # type: ignore[import-untyped]

from flowstack.errors import Pairs
from flowstack.testing.standin.faults import Directives

CREATED = 1_735_689_600
"""Every ``created`` of an answer (2025-01-01T00:00:00Z): two runs, or two ways to one stand-in, give equal bytes."""

EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"


class Refused(Exception):
    """An endpoint's own error answer, in the shape of OpenAI's.

    :param code: OpenAI's ``code``, or None where OpenAI gives null.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Pairs = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": type, "param": param, "code": code}
        self.headers = headers


@frozen
class Usage:
    """Tokens of one answer; ``cached`` is part of ``prompt`` and ``reasoning`` part of ``completion``."""

    prompt: int
    completion: int = 0
    cached: int = 0
    reasoning: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.reasoning + other.reasoning,
        )

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion

    def as_chat(self) -> dict[str, Any]:
        """The ``usage`` object of chat completions."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.total,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def as_response(self) -> dict[str, Any]:
        """The ``usage`` object of the responses API."""
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.total,
        }


@frozen(slots=False)
class Request:
    """One request, complete.

    :ivar target: the request target as it stood on the wire.
    :ivar headers: names in wire case, in wire order.
    :ivar version: of HTTP.
    """

    method: str
    target: str
    headers: Pairs
    body: bytes = field(default=b"", repr=False)
    version: str = "1.1"

    def header(self, name: str) -> str | None:
        """The first value of a header field, or None."""
        return next(iter(self.values(name)), None)

    def values(self, name: str) -> list[str]:
        """All values of a header field, in wire order."""
        wanted = name.lower().encode("ascii")
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == wanted]

    def words(self, name: str) -> list[str]:
        """The members of a header field that is a list (RFC 9110 §5.6.1)."""
        found = (word.strip() for value in self.values(name) for word in value.split(","))
        return [word for word in found if word]

    @cached_property
    def path(self) -> str:
        """The target's path, decoded."""
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, str]:
        """The target's query, the last value of each name."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the body in hex: what the ids of deterministic answers are made from."""
        return hashlib.sha256(self.body).hexdigest()

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        :raises Refused: with OpenAI's own 400 where it is not one.
        """
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise Refused(
                400,
                "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP"
                " library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)",
            )
        return value

    def need(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """A required parameter of the JSON body.

        :raises Refused: where it is missing or of another type.
        """
        value = self.json.get(name)
        if value is None:
            raise Refused(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
        if not isinstance(value, kind):
            found = type(value).__name__
            raise Refused(400, f"Invalid type for '{name}': got {found}.", param=name, code="invalid_type")
        return value

    @cached_property
    def form(self) -> dict[str, Part]:
        """The parts of a multipart body by name; a repeated name keeps its last part.

        :raises Refused: 400 where the body is no ``multipart/form-data`` (RFC 7578), or has too many parts.
        """
        kind, options = parse_options_header(self.header("content-type") or "")
        if kind != "multipart/form-data" or not options.get("boundary"):
            raise Refused(400, "Invalid body: expected multipart/form-data with a boundary.")
        size = len(self.body) + 1
        parser = MultipartParser(
            io.BytesIO(self.body), options["boundary"], strict=True, part_limit=64, spool_limit=size, memory_limit=size
        )
        try:
            return {part.name: Part(part.raw, part.filename, part.content_type) for part in parser}
        except MultipartError as fault:
            raise Refused(400, f"Could not parse multipart form: {fault}") from None


@frozen
class Part:
    """One part of a multipart body."""

    data: bytes = field(repr=False)
    filename: str | None
    content_type: str

    @property
    def text(self) -> str:
        """The content as text."""
        return self.data.decode("utf-8", "replace")


@frozen
class Said:
    """One event of a WebSocket's server.

    :ivar event: what is sent, as one text message of JSON.
    :ivar usage: what the event tells the client; counted when it has been sent.
    :ivar endpoint: the name under which the tokens are counted.
    :ivar asked: the request that was answered herewith, for the organization's sums, or None.
    :ivar directives: what is in force from this event on, where a client's event said so; else None.
    """

    event: dict[str, Any]
    usage: Usage | None = None
    endpoint: str = ""
    asked: Request | None = None
    directives: Directives | None = None


class Talk(Protocol):
    """What is spoken over one WebSocket, without its socket.

    :ivar wake: set by the socket; to be called when there is something to say though the client said nothing.
    :ivar over: whether the server should close, once all is said.
    """

    wake: Callable[[], None]
    over: bool

    def hear(self, message: str | bytes) -> None:
        """Take a message of the client's."""

    def say(self) -> Said | None:
        """The next event to send, or None where there is none until somebody has said more."""


@frozen
class Reply:
    """An answer: what the socket side turns into bytes, with OpenAI's headers and the faults asked for.

    :ivar pieces: the body; each piece is one write. Iterated once, as the client takes it.
    :ivar length: the body's size in bytes, or None where it is sent without a Content-Length.
    :ivar usage: what the body tells the client; counted when the answer has ended whole.
    :ivar billed: what is used where the body does not tell it.
    :ivar endpoint: the name under which the tokens are counted.
    :ivar talk: what follows a 101, or None.
    """

    status: int = 200
    content_type: str | None = JSON
    pieces: Iterable[bytes] = ()
    length: int | None = None
    headers: Pairs = ()
    usage: Usage | None = None
    billed: Usage | None = None
    endpoint: str = ""
    talk: Talk | None = None


def json_reply(value: Any, *, status: int = 200, usage: Usage | None = None, headers: Pairs = ()) -> Reply:
    """A JSON answer, indented by two as OpenAI's are."""
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return Reply(status=status, pieces=(body,), length=len(body), usage=usage, headers=headers)


def stream_reply(
    pieces: Iterable[bytes],
    *,
    content_type: str = EVENT_STREAM,
    usage: Usage | None = None,
    billed: Usage | None = None,
) -> Reply:
    """An answer of unknown length."""
    return Reply(content_type=content_type, pieces=pieces, usage=usage, billed=billed)


def bytes_reply(data: bytes, content_type: str, *, headers: Pairs = ()) -> Reply:
    """A binary answer of known length, in writes of 64 KiB."""
    return Reply(content_type=content_type, pieces=slices(data), length=len(data), headers=headers)


def slices(data: bytes, size: int = 65536) -> Iterator[bytes]:
    """The data in order, ``size`` bytes at a time."""
    return (data[start : start + size] for start in range(0, len(data), size))


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event, as OpenAI frames it: an optional ``event`` line, one ``data`` line, a blank line."""
    head = f"event: {name}\n".encode("ascii") if name else b""
    return head + b"data: " + orjson.dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""The end of a chat or completion stream (OpenAI reference, chat streaming)."""
