"""Which operation of the OpenAI API a request is, and what follows from it for the ledger and for a key's limits.

The endpoints are those of the OpenAI API reference, of Azure's ``deployments/<name>/…`` (Azure OpenAI reference) and
the few of Anthropic's Messages API; the names are those of ``gen_ai.operation.name`` (OpenTelemetry, GenAI semantic
conventions) where it has one.

A path is read as an upstream may read it: percent-decoded, empty segments left out. What is no known path after that,
and what holds characters at which servers may read on or stop (controls, backslashes, ``;``, ``?``, bytes above 127) is
:data:`UNKNOWN`, of which nothing can be said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal
from urllib.parse import unquote_to_bytes

Family = Literal[
    "chat", "completions", "responses", "embeddings", "audio", "images", "moderations", "batch", "messages", "realtime",
    "other",
]
Body = Literal["json", "multipart"]
Work = Literal["response", "batch", "message_batch"]
"""Work whose usage is known later than its beginning: a background response, OpenAI's batches, and Anthropic's."""


@dataclass(frozen=True, eq=False)
class Operation:
    """What a request asks for. There is one object for each, so that they can be compared by identity.

    :ivar name: for metrics and reports; of a bounded set.
    :ivar family: which shapes its bodies have.
    :ivar generates: whether this call causes the work: the usage in its answer is charged. All others' is not.
    :ivar work: which work its answer can show, begun or finished, whose usage is known later; or None.
    :ivar begins: whether this call may begin such work.
    :ivar body: how the request's body names the model, or None where it names none.
    :ivar model_in_path: whether the path names a model or a deployment: :func:`model_of_path` has it.
    :ivar inference: whether it is an inference call, or lists or shows models: what a key may do with a provider key
        that is not its own.
    :ivar hidden: whether it may start work whose model or cost cannot be seen from here.
    :ivar socket: of a WebSocket: whether it is one.
    :ivar bodiless: whether it needs no body: one that comes with it may be for another call, of a server that looks at
        a path's beginning or not at the method.
    """

    name: str
    family: Family = "other"
    generates: bool = False
    work: Work | None = None
    begins: bool = False
    body: Body | None = None
    model_in_path: bool = False
    inference: bool = False
    hidden: bool = False
    bodiless: bool = False
    socket: bool = False


def _generating(name: str, family: Family, body: Body = "json") -> Operation:
    return Operation(name, family, generates=True, body=body, inference=True)


OTHER = Operation("other", bodiless=True)
"""Nothing known, and nothing started: OPTIONS."""

UNKNOWN = Operation("other", hidden=True)
"""Any other method on a path that is not known here."""


def _asking(
    name: str,
    family: Family = "other",
    *,
    work: Work | None = None,
    model_in_path: bool = False,
    inference: bool = False,
) -> Operation:
    return Operation(name, family, work=work, model_in_path=model_in_path, inference=inference, bodiless=True)


_MODELS = _asking("models", inference=True)
_MODEL = _asking("models", model_in_path=True, inference=True)
_RESPONSE = _asking("responses.retrieve", "responses", work="response")
_BATCH = _asking("batch.retrieve", "batch", work="batch")
_MESSAGE_BATCH = _asking("batch.retrieve", "batch", work="message_batch")
_RESULTS = _asking("batch.results", "batch", work="message_batch")

_POST = {
    b"chat/completions": _generating("chat", "chat"),
    b"completions": _generating("text_completion", "completions"),
    b"embeddings": _generating("embeddings", "embeddings"),
    b"responses": replace(_generating("responses", "responses"), work="response", begins=True),
    b"responses/compact": _generating("responses.compact", "responses"),
    b"responses/input_tokens": Operation("responses.input_tokens", "responses", body="json", inference=True),
    b"decisions": _generating("decisions", "other"),
    b"moderations": _generating("moderations", "moderations"),
    b"audio/speech": _generating("speech", "audio"),
    b"audio/transcriptions": _generating("transcription", "audio", "multipart"),
    b"audio/translations": _generating("translation", "audio", "multipart"),
    b"images/generations": _generating("image_generation", "images"),
    b"images/edits": _generating("image_edit", "images", "multipart"),
    b"images/variations": _generating("image_variation", "images", "multipart"),
    b"messages": _generating("messages", "messages"),
    b"messages/count_tokens": Operation("messages.count_tokens", "messages", body="json", inference=True),
    b"messages/batches": Operation("batch", "batch", work="message_batch", begins=True, hidden=True),
    b"batches": Operation("batch", "batch", work="batch", begins=True, hidden=True),
    b"conversations": Operation("conversations"),
    b"files": Operation("files"),
    b"uploads": Operation("uploads"),
}

_GET = {
    b"models": _MODELS,
    b"chat/completions": _asking("chat.list", "chat"),
    b"batches": _asking("batch.list", "batch", work="batch"),
    b"messages/batches": _asking("batch.list", "batch", work="message_batch"),
}

_ID = rb"[A-Za-z0-9_.:-]+"
"""What an id is made of. A path with anything else in an id's place is unknown, rather than harmless."""

