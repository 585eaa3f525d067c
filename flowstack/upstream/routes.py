"""From the request's target and Host to an upstream and the target that it gets.

The target is never decoded, normalised or re-quoted: the matched prefix is replaced, the rest goes on byte for byte.
What two parsers could read differently (dot segments, a second authority) is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import urlsplit

from attrs import field, frozen

from flowstack.config import Prefix, Target, Upstream
from flowstack.errors import MalformedRequest, UnknownPath
from flowstack.http.names import OWN_PREFIX as PREFIX
from flowstack.keys.patterns import Patterns, fitting, in_order

_SLASH = rb"(?:/|\\|%(?:25)*(?:2f|5c)|%c0%af|%c1%9c|%e0%80%af|%f0%80%80%af)"
_A_DOT = rb"(?:\.|%(?:25)*2e|%c0%ae|%e0%80%ae|%f0%80%80%ae)"
_CUT = rb"(?:;|%(?:25)*(?:[01][0-9a-f]|20|23|3b|3f|7f))"
_DOT_SEGMENT = re.compile(rb"%b%b{1,2}(?:%b|%b|$)" % (_SLASH, _A_DOT, _SLASH, _CUT), re.IGNORECASE)
"""RFC 3986 §3.3 and §5.2.4: ``.`` and ``..`` as a whole segment, raw or percent-encoded (also twice, or in overlong
UTF-8, RFC 3629 §3), with either slash, or with something behind the dots at which a server may cut the segment."""

_QUERY, _DOT, _PERCENT = b"?.%"
"""As numbers: where ``bytes`` are asked whether they hold other bytes, CPython first makes an error and drops it."""

_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)

_PORT = re.compile(rb":[0-9]*$")

_REFERENCE = re.compile(rb"(?:(https?):)?(?://([^/?#\\@]*))?([/?#].*)?", re.IGNORECASE | re.DOTALL).fullmatch


@frozen(slots=True)
class Origin:
    """An upstream as the wire needs it.

    :ivar name: the upstream's in the config.
    :ivar label: the same, or the upstream's and the target's: what tells one place from another.
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
    label: str
    inject_usage: bool | None = None

    @property
    def shown(self) -> bytes:
        """Upstream and target, as ``Flowstack-Upstream`` names them: an only target has the upstream's name."""
        return (self.label if "/" in self.label else f"{self.name}/{self.name}").encode("ascii")

    @classmethod
    def all_of(cls, upstream: Upstream) -> tuple[Origin, ...]:
        """Each of the places at which an upstream is served; the first one where it has no targets is its own."""
        return tuple(cls.of(upstream, target) for target in upstream.targets) or (cls.of(upstream),)

    @classmethod
    @lru_cache
    def of(cls, upstream: Upstream, target: Target | None = None) -> Origin:
        """Split a validated base URL once, so that no request has to; for the same place it is the same object."""
        if target is None and upstream.targets:
            target = upstream.targets[0]
        parts = urlsplit(upstream.base_url if target is None else target.base_url)
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
            label=upstream.name if target is None else f"{upstream.name}/{target.name}",
            inject_usage=upstream.inject_usage,
        )


class Route:
    """Where one request goes.

    :ivar prefix: the served prefix that matched.
    :ivar path: the client's path without its query, for the ledger.
    :ivar rest: what of it stands below the served prefix, such as ``chat/completions``.
    :ivar target: path and query as the upstream gets them.
    """

    __slots__ = ("origin", "path", "prefix", "rest", "target")

    def __init__(self, origin: Origin, prefix: bytes, path: bytes, rest: bytes, target: bytes) -> None:
        self.origin = origin
        self.prefix = prefix
        self.path = path
        self.rest = rest
        self.target = target


_NAME = re.compile(rb"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?").fullmatch


def host_name(host: bytes) -> bytes | None:
    """The name in a Host field or an authority, as it is compared: in lower case, without the port and the root's dot.

    An IPv6 address is in its shortest form (RFC 5952). None where it is no host's name or address.
    """
    name = _PORT.sub(b"", host).lower()
    if name.startswith(b"["):
        try:
            return b"[%b]" % str(IPv6Address(name[1:-1].decode("ascii"))).encode("ascii")
        except ValueError:
            return None
    name = name.removesuffix(b".")
    return name if _NAME(name) else None


