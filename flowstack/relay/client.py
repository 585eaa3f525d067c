"""treq's client without what a transparent proxy must not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from treq.client import HTTPClient
from twisted.web.iweb import IAgent

from flowstack.http.headers import RawHeaders
from flowstack.interfaces import OutgoingBody, UpstreamCall


class RelayClient(HTTPClient):
    """A :class:`treq.client.HTTPClient` that adds nothing of its own to the agent's work.

    treq's own request keeps one cookie jar for all callers, asks for gzip and decodes it, follows redirects, and
    parses and re-quotes the URL. Of that, a relay may do nothing: tenants would see each other's cookies and clients
    other bytes than the upstream sent.

    :param agent: one whose Deferred is an :class:`flowstack.interfaces.UpstreamCall`.
    """

    def __init__(self, agent: IAgent) -> None:
        super().__init__(agent)
        self._send = cast("Callable[..., UpstreamCall]", agent.request)

    def request(  # type: ignore[override]
        self, method: bytes, url: bytes, *, headers: RawHeaders, data: OutgoingBody | None = None
    ) -> UpstreamCall:
        """See :class:`flowstack.interfaces.UpstreamClient`."""
        return self._send(method, url, headers, data)
