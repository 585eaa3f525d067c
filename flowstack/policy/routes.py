"""From the request's target and Host to an upstream and the target that it gets.

The target is never decoded, normalised or re-quoted: the matched prefix is replaced, the rest goes on byte for byte.
What two parsers could read differently (dot segments, a second authority) is refused.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from attrs import field, frozen

from flowstack.config import Prefix, Upstream
from flowstack.errors import MalformedRequest, UnknownPath

_DOT_SEGMENT = re.compile(rb"(?:/|\\|%2f|%5c)(?:\.|%2e){1,2}(?:/|\\|%2f|%5c|;|%3b|$)", re.IGNORECASE)
"""RFC 3986 §3.3 and §5.2.4: ``.`` and ``..`` as a whole segment, raw or percent-encoded, with either slash."""

_QUERY, _DOT, _PERCENT = b"?.%"
"""As numbers: where ``bytes`` are asked whether they hold other bytes, CPython first makes an error and drops it."""

_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)

_PORT = re.compile(rb":[0-9]*$")


@frozen(slots=True)
class Origin:
    """An upstream as the wire needs it.

    :ivar name: its name in the config.
    :ivar tls: whether its base URL is https.
    :ivar host: host name or address, without brackets.
    :ivar authority: the Host field that it gets (RFC 9110 §7.2: without a default port).
    :ivar url: scheme and authority; a request's URL is this followed by its target.
    :ivar path: the path of the base URL, ending in ``/``.
    :ivar inject_usage: as in the config.
    """

    name: str
    tls: bool
    host: str
    port: int
    authority: bytes
    url: bytes
    path: bytes
    inject_usage: bool | None = None

    @classmethod
    def of(cls, upstream: Upstream) -> Origin:
        """Split a validated base URL once, so that no request has to."""
        parts = urlsplit(upstream.base_url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        default = 443 if tls else 80
        port = parts.port or default
        authority = f"[{host}]" if ":" in host else host
        if port != default:
            authority += f":{port}"
        return cls(
            name=upstream.name,
            tls=tls,
            host=host,
            port=port,
            authority=authority.encode("ascii"),
            url=f"{parts.scheme}://{authority}".encode("ascii"),
            path=(parts.path.rstrip("/") + "/").encode("ascii"),
            inject_usage=upstream.inject_usage,
        )


class Route:
    """Where one request goes.

    :ivar path: the client's path without its query, for the ledger.
    :ivar rest: what of it stands below the served prefix, such as ``chat/completions``.
    :ivar target: path and query as the upstream gets them.
    """

    __slots__ = ("origin", "path", "rest", "target")

    def __init__(self, origin: Origin, path: bytes, rest: bytes, target: bytes) -> None:
        self.origin = origin
        self.path = path
        self.rest = rest
        self.target = target


def host_name(host: bytes) -> bytes:
    """The lower-case name in a Host field or an authority, without the port."""
    return _PORT.sub(b"", host).lower()


@frozen(slots=True)
class Routes:
    """The served prefixes and the upstreams, ready for look-up."""

    _prefixes: tuple[tuple[bytes, bytes | None], ...]
    _hosts: dict[bytes, Origin]
    _default: Origin
    origins: tuple[Origin, ...] = field(factory=tuple)

    @classmethod
    def of(cls, prefixes: tuple[Prefix, ...], upstreams: tuple[Upstream, ...]) -> Routes:
        """Build the table; the longest prefix is tried first."""
        origins = tuple(Origin.of(upstream) for upstream in upstreams)
        default = next(o for o, u in zip(origins, upstreams, strict=True) if u.default or len(upstreams) == 1)
        table = [
            (prefix.path.encode("ascii"), None if prefix.base_path is None else prefix.base_path.encode("ascii"))
            for prefix in prefixes
        ]
        return cls(
            prefixes=tuple(sorted(table, key=lambda entry: -len(entry[0]))),
            hosts={host.encode("ascii"): o for o, u in zip(origins, upstreams, strict=True) for host in u.hosts},
            default=default,
            origins=origins,
        )

    def resolve(self, target: bytes, host: bytes | None) -> Route:
        """Find the upstream and its target.

        :param target: the request target as it came (RFC 9112 §3.2), already known to hold URI characters only.
        :param host: the Host field, or None.
        :raises MalformedRequest: dot segments; absolute-form to a host that is not configured, or not the Host's.
        :raises UnknownPath: outside the served prefixes.
        """
        if not target.startswith(b"/"):
            target, host = self._absolute(target, host)
        path = target.partition(b"?")[0] if _QUERY in target else target
        if (_DOT in path or _PERCENT in path) and _DOT_SEGMENT.search(path):
            raise MalformedRequest(
                "The path holds a dot segment ('.' or '..', raw or percent-encoded), which two servers can read "
                "differently. Send the path that is meant."
            )
        for prefix, base in self._prefixes:
            if path.startswith(prefix):
                origin = self._default
                if self._hosts and host is not None:
                    origin = self._hosts.get(host_name(host), origin)
                rest = target[len(prefix) :]
                onward = (origin.path if base is None else base) + rest
                return Route(origin, path, rest if path is target else path[len(prefix) :], onward)
        served = ", ".join(prefix.decode("ascii") for prefix, _ in self._prefixes)
        raise UnknownPath(
            f"Flowstack serves paths under {served} and this request is for another. "
            "Check the base URL that the client was given: it usually ends in /v1."
        )

    def _absolute(self, target: bytes, host: bytes | None) -> tuple[bytes, bytes]:
        """Take absolute-form to a configured host as origin-form (RFC 9112 §3.2.2)."""
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise UnknownPath("The request target is not a path. Send a path that begins with '/'.")
        authority, rest = match[2], match[3]
        if host_name(authority) not in self._hosts:
            raise MalformedRequest(
                "The request target is an absolute URL to a host that is not one of Flowstack's. "
                "Flowstack is no forward proxy: set the client's base URL, not its HTTP proxy, to Flowstack."
            )
        if host is not None and host.lower() != authority.lower():
            raise MalformedRequest("The request target's host and the Host header differ. Send the same in both.")
        return (rest if rest.startswith(b"/") else b"/" + rest), authority