@frozen(slots=True)
class Routes:
    """The served prefixes and the upstreams, ready for look-up."""

    _prefixes: tuple[tuple[bytes, bytes | None], ...]
    _hosts: dict[bytes, Origin]
    _default: Origin
    _models: tuple[tuple[Patterns, Origin], ...] = ()
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
            hosts={
                host_name(name) or name: origin
                for origin, upstream in zip(origins, upstreams, strict=True)
                for name in (host.encode("ascii") for host in upstream.hosts)
            },
            default=default,
            models=in_order(
                (pattern, origin)
                for origin, upstream in zip(origins, upstreams, strict=True)
                for pattern in upstream.models
            ),
            origins=origins,
        )

    @property
    def by_model(self) -> bool:
        """Whether a request's model may select the upstream."""
        return bool(self._models)

    def selects(self, route: Route, host: bytes | None) -> bool:
        """Whether it is for the model to select the upstream of a request: where its Host selects none."""
        return bool(self._models) and (not self._hosts or host is None or (host_name(host) or host) not in self._hosts)

    def for_model(self, route: Route, model: str | None) -> Route:
        """The route of a request for a model, whose Host selects no upstream."""
        origin = None if model is None else fitting(self._models, model)
        return route if origin is None else self.onto(route, origin)

    def onto(self, route: Route, origin: Origin) -> Route:
        """The same request's route to another place."""
        if origin is route.origin:
            return route
        target = route.target
        if dict(self._prefixes)[route.prefix] is None:
            target = origin.path + target[len(route.origin.path) :]
        return Route(origin, route.prefix, route.path, route.rest, target)

    def own_path(self, target: bytes, host: bytes | None) -> bytes | None:
        """The path of a request for one of Flowstack's own, without its query; None of any other.

        :param target: as of :meth:`resolve`, likewise ``host``.
        :raises MalformedRequest: absolute-form, as there.
        """
        if not target.startswith(b"/"):
            if PREFIX not in target:
                return None
            target, _ = self._absolute(target, host)
        return target.partition(b"?")[0] if target.startswith(PREFIX) else None

    def resolve(self, target: bytes, host: bytes | None) -> Route:
        """Find the upstream and its target.

        :param target: the request target as it came (RFC 9112 §3.2), already known to hold URI characters only.
        :param host: the Host field, or None.
        :raises MalformedRequest: dot segments; absolute-form to a host that is not configured, or not the Host's; a
            Host that is no host's name or address, where it would select the upstream.
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
                origin = self._hosts.get(host) or self._selected(host) if self._hosts and host else self._default
                rest = target[len(prefix) :]
                onward = (origin.path if base is None else base) + rest
                return Route(origin, prefix, path, rest if path is target else path[len(prefix) :], onward)
        served = ", ".join(prefix.decode("ascii") for prefix, _ in self._prefixes)
        raise UnknownPath(f"Flowstack serves paths under {served} and this request is for another. {_hint(path)}")

    def _selected(self, host: bytes) -> Origin:
        """The upstream that a Host selects which is not written as in the configuration."""
        name = host_name(host)
        if name is None:
            raise MalformedRequest(
                "The Host header is no host's name or address, and it selects the upstream here. Send the name that "
                "stands in the client's base URL, in plain letters, digits, '-' and '.'."
            )
        return self._hosts.get(name, self._default)

    def location(self, route: Route, value: bytes, scheme: bytes, host: bytes | None) -> bytes:
        """What a ``Location`` of the upstream's says to the client: Flowstack's address where it leads to the upstream.

        It keeps its form (RFC 3986 §4.2): with scheme and host, with a host alone, or a path alone.

        :param route: of the client's request.
        :param scheme: by which the client came.
        :param host: to which it came, or None.
        :return: the value as it is where it leads elsewhere than below the upstream's base URL.
        """
        match = _REFERENCE(value)
        if match is None:
            return value
        origin = route.origin
        named, authority, path = match[1], match[2], match[3] or b""
        if authority is not None:
            usual = b"https" if origin.tls else b"http"
            port = b":443" if origin.tls else b":80"
            if (named or usual).lower() != usual or _exactly(authority, port) != _exactly(origin.authority, port):
                return value
            path = path if path.startswith(b"/") else b"/" + path
        elif named is not None or not path.startswith(b"/"):
            return value
        asked = self._asked(route, path)
        if asked is None:
            return value
        if authority is None or host is None:
            return asked
        return (b"" if named is None else scheme + b":") + b"//" + host + asked

    def _asked(self, route: Route, path: bytes) -> bytes | None:
        """What a client asks for, path and query, to reach a path of the upstream's; None if no prefix leads there."""
        if _DOT_SEGMENT.search(re.split(rb"[?#]", path, maxsplit=1)[0]):
            return None
        for prefix, base in sorted(self._prefixes, key=lambda entry: entry[0] != route.prefix):
            below = route.origin.path if base is None else base
            if path.startswith(below):
                return prefix + path[len(below) :]
            if path.startswith(below[:-1]) and path[len(below) - 1 : len(below)] in (b"", b"?", b"#"):
                return prefix[:-1] + path[len(below) - 1 :]
        return None

    def _absolute(self, target: bytes, host: bytes | None) -> tuple[bytes, bytes]:
        """Take absolute-form to a configured host as origin-form (RFC 9112 §3.2.2)."""
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise UnknownPath("The request target is not a path. Send a path that begins with '/'.")
        authority, rest = match[2], match[3]
        if (host_name(authority) or b"") not in self._hosts:
            raise MalformedRequest(
                "The request target is an absolute URL to a host that is not one of Flowstack's. "
                "Flowstack is no forward proxy: set the client's base URL, not its HTTP proxy, to Flowstack."
            )
        default = b":443" if match[1].lower() == b"https" else b":80"
        if host is not None and _exactly(host, default) != _exactly(authority, default):
            raise MalformedRequest("The request target's host and the Host header differ. Send the same in both.")
        return (rest if rest.startswith(b"/") else b"/" + rest), authority


def _exactly(authority: bytes, default: bytes) -> tuple[bytes | None, bytes]:
    """The host's name and the port."""
    port = _PORT.search(authority)
    return host_name(authority), port[0] if port is not None and port[0] != b":" else default


def _hint(path: bytes) -> str:
    """What may be wrong with a base URL by which a client came to a path that is not served."""
    if path.startswith((b"/openai/deployments/", b"/deployments/")):
        return (
            "It is one of Azure's older API, as AzureOpenAI clients ask for. Use the plain OpenAI client with a base "
            "URL that ends in one of these; or the operator can serve '/openai/' too, in [server] prefixes, before an "
            "upstream at Azure."
        )
    return "Check the base URL that the client was given: it usually ends in /v1."