_MODEL_NAME = rb"[A-Za-z0-9_.:@+~ -]+(?:/[A-Za-z0-9_.:@+~ -]+)*"

_STORED = (
    (rb"conversations(?:/.*)?", _asking("conversations")),
    (rb"(?:files|uploads)(?:/.*)?", _asking("files")),
    (rb"batches/.*|messages/batches(?:/.*)?", _asking("batch.other", "batch")),
    (rb"(?:assistants|threads)(?:/.*)?", _asking("assistants")),
    (rb"agents(?:/.*)?", _asking("agents")),
    (rb"chatkit/.*", _asking("chatkit")),
    (rb"containers(?:/.*)?", _asking("containers")),
    (rb"evals(?:/.*)?", _asking("evals")),
    (rb"fine_tuning/.*|fine-tunes(?:/.*)?", _asking("fine_tuning")),
    (rb"vector_stores(?:/.*)?", _asking("vector_stores")),
    (rb"videos(?:/.*)?", _asking("videos")),
)
"""What lies at the provider; to look at it or to remove it starts nothing."""

CLIENT_SECRETS = "realtime.client_secrets"
"""Of the operation that makes a secret with which a browser opens a WebSocket or a call."""

CALLS = "realtime.calls"
"""Of the operation that begins a call, whose media go to the provider and back without Flowstack."""

_UPDATE = Operation("chat.update", "chat", hidden=True)

_POST_PATTERNS = (
    (rb"responses/ID/cancel", _asking("responses.cancel", "responses", work="response")),
    (rb"batches/ID/cancel", _asking("batch.cancel", "batch", work="batch")),
    (rb"messages/batches/ID/cancel", _asking("batch.cancel", "batch", work="message_batch")),
    (rb"chat/completions/ID", _UPDATE),
    (rb"fine_tuning/jobs/ID/(?:cancel|pause)", _asking("fine_tuning")),
    (rb"conversations/ID(?:/items)?", Operation("conversations")),
    (rb"uploads/ID/(?:parts|complete|cancel)", Operation("uploads")),
    (rb"(?:assistants|threads)(?:/.*)?", Operation("assistants", hidden=True)),
    (rb"agents(?:/.*)?", Operation("agents", hidden=True)),
    (rb"chatkit/.*", Operation("chatkit", hidden=True)),
    (rb"containers(?:/.*)?", Operation("containers", hidden=True)),
    (rb"evals(?:/.*)?", Operation("evals", hidden=True)),
    (rb"fine_tuning/.*|fine-tunes(?:/.*)?", Operation("fine_tuning", hidden=True)),
    (rb"realtime/(?:client_secrets|(?:transcription_)?sessions)", Operation(CLIENT_SECRETS, hidden=True)),
    (rb"realtime/calls", Operation(CALLS, hidden=True)),
    (rb"realtime/.*|live/.*", Operation("realtime", hidden=True)),
    (rb"vector_stores(?:/.*)?", Operation("vector_stores", hidden=True)),
    (rb"videos(?:/.*)?", Operation("videos", hidden=True)),
)
"""The first that matches the whole path counts. Vector stores and containers cost by size and time. The metadata of a
stored chat completion are hidden since a server that looks at the path's beginning makes a new one."""

