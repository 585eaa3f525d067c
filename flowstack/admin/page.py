"""``/`` and ``/static/`` of the admin listener."""

from __future__ import annotations

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from flowstack.admin.assets import Assets
from flowstack.admin.site import AdminRequest
from flowstack.errors import UnknownPath


class Page(Resource):
    """The page itself, which shows nothing before its script has asked the API."""

    isLeaf = True

    def __init__(self, assets: Assets) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._assets = assets

    def render_GET(self, request: AdminRequest) -> bytes | int:  # noqa: N802
        """The page, or that this build has none."""
        return _sent(request, self._assets.page("index.html", _accepted(request)))


class Files(Resource):
    """What the page is made of."""

    isLeaf = True

    def __init__(self, assets: Assets) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._assets = assets

    def render_GET(self, request: AdminRequest) -> bytes | int:  # noqa: N802
        """A file."""
        path = b"/".join(request.postpath or ()).decode("utf-8", "replace")
        return _sent(request, self._assets.file(path, _accepted(request)))


def _accepted(request: Request) -> list[bytes]:
    return list(request.requestHeaders.getRawHeaders(b"accept-encoding", []))


def _sent(request: AdminRequest, found: tuple[list[tuple[bytes, bytes]], bytes] | None) -> bytes | int:
    if found is None:
        request.refuse(UnknownPath("There is nothing at this path."))
        return NOT_DONE_YET
    pairs, body = found
    for name, value in pairs:
        request.setHeader(name, value)
    return body
