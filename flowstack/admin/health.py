"""``/healthz`` and ``/readyz`` of the admin listener."""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.resource import Resource
from twisted.web.server import Request


class Answer(Resource):
    """Says ``ok`` with 200, or why not with 503.

    :param fault: gives what is wrong, or None.
    """

    isLeaf = True

    def __init__(self, fault: Callable[[], str | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fault = fault

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """The answer, as plain text."""
        fault = self._fault()
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        if fault is None:
            return b"ok\n"
        request.setResponseCode(503)
        return f"{fault}\n".encode()


def admin_resource(readiness: Callable[[], str | None]) -> Resource:
    """The root of the admin listener.

    ``/healthz`` answers for as long as the process serves at all: a supervisor restarts it when that fails.
    ``/readyz`` says whether new requests should come here: a load balancer looks at it.

    :param readiness: gives why no new request should come, or None.
    """
    root = Resource()
    root.putChild(b"healthz", Answer(lambda: None))
    root.putChild(b"readyz", Answer(readiness))
    return root
