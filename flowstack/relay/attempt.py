"""One try at one upstream, and whether there is another."""

from __future__ import annotations

from collections.abc import Sequence

from flowstack.http.headers import RawHeaders
from flowstack.interfaces import UpstreamCall, UpstreamResponse
from flowstack.relay.admission import Admission
from flowstack.upstream.routes import Route


class Attempt:
    """One try at one upstream.

    :ivar route: the upstream, and the target that it gets.
    :ivar headers: the fields that go there, its credential among them.
    :ivar sent_at: when it was given to the upstream's client, on the monotonic clock.
    :ivar response: None as long as there is no response, or where none came.
    """

    __slots__ = ("call", "headers", "response", "route", "sent_at")

    def __init__(self, route: Route, headers: RawHeaders, sent_at: float, call: UpstreamCall) -> None:
        self.route = route
        self.headers = headers
        self.sent_at = sent_at
        self.call = call
        self.response: UpstreamResponse | None = None


def next_attempt(admission: Admission, attempts: Sequence[Attempt]) -> Route | None:
    """Where a request goes next, or None: to the upstream that its URL names, once."""
    return None if attempts else admission.route
