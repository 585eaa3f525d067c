"""What is true of a request whatever upstream is asked, and what follows from it for one of them."""

from __future__ import annotations

from typing import Protocol

from flowstack.http.headers import PreparedHeaders, RawHeaders, SplitFields, identity_coding, lines_of, with_length
from flowstack.keys import Key
from flowstack.keys.client_secrets import ClientSecret
from flowstack.ledger.row import Row
from flowstack.relay.permission import Terms
from flowstack.server.request import Request
from flowstack.upstream.routes import Origin, Route
from flowstack.upstream.targets import Course
from flowstack.usage.operations import OTHER, Operation


class Admission:
    """What follows from a request's head alone, and so from each head that differs in its Content-Length only.

    The steps of a request fill it in; a request like it begins with the whole of it.

    :ivar key: who asks.
    :ivar generation: of the keystore that knew the key.
    :ivar client_address: from where it comes.
    :ivar attributes: the request's metadata, or None.
    :ivar route: where the client's URL leads, or None where that is not known yet.
    :ivar operation: which call of the API it is.
    :ivar model: which the path names, or None.
    :ivar fields: the client's, set apart; they and the next two are there once their steps are done.
    :ivar terms: on which the body passes.
    :ivar outgoing: the fields for the upstream of the route.
    :ivar course: how attempts at the upstream of the route follow each other; None where there is one attempt.
    :ivar address: makes the fields for a place; see :meth:`flowstack.relay.resource.Relay`.
    :ivar addressed: those that were made, by the place's label, the provider key, and whether it is a fallback.
    :ivar selected: whether the request's model selected its upstream.
    :ivar response: which operation each response on a WebSocket is; None where that is not known, or it is none.
    :ivar offered: the subprotocols of a WebSocket, which go to an upstream.
    :ivar secret: the client secret with which it came in the place of a key, or None.
    :ivar recurs: whether it is for later requests of its client too.
    :ivar row: what the head says of the row, once one was made.
    """

    __slots__ = ("address", "addressed", "attributes", "client_address", "course", "fields", "generation", "key",
                 "model", "offered", "operation", "outgoing", "recurs", "response", "route", "row", "secret",
                 "selected", "terms")  # fmt: skip

    fields: SplitFields
    terms: Terms
    outgoing: Outgoing
    address: Address

    def __init__(self, key: Key, generation: int, client_address: str) -> None:
        self.key = key
        self.generation = generation
        self.client_address = client_address
        self.attributes: dict[str, str] | None = None
        self.route: Route | None = None
        self.operation: Operation = OTHER
        self.response: Operation | None = None
        self.offered: list[bytes] = []
        self.secret: ClientSecret | None = None
        self.model: str | None = None
        self.course: Course | None = None
        self.addressed: dict[tuple[str, bytes | None, bool], Outgoing] = {}
        self.selected = False
        self.recurs = False
        self.row: Row | None = None


class Address(Protocol):
    """Makes the fields that go to a place, or gives those that were made."""

    def __call__(
        self, request: Request, admission: Admission, origin: Origin, provider_key: bytes | None, crosses: bool
    ) -> Outgoing:
        """:param crosses: whether it is another upstream than the request was for, so that no credential of the
        client's may go there, whatever field it stands in.
        """


class Outgoing:
    """The fields that go to one upstream: its Host, the credential that it takes, and all else of the client's.

    :ivar provider_key: the operator's, where it takes the place of the client's; else None.
    :ivar route: of the request there; known where there may be several attempts.
    :ivar headers: for the body's length that the head had of which they were made.
    """

    __slots__ = ("_after", "_before", "headers", "provider_key", "route")

    def __init__(self, headers: RawHeaders, provider_key: bytes | None, route: Route) -> None:
        self.headers = headers
        self.route = route
        self.provider_key = provider_key
        self._before = self._after = b""  # of Content-Length's digits

    def with_length(self, digits: bytes) -> RawHeaders:
        """The fields with another Content-Length, which must be one of them."""
        if not self._before:
            self._prepare()
        return PreparedHeaders(b"".join((self._before, digits, self._after)))

    def _prepare(self) -> None:
        """See what stands before and behind the length's digits."""
        pairs = self.headers.pairs
        place = [name.lower() for name, _ in pairs].index(b"content-length")
        self._before = lines_of([*pairs[:place], (pairs[place][0], b"")])
        self._after = lines_of(pairs[place + 1 :])

    def grown(self, length: int | None) -> RawHeaders:
        """The fields for a body to which Flowstack adds; of its answer it must be able to take something away.

        :param length: None where the body is chunked.
        """
        return RawHeaders(identity_coding(with_length(self.headers.pairs, length)))
