"""The admin listener's root, with ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address

from twisted.internet.address import UNIXAddress
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from flowstack.admin.access import Access
from flowstack.admin.site import Refused, plain
from flowstack.admin.token import Unauthorized
from flowstack.errors import UnknownPath
from flowstack.upstream.routes import host_name


class Answer(Resource):
    """Says ``ok`` with 200, or why not with 503.

    :param fault: gives what is wrong, or None.
    :param detail: gives lines that follow, for who may see the metrics.
    :param access: says who may; None: everybody.
    """

    isLeaf = True

    def __init__(
        self,
        fault: Callable[[], str | None],
        detail: Callable[[], Iterable[str]] = tuple,
        access: Access | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fault = fault
        self._detail = detail
        self._access = access

    def render_GET(self, request: Request) -> bytes:  # noqa: N802
        """The answer, as plain text."""
        fault = self._fault()
        detail = self._detail() if self._access is None or self._access.admits(request) else ()
        return plain(request, 200 if fault is None else 503, "".join(f"{line}\n" for line in (fault or "ok", *detail)))


class Misdirected(Resource):
    """The answer to a request for another host than this listener (RFC 9110 §15.5.20)."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        """421, with what to do."""
        return plain(
            request,
            421,
            "The Host header must be an IP address, localhost or a name in [admin] hosts, and is another. Use one of "
            "these, or add the name to [admin] hosts.\n",
        )


class Root(Resource):
    """Asks for a token where one is asked for, and refuses requests for a foreign host.

    A web page can point its own name at this machine (DNS rebinding); the ``Host`` header still has that name.

    :param open_children: need no token, or ask for it themselves.
    :param children: need a token, where there is one.
    :param hosts: names that ``Host`` may have, in lower case.
    """

    def __init__(
        self,
        open_children: Mapping[bytes, Resource],
        children: Mapping[bytes, Resource],
        access: Access | None,
        hosts: Iterable[str],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._access = access
        self._hosts = frozenset((b"localhost", *(host.encode("ascii") for host in hosts)))
        self._open = frozenset(open_children)
        for name, child in {**children, **open_children}.items():
            self.putChild(name, child)

    def getChildWithDefault(self, path: bytes, request: Request) -> IResource:
        """The child of this name; without the token not even whether there is one."""
        names = request.requestHeaders.getRawHeaders(b"host", [])
        if not isinstance(request.getHost(), UNIXAddress) and not all(map(self._is_here, names)):
            return Misdirected()  # type: ignore[no-untyped-call]
        if path not in self._open and self._access is not None and not self._access.admits(request):
            return Unauthorized()  # type: ignore[no-untyped-call]
        child: IResource = super().getChildWithDefault(path, request)  # type: ignore[no-untyped-call]
        return child

    def getChild(self, path: bytes, request: Request) -> Resource:
        """There is no child of this name."""
        return Refused(UnknownPath("There is nothing at this path."))

    def _is_here(self, host: bytes) -> bool:
        name = host_name(host)
        return name is not None and (name in self._hosts or _is_address(name.strip(b"[]").decode("ascii")))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def admin_resource(
    readiness: Callable[[], str | None],
    children: Mapping[bytes, Resource] | None = None,
    access: Access | None = None,
    page: Mapping[bytes, Resource] | None = None,
    hosts: Iterable[str] = (),
    detail: Callable[[], Iterable[str]] = tuple,
) -> Resource:
    """The root of the admin listener.

    ``/healthz`` answers for as long as the process serves at all: a supervisor restarts it when that fails.
    ``/readyz`` says whether new requests should come here: a load balancer looks at it.

    :param readiness: gives why no new request should come, or None.
    :param children: what else is there for who shows a token, by the first segment of its path:
        ``{b"metrics": Metrics(…)}``.
    :param access: says whose requests pass; None asks for nothing.
    :param page: what sees to that itself: the page, its files and its API.
    :param detail: gives lines for ``/readyz`` about what does not keep new requests away.
    :param hosts: names that ``Host`` may have besides localhost and IP addresses. On a UNIX socket, which no browser
        reaches, any will do.
    """
    health = {b"healthz": Answer(lambda: None), b"readyz": Answer(readiness, detail, access)}
    return Root({**health, **(page or {})}, children or {}, access, hosts)
