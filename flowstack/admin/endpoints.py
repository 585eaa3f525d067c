"""The API's endpoints: one table, by which requests are answered and which is published as OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, frozen

from flowstack.admin.access import MANAGER, VIEWER
from flowstack.admin.schemas import Schema, answer, listed, members, nullable, number, one_of, text, whole
from flowstack.keys import ATTRIBUTES, GROUP_ATTRIBUTES
from flowstack.ledger.moments import EXPECTED
from flowstack.ledger.questions import WHAT
from flowstack.notation import DURATION

MOST_LINES = 10_000
"""Of a report, of an export, and of keys."""


@frozen(slots=True, kw_only=True)
class Parameter:
    """One of a URL's.

    :ivar repeats: whether it may stand there several times.
    """

    text: str
    schema: Schema
    repeats: bool = False
    required: bool = False


@frozen(slots=True, kw_only=True)
class Endpoint:
    """One call.

    :ivar name: what it is, in one word: ``keys.add``.
    :ivar path: with ``{name}`` for what varies.
    :ivar role: who may; None for everybody who reaches the listener.
    :ivar body: of the request; None where there is none.
    :ivar answer: None where there is no body.
    :ivar seconds: it may take; 0 where no other process is asked.
    """

    name: str
    method: str
    path: str
    summary: str
    text: str = ""
    role: str | None = VIEWER
    query: Mapping[str, Parameter] = Factory(dict)
    places: Mapping[str, Schema] = Factory(dict)
    body: Schema | None = None
    answer: Schema | None = None
    status: int = 200
    seconds: float = 5.0
    types: tuple[str, ...] = ("application/json",)


_STRING: Schema = {"type": "string"}
_ANY: Schema = {"type": "object"}
_MAYBE: Schema = {"type": ["string", "null"]}
_COUNT: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
_FLAG: Schema = {"type": "boolean"}

_MOMENT = EXPECTED.removeprefix("expected ")

_TIME = {
    "since": Parameter(text=f"From then on: {_MOMENT}.", schema=text(64)),
    "until": Parameter(text="Up to then, and not including it.", schema=text(64)),
}
_WHERE = Parameter(
    text=f"Conditions such as model=gpt-4o*, each on a field: {WHAT}. An empty pattern means those without. Several on "
    "one field: one of them.",
    schema=text(2048),
    repeats=True,
)
_REPORT_QUERY = {
    **_TIME,
    "by": Parameter(text=f"With commas between: {WHAT}. Empty: one line of all.", schema={**_STRING, "maxLength": 512}),
    "where": _WHERE,
    "sort": Parameter(text="A field, ascending, or a figure, descending. Without: time, or cost.", schema=text(64)),
    "limit": Parameter(text="So many lines at most; how many more there are is said.", schema=whole(1, MOST_LINES)),
}
_FILTERS = {
    **_TIME,
    "where": _WHERE,
    "status": Parameter(text="A status, 5xx, or several with | between.", schema=text(64)),
    "end": Parameter(text="How it ended.", schema=text(64)),
    "error": Parameter(text="The code of Flowstack's own error.", schema=text(64)),
    "id": Parameter(text="A request's id: Flowstack's, or the provider's.", schema=text(256)),
    "cost_min": Parameter(text="US dollars.", schema=number()),
    "cost_max": Parameter(text="US dollars.", schema=number()),
    "duration_min": Parameter(text="Milliseconds.", schema=number()),
    "duration_max": Parameter(text="Milliseconds.", schema=number()),
}

REPORT = answer(
    since=_MAYBE, until=_MAYBE, where=listed(_STRING), left_out=_COUNT, journal_bytes_not_indexed=_COUNT,
    damaged_lines=_COUNT, by=listed(_STRING), groups=listed(_ANY), total=_ANY, no_price=listed(_ANY),
    no_usage=listed(_ANY),
)  # fmt: skip

_REQUESTS = answer(
    requests=listed(_ANY), older=_MAYBE, newer=_STRING, searched_from=_MAYBE, searched_until=_MAYBE, complete=_FLAG,
    node=_MAYBE,
)  # fmt: skip

_RELOAD = answer(ok=_FLAG, generation=_COUNT, keys=_COUNT, message=_STRING)
_CHANGED = {"reload": _RELOAD, "warnings": listed(_STRING)}

_ID = {"id": text(64, pattern="^[A-Za-z0-9_.-]+$")}
_NAME = {"name": text(64, pattern="^[A-Za-z0-9_.-]+$")}


def _attributes(known: Mapping[str, Any]) -> Schema:
    """Words as a line of the keystore has them; null takes one out."""
    return members(**{
        name: {**nullable(text(4096)), "description": one.help, "examples": [one.example]}
        for name, one in known.items()
        if not one.by_rotation
    })  # fmt: skip


_OF_KEY, _OF_GROUP = _attributes(ATTRIBUTES), _attributes(GROUP_ATTRIBUTES)

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        name="session",
        method="GET",
        path="/session",
        summary="Who asks, and what this Flowstack is.",
        role=None,
        seconds=0,
        answer=answer(
            signed_in=_FLAG, role={"type": ["string", "null"], "enum": [VIEWER, MANAGER, None]}, csrf_token=_MAYBE,
            token=_FLAG, manage_keys=_FLAG, version=_MAYBE, time=_STRING,
        ),
    ),
    Endpoint(
        name="session.begin",
        method="POST",
        path="/session",
        summary="Sign in with a token; the answer sets a cookie.",
        text="Five wrong ones from an address in a minute, or fifty from all, and none is looked at until it is over.",
        role=None,
        seconds=0,
        body=members(("token",), token=text(4096)),
        status=204,
    ),
    Endpoint(
        name="session.end",
        method="DELETE",
        path="/session",
        summary="Sign out.",
        role=None,
        seconds=0,
        status=204,
    ),
    Endpoint(
        name="link",
        method="POST",
        path="/session/link",
        summary="Make a code by which a browser signs in, once and within ten minutes, as whose token this is.",
        text="For who sends the token as a bearer. A browser takes the code from the address /#code=CODE, where no "
        "server or log sees it.",
        seconds=0,
        answer=answer(code=_STRING, seconds=_COUNT),
        status=201,
    ),
    Endpoint(
        name="link.follow",
        method="POST",
        path="/session/code",
        summary="Sign in by such a code; the answer sets a cookie.",
        role=None,
        seconds=0,
        body=members(("code",), code=text(256)),
        status=204,
    ),
    Endpoint(
        name="report",
        method="GET",
        path="/report",
        summary="What was used: the same as ``flowstack usage --format json``.",
        query=_REPORT_QUERY,
        answer=REPORT,
    ),
    Endpoint(
        name="requests",
        method="GET",
        path="/requests",
        summary="Requests, what ended last first.",
        text="It looks back for some seconds, and gives what it found by then. ``older`` is where to look on, null "
        "where nothing is left; ``newer`` is where to look for what came since, with direction=newer. Rows are those "
        "that the journal still has; bodies are kept nowhere. With ``[shared] postgres`` they are those of the machine "
        "that ``node`` names; one request, by its id, is found from any.",
        query={
            **_FILTERS,
            "limit": Parameter(text="So many at most; 50 without.", schema=whole(1, 500)),
            "cursor": Parameter(text="From an answer before.", schema=text(4096)),
            "direction": Parameter(text="older without.", schema=one_of("older", "newer")),
        },
        answer=_REQUESTS,
        seconds=8.0,
    ),
    Endpoint(
        name="requests.export",
        method="GET",
        path="/requests/export",
        summary="The same as a file, whole rows, at most 10,000.",
        text="Where it is cut, JSON says so by ``complete``, and CSV in a last line of its own.",
        query={**_FILTERS, "format": Parameter(text="json without.", schema=one_of("csv", "json"))},
        answer=answer(requests=listed(_ANY), complete=_FLAG),
        types=("application/json", "text/csv"),
        seconds=25.0,
    ),
    Endpoint(
        name="requests.one",
        method="GET",
        path="/requests/{id}",
        summary="One request: its whole row, and what each of its fields means.",
        places={"id": text(256)},
        answer=answer(request=_ANY, fields=listed(answer(name=_STRING, type=_STRING, meaning=_STRING))),
        seconds=8.0,
    ),
    Endpoint(
        name="budgets",
        method="GET",
        path="/budgets",
        summary="How each budget stands, the fullest first.",
        text="projected_usd is what would be spent at the period's end if it went on as so far in it.",
        answer=answer(budgets=listed(answer(
            of=one_of("key", "group"), id=_STRING, owner=_MAYBE, upstream=_MAYBE, amount_usd=_NUMBER, spent_usd=_NUMBER,
            left_usd=_NUMBER, period=_STRING, resets_at=_MAYBE, projected_usd=_MAYBE_NUMBER,
        ))),
    ),
    Endpoint(
        name="live",
        method="GET",
        path="/live",
        summary="What happens now, in all processes together.",
        seconds=0,
        answer=answer(
            in_flight=_COUNT, streams_open=_COUNT, websockets_open=_COUNT, upstreams=listed(_ANY), reload=_ANY,
            ledger=_ANY, workers=_ANY, uptime_seconds=_NUMBER, listening=listed(_STRING),
        ),
    ),
    Endpoint(
        name="keys",
        method="GET",
        path="/keys",
        summary="Keys and what they may do, with what is used of their limits; never secrets or hashes.",
        query={
            "search": Parameter(text="A part of the id, owner, group or note.", schema=text(256)),
            "limit": Parameter(text="So many at most.", schema=whole(1, MOST_LINES)),
        },
        answer=answer(keys=listed(answer(id=_STRING, state=_STRING)), left_out=_COUNT),
    ),
    Endpoint(
        name="keys.add",
        method="POST",
        path="/keys",
        summary="Make a key. Its secret is in this answer alone.",
        role=MANAGER,
        body=members(attributes=_OF_KEY),
        answer=answer(key=_ANY, secret=_STRING, **_CHANGED),
        status=201,
        seconds=20.0,
    ),
    Endpoint(
        name="keys.change",
        method="PATCH",
        path="/keys/{id}",
        summary="Change what a key may do, or disable or enable it; what is not named stays.",
        role=MANAGER,
        places=_ID,
        body=members(attributes=_OF_KEY, disabled=_FLAG),
        answer=answer(key=_ANY, **_CHANGED),
        seconds=20.0,
    ),
    Endpoint(
        name="keys.rotate",
        method="POST",
        path="/keys/{id}/rotate",
        summary="Give a key a new secret, which is in this answer alone; the old one stays valid for the grace.",
        role=MANAGER,
        places=_ID,
        body=members(grace={**text(16), "description": f"{DURATION}. Without: 24h.", "examples": ["7d"]}),
        answer=answer(key=_ANY, secret=_STRING, **_CHANGED),
        seconds=20.0,
    ),
    Endpoint(
        name="keys.remove",
        method="DELETE",
        path="/keys/{id}",
        summary="Remove a key.",
        role=MANAGER,
        places=_ID,
        answer=answer(**_CHANGED),
        seconds=20.0,
    ),
    Endpoint(
        name="groups",
        method="GET",
        path="/groups",
        summary="Groups, their limits, and what is used of these.",
        answer=answer(groups=listed(answer(name=_STRING, keys=_COUNT))),
    ),
    Endpoint(
        name="groups.add",
        method="POST",
        path="/groups",
        summary="Make a group.",
        role=MANAGER,
        body=members(("name",), name=_NAME["name"], attributes=_OF_GROUP),
        answer=answer(group=_ANY, **_CHANGED),
        status=201,
        seconds=20.0,
    ),
    Endpoint(
        name="groups.change",
        method="PATCH",
        path="/groups/{name}",
        summary="Change a group's limits; what is not named stays.",
        role=MANAGER,
        places=_NAME,
        body=members(attributes=_OF_GROUP),
        answer=answer(group=_ANY, **_CHANGED),
        seconds=20.0,
    ),
    Endpoint(
        name="groups.remove",
        method="DELETE",
        path="/groups/{name}",
        summary="Remove a group that no key is in.",
        role=MANAGER,
        places=_NAME,
        answer=answer(**_CHANGED),
        seconds=20.0,
    ),
    Endpoint(
        name="audit",
        method="GET",
        path="/audit",
        summary="Who changed which key or group, the newest first.",
        text="What is to be done is written down before it is. outcome is unknown where the process ended in between, "
        "or the disk was full: the keystore then says whether it was made.",
        query={"limit": Parameter(text="So many at most.", schema=whole(1, 1000))},
        answer=answer(entries=listed(answer(
            at=_STRING, actor=_ANY, action=_STRING, target=_STRING, outcome=one_of("made", "unknown"),
            before={"type": ["object", "null"]}, after={"type": ["object", "null"]},
        ))),
    ),
    Endpoint(
        name="openapi",
        method="GET",
        path="/openapi.json",
        summary="This description.",
        role=None,
        seconds=0,
        answer=_ANY,
    ),
)  # fmt: skip


def openapi(version: str) -> dict[str, Any]:
    """The table as OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Flowstack", "version": version, "summary": "What the page of Flowstack is made from."},
        "servers": [{"url": "/api/v1"}],
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "responses": {
                "Error": {"description": "Why not.", "content": {"application/json": {"schema": _ERROR_REF}}}
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "flowstack_session"},
            },
        },
    }


_ERROR_REF = {"$ref": "#/components/schemas/Error"}
_ERROR = answer(error=answer(message=_STRING, type=_STRING, param=_MAYBE, code=_STRING))


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema} for name, schema in endpoint.places.items()
    ]
    for name, one in endpoint.query.items():
        schema = listed(one.schema) if one.repeats else one.schema
        parameters.append({
            "name": name, "in": "query", "required": one.required, "description": one.text, "schema": schema,
        })  # fmt: skip
    found: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {
            str(endpoint.status): _said(endpoint),
            "default": {"$ref": "#/components/responses/Error"},
        },
        "security": [] if endpoint.role is None else [{"bearer": []}, {"session": []}],
    }
    if endpoint.text:
        found["description"] = endpoint.text
    if endpoint.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": endpoint.body}}}
    return found


def _said(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.answer is None:
        return {"description": "Done."}
    content = {kind: {"schema": endpoint.answer if kind == "application/json" else _STRING} for kind in endpoint.types}
    return {"description": endpoint.summary, "content": content}
