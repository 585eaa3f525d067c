"""The admin listener's root, with ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address

from twisted.internet.address import UNIXAddress
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from flowstack.admin.token import Token, Unauthorized
from flowstack.policy.routes import host_name


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


class Misdirected(Resource):
    """The answer to who asks for another host than this listener is (RFC 9110 §15.5.20)."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        """421, with what to do."""
        request.setResponseCode(421)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        return (
            b"This listener is asked by its IP address, as localhost, or by a name in [admin] hosts, and the Host "
            b"header has another. Use one of these, or add the name to [admin] hosts.\n"
        )


class Root(Resource):
    """Gives all but the health checks to those only who show the token, and nothing under a foreign name.

    A page in a browser can have its own name mean this machine (DNS rebinding); the ``Host`` still says the name.

    :param open_children: for everybody.
    :param children: for who shows the token; for everybody too where there is none.
    :param hosts: names by which it is asked, in lower case.
    """

    def __init__(
        self,
        open_children: Mapping[bytes, Resource],
        children: Mapping[bytes, Resource],
        token: Token | None,
        hosts: Iterable[str],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._token = token
        self._hosts = frozenset((b"localhost", *(host.encode("ascii") for host in hosts)))
        self._open = frozenset(open_children)
        for name, child in {**children, **open_children}.items():
            self.putChild(name, child)

    def getChildWithDefault(self, path: bytes, request: Request) -> IResource:
        """The child of this name. Who shows no token is not even told whether there is one."""
        host = request.getHeader(b"host")
        if host is not None and not isinstance(request.getHost(), UNIXAddress) and not self._is_here(host):
            return Misdirected()  # type: ignore[no-untyped-call]
        if self._token is not None and path not in self._open and not self._token.admits(request):
            return Unauthorized()  # type: ignore[no-untyped-call]
        child: IResource = super().getChildWithDefault(path, request)  # type: ignore[no-untyped-call]
        return child

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
    token: Token | None = None,
    hosts: Iterable[str] = (),
) -> Resource:
    """The root of the admin listener.

    ``/healthz`` answers for as long as the process serves at all: a supervisor restarts it when that fails.
    ``/readyz`` says whether new requests should come here: a load balancer looks at it.

    :param readiness: gives why no new request should come, or None.
    :param children: what else is there, by the first segment of its path: ``{b"metrics": Metrics(…)}``.
    :param token: what those ask for who want more than health; None lets everybody in.
    :param hosts: the names in ``Host`` by which it may be asked, beside localhost and addresses. A UNIX socket, which
        no browser reaches, is not particular.
    """
    return Root({b"healthz": Answer(lambda: None), b"readyz": Answer(readiness)}, children or {}, token, hosts)