_GET_PATTERNS = (
    (rb"responses/ID", _RESPONSE),
    (rb"batches/ID", _BATCH),
    (rb"messages/batches/ID", _MESSAGE_BATCH),
    (rb"messages/batches/ID/results", _RESULTS),
    (rb"models/MODEL", _MODEL),
    (rb"responses/ID/.*", _asking("responses.list", "responses")),
    (rb"chat/completions/ID(?:/messages)?", _asking("chat.retrieve", "chat")),
    *_STORED,
)

_DELETE_PATTERNS = (
    (rb"models/MODEL", _asking("models.delete", model_in_path=True)),
    (rb"responses/ID", _asking("responses.delete", "responses")),
    (rb"chat/completions/ID", _asking("chat.delete", "chat")),
    *_STORED,
)

_Patterns = tuple[tuple[re.Pattern[bytes], Operation], ...]


def _compiled(patterns: tuple[tuple[bytes, Operation], ...]) -> _Patterns:
    return tuple(
        (re.compile(pattern.replace(b"MODEL", _MODEL_NAME).replace(b"ID", _ID)), operation)
        for pattern, operation in patterns
    )


_Table = tuple[dict[bytes, Operation], _Patterns, Operation]

_MESSAGE_BATCH_READ = replace(_POST[b"messages/batches"], body="json")

_READ: _Table = (_GET, _compiled(_GET_PATTERNS), UNKNOWN)
_WRITE: _Table = (_POST, _compiled(_POST_PATTERNS), UNKNOWN)
_NOTHING: dict[bytes, Operation] = {}

_BY_METHOD: dict[bytes, _Table] = {
    b"POST": _WRITE,
    b"GET": _READ,
    b"HEAD": _READ,
    b"DELETE": (_NOTHING, _compiled(_DELETE_PATTERNS), UNKNOWN),
    b"OPTIONS": (_NOTHING, (), OTHER),
}
_ANY_METHOD: _Table = (_NOTHING, (), UNKNOWN)

_DEPLOYMENT = re.compile(rb"(?:openai/)?(?:v1/)?(?:deployments|engines)/([^/]+)/(.+)", re.DOTALL)
"""Azure's paths and those of OpenAI's first API: the path, not the body, says which model answers."""

_BASE = re.compile(rb"openai/(?:v1/)?|v1/")
"""What stands before the path where the served prefix is shorter than the base URL's path."""

_IN_DEPLOYMENT = {
    operation: replace(operation, model_in_path=True) for operation in _POST.values() if operation.generates
}

_STRICT = {
    (path, deployed): replace(operation, hidden=True, model_in_path=deployed)
    for path, operation in _POST.items()
    for deployed in (False, True)
    if operation.generates
}


def operation_of(method: bytes, rest: bytes) -> Operation:
    """Which operation a request is.

    :param method: as it came; methods are case-sensitive (RFC 9110 §9.1).
    :param rest: the path below the served prefix, without the query, byte for byte.
    """
    table, patterns, unknown = _BY_METHOD.get(method, _ANY_METHOD)
    found = table.get(rest)
    return found if found is not None else _by_pattern(table, patterns, unknown, rest)


@cache
def with_body(operation: Operation) -> Operation:
    """What an operation is to which a body comes that needs none."""
    return replace(operation, hidden=True, inference=False) if operation.bodiless else operation


_GENERATING = re.compile(
    rb"[\\/]*(?:(?:openai|v1|(?:deployments|engines)[\\/]+[^\\/]+)[\\/]+)*(%b)"
    % b"|".join(path.replace(b"/", rb"[\\/]+") for path in sorted(_POST, reverse=True) if _POST[path].generates),
    re.IGNORECASE,
)


