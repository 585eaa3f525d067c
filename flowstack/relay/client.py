"""treq's client without what a transparent proxy must not do."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from flowstack.interfaces import IRelayClient


@implementer(IRelayClient)
class RelayClient(HTTPClient):
    """A :class:`treq.client.HTTPClient` that adds nothing of its own to the agent's work.

    treq's own request keeps one cookie jar for all callers, asks for gzip and decodes it, follows redirects, and
    parses and re-quotes the URL. Of that, a relay may do nothing: tenants would see each other's cookies and clients
    other bytes than the upstream sent.
    """

    def __init__(self, agent: IAgent) -> None:
        super().__init__(agent)
        self._send = agent.request

    def request(  # type: ignore[override]
        self, method: bytes, url: bytes, *, headers: Any = None, data: Any = None
    ) -> Deferred[IResponse]:
        """See :class:`flowstack.interfaces.IRelayClient`."""
        return self._send(method, url, headers, data)
