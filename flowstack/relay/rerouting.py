"""What could make a server take another method, path or model than those by which a request was judged.

Some servers, frameworks and gateways look for these in fields (``X-HTTP-Method-Override``, ``X-Original-URL``,
``azureml-model-deployment``) or in the query (``_method``, ``model``). Where it matters what a request is, since its
key is restricted or it goes out with the operator's provider key, they are refused; for all others they pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from flowstack.errors import EndpointNotAllowed
from flowstack.http.headers import Pair
from flowstack.http.names import folded, parameter_names_model, parameter_reroutes, parameter_speaks_for_body
from flowstack.keys import Key, check_model, hide_keys

_PARTS = re.compile(rb"[&;]")
_ONLY_LOOKS = frozenset((b"GET", b"HEAD"))

_LISTING = frozenset((
    b"after", b"after-id", b"api-version", b"before", b"before-id", b"beta", b"client-version", b"limit", b"order",
    b"page", b"page-size", b"page-token", b"pagesize", b"pagetoken",
))  # fmt: skip
"""By which lists are gone through, and the version named of the provider or of the client."""

_SHOWN = 80
MOST_PARAMETERS = 256
"""More are not looked through, and so refused."""

_DECODED = 2


def check_fields(key: Key, fields: Iterable[Pair]) -> None:
    """Refuse a restricted request with such fields.

    :param fields: see :attr:`flowstack.http.headers.SplitFields.rerouting`.
    :raises EndpointNotAllowed: there is one.
    """
    for name, _ in fields:
        raise _refused(key, f"The header {_told(name)}")


_OPENING = _LISTING | {b"model", b"intent"}
"""By which a WebSocket is opened: for which model, and for transcription alone."""


def check_query(key: Key, method: bytes, query: bytes, operators_key: bool, opens: bool = False) -> None:
    """Refuse a restricted request whose query says more than it should.

    A model that is named where a request only looks is held against the key's ``models``.

    :param operators_key: whether it goes out with the operator's provider key, and no ``endpoints`` of its key names
        the endpoint: what it looks at may then not be chosen but by the parameters of lists.
    :param opens: whether it opens a WebSocket.
    :raises EndpointNotAllowed: a parameter that reroutes, or one too many.
    :raises ModelNotAllowed: the key may not use the model.
    """
    if query.count(b"&") + query.count(b";") >= MOST_PARAMETERS or query.count(b"%") > 16 * MOST_PARAMETERS:
        raise _refused(key, "The query is longer than can be looked through: it")
    looks = method in _ONLY_LOOKS
    for name, value in _parameters(query):
        if looks and operators_key and folded(name) not in (_OPENING if opens else _LISTING):
            raise EndpointNotAllowed(
                f"The query parameter {_told(name)} may choose what is shown, and with the operator's provider key "
                "only inference and the list of models are open. Leave it out; or the operator can name the endpoint "
                f"in the endpoints of the key {key.id}."
            )
        if looks and parameter_names_model(name):
            check_model(key, value.decode("utf-8", "replace"))
        elif parameter_reroutes(name) or (not looks and parameter_speaks_for_body(name)):
            raise _refused(key, f"The query parameter {_told(name)}")


def model_of_query(query: bytes) -> str | None:
    """The model for which a WebSocket is opened; the last one where several are named."""
    found = None
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"model" and value:
            found = unquote_to_bytes(value.replace(b"+", b" ")).decode("utf-8", "replace")
    return found


def _parameters(query: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and values, decoded; and again of a query that is decoded before it is taken apart, as some servers do."""
    for _ in range(_DECODED):
        for part in _PARTS.split(query):
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            if name:
                yield unquote_to_bytes(name), unquote_to_bytes(value)
        if query.find(b"%") < 0:
            return
        query = unquote_to_bytes(query)


def _refused(key: Key, what: str) -> EndpointNotAllowed:
    return EndpointNotAllowed(
        f"{what} can make a server take another method, path, model or maximum than the request line and the body "
        f"name, and what the Flowstack key {key.id} may do depends on these. Leave it out."
    )


def _told(name: bytes) -> str:
    text = hide_keys(name.decode("latin-1"))[:_SHOWN]
    return "".join(character if character.isprintable() else "?" for character in text)