def read_strictly(operation: Operation, rest: bytes) -> Operation:
    """What a hidden operation is read as where its key is limited and may start it all the same.

    If its path begins as one that generates, some server generates: its body is then held to the key like that one's.
    A message batch has its requests in its body, which need not be read for any other key: it may have 256 MB.

    :param rest: as for :func:`operation_of`.
    """
    if operation is _POST[b"messages/batches"]:
        return _MESSAGE_BATCH_READ
    if operation is not UNKNOWN and operation is not _UPDATE and not operation.bodiless:
        return operation
    found = _GENERATING.match(unquote_to_bytes(rest))
    if found is None:
        return operation
    deployed = re.search(rb"(?:deployments|engines)[\\/]", found[0], re.IGNORECASE) is not None
    return _STRICT[re.sub(rb"[\\/]+", b"/", found[1]).lower(), deployed]


def _by_pattern(table: dict[bytes, Operation], patterns: _Patterns, unknown: Operation, rest: bytes) -> Operation:
    path = _decoded(rest)
    if path is None:
        return unknown
    within = _DEPLOYMENT.fullmatch(path)
    if within is not None:
        return _IN_DEPLOYMENT.get(table.get(within[2], unknown), unknown)
    path = _BASE.sub(b"", path, count=1) if path.startswith((b"openai/", b"v1/")) else path
    found = table.get(path)
    if found is not None:
        return found
    for pattern, operation in patterns:
        if pattern.fullmatch(path):
            return operation
    return unknown


_SOCKET = Operation("websocket", inference=True, socket=True)
_ANY_SOCKET = Operation("websocket", hidden=True, socket=True)

_ON_SOCKETS = {
    b"realtime": _generating("realtime", "realtime"),
    b"responses": replace(_POST[b"responses"], work=None, begins=False),
}


def socket_of(rest: bytes) -> tuple[Operation, Operation | None]:
    """Which operation it is to open a WebSocket, and which is that of the responses on it; None where that is unknown.

    OpenAI reference: Realtime, and the WebSocket mode of responses.

    :param rest: as for :func:`operation_of`.
    """
    path = _decoded(rest)
    response = None if path is None else _ON_SOCKETS.get(_BASE.sub(b"", path, count=1))
    return (_ANY_SOCKET if response is None else _SOCKET), response


_READ_TWO_WAYS = re.compile(rb"[\x00-\x1f\x7f-\xff%\\;?#]|(?:^|/)[. ]+(?:/|$)")
"""Once it is decoded. What is above 127 some servers normalise (Unicode's full stops and slashes) or take overlong."""


def _decoded(rest: bytes) -> bytes | None:
    """The path as an upstream may read it; None where even then it holds what two servers read differently."""
    if b"%" in rest:
        rest = unquote_to_bytes(rest)
    if _READ_TWO_WAYS.search(rest):
        return None
    if rest.endswith(b"/") or b"//" in rest or rest.startswith(b"/"):
        rest = b"/".join(segment for segment in rest.split(b"/") if segment)
    return rest


def model_of_path(rest: bytes) -> str | None:
    """The model or the deployment that a path names, for an operation that says :attr:`~Operation.model_in_path`.

    :param rest: as for :func:`operation_of`.
    """
    path = _decoded(rest)
    if path is None:
        return None
    within = _DEPLOYMENT.fullmatch(path)
    if within is not None:
        return within[1].decode(errors="replace")
    before, found, model = path.partition(b"models/")
    return model.decode(errors="replace") if found and before in (b"", b"openai/", b"v1/", b"openai/v1/") else None


_OF_PATH = re.compile(rb"messages/batches/(%b)/results" % _ID)


def work_of_path(rest: bytes) -> str | None:
    """The id of the batch whose results a path asks for: these do not name it.

    :param rest: as for :func:`operation_of`.
    """
    found = _OF_PATH.fullmatch(_BASE.sub(b"", _decoded(rest) or b"", count=1))
    return None if found is None else found[1].decode()
