"""What one value may be: small readers from a TOML value to a checked one.

A reader takes the value as ``tomllib`` gave it, returns what the settings hold, and raises
:class:`~flowstack.config.faults.Rejected` with what was found and what was expected.
"""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowstack.config import endpoints
from flowstack.config.faults import Rejected, key_name, looks_secret, one_of, shown
from flowstack.config.settings import Prefix
from flowstack.files import NotRegular, read_regular

Reader = Callable[[object], Any]

YEAR = 365 * 24 * 60 * 60
MOST_PEM = 8 * 1024 * 1024
"""Bytes of a file with certificates."""

DEAREST = 1_000_000
"""US dollars for a million tokens above which a price is a slip of the pen."""

_PCHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
"""RFC 3986 §3.3, without percent-encoding."""

_PATH = re.compile(rf"(?:/(?:{_PCHAR}|%[0-9A-Fa-f]{{2}})*)*")
_PREFIX = re.compile(rf"/(?:{_PCHAR}+/)*")
_DOT_SEGMENT = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@]+?)(?::([0-9]{1,5}))?")
_NETWORK = re.compile(r"[0-9A-Fa-f.:]+(?:/[0-9]{1,3})?")
_MAPPED = IPv6Network("::ffff:0:0/96")

_FIELD = re.compile(r"[!#$%&'+\-.^_`|~0-9A-Za-z]+")
_CONNECTIONS = frozenset(
    ("connection", "proxy-connection", "keep-alive", "te", "transfer-encoding", "upgrade", "trailer")
)
_NEEDED = (
    "authorization", "api-key", "x-api-key", "host", "content-*", "transfer-encoding", "connection", "flowstack-*"
)  # fmt: skip

# Both as the keystore file has them (flowstack.policy.keys), which a test holds them to.
_BUDGET = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)usd/(?:day|month|total)")
_MODEL_PATTERN = re.compile(r"[A-Za-z0-9_.:/@+~=*-]{1,256}")

_DEFAULT_PORTS = {"http": "80", "https": "443"}


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Rejected.one(shown(value), "true or false")
    return value


def seconds(value: object) -> float:
    """A time above nothing, at most a year; neither ``true`` nor ``nan`` is one."""
    return _time(value, none=False)


def seconds_or_none(value: object) -> float:
    """As :func:`seconds`, where 0 means that there is no such time."""
    return _time(value, none=True)


def _time(value: object, none: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= YEAR or not (value or none):
        raise Rejected.one(shown(value), f"a number of seconds {'from 0 to' if none else 'above 0, at most'} {YEAR}")
    return float(value)


def whole(least: int, most: int, unit: str) -> Reader:
    """A whole number in a range, both ends included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Rejected.one(shown(value), f"a whole number of {unit} from {least} to {most}")
        return value

    return read


def workers(value: object) -> int:
    """How many processes; ``auto`` is 0, which means one for each core."""
    if value == "auto":
        return 0
    try:
        return int(whole(0, 1024, "processes")(value))
    except Rejected:
        raise Rejected.one(
            shown(value), "a whole number of processes from 1 to 1024, or 0 or 'auto' for one for each core"
        ) from None


def choice(*words: str) -> Reader:
    """One of a few words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise Rejected.one(shown(value), one_of(words, value if isinstance(value, str) else ""))
        return value

    return read


def one_number(*numbers: int) -> Reader:
    """One of a few whole numbers."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value not in numbers:
            raise Rejected.one(shown(value), one_of(map(str, numbers)))
        return value

    return read


def optional(read: Reader) -> Reader:
    """Whatever *read* takes, or an empty string, which means None: TOML has no null."""
    return lambda value: None if value == "" else read(value)


def array(read: Reader, *, least: int = 0, once: Callable[[Any], object] | None = None) -> Reader:
    """An array whose every item *read* takes, and of which no two are the same to *once*; every wrong item is told."""

    def read_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < least:
            found = "an empty array" if value == [] else shown(value)
            raise Rejected.one(found, "an array with at least one item" if least else "an array")
        good: list[Any] = []
        problems: list[tuple[str, str, str]] = []
        seen = set()
        for index, item in enumerate(value):
            try:
                good.append(read(item))
                if once is not None:
                    identity = once(good[-1])
                    if identity in seen:
                        raise Rejected.one(f"{shown(identity)} a second time", "each only once")
                    seen.add(identity)
            except Rejected as rejected:
                problems += [(f"[{index}]{at}", found, expected) for at, found, expected in rejected.problems]
        if problems:
            raise Rejected(*problems)
        return tuple(good)

    return read_all


def path_from(directory: Path) -> Reader:
    """A path, taken from *directory* where it is relative. Whether anything is there is not asked."""

    def read(value: object) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise Rejected.one(shown(value), "the path of a file or directory")
        return directory / value

    return read


def secret_file_from(directory: Path) -> Reader:
    """A file with a secret: not empty, readable by this user, and not by everybody. Its text is left to its user."""
    read_path = path_from(directory)

    def read(value: object) -> Path:
        path: Path = read_path(value)
        name = shown(str(path))
        try:
            start, status = read_regular(path, 0)
        except NotRegular as fault:
            found = f"{name}, which is {fault.strerror}"
            raise Rejected.one(found, "a file with the secret and nothing else") from None
        except OSError as fault:
            found = f"{name}, which cannot be read ({fault.strerror})"
            raise Rejected.one(found, "a file with the secret that this user can read") from None
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o006:
            found = f"{name} (mode {mode:04o}), which every user of this machine may read or write"
            raise Rejected.one(found, f"a file for its owner and group alone: chmod o= {name}")
        if not start:
            raise Rejected.one(f"{name}, which is empty", "a file with the secret and nothing else")
        return path

    return read


def authorities_from(directory: Path) -> Reader:
    """A PEM file with at least one certificate, which this user can read."""
    read_path = path_from(directory)

    def read(value: object) -> Path:
        path: Path = read_path(value)
        expected = "a PEM file with at least one certificate"
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=read_regular(path, MOST_PEM)[0].decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            raise Rejected.one(f"no PEM certificate in {shown(str(path))}", expected) from None
        except OSError as fault:
            raise Rejected.one(f"{shown(str(path))}, which cannot be read ({fault.strerror})", expected) from None
        return path

    return read


def requests_log_from(directory: Path) -> Reader:
    """``-``, ``none``, or a file's path."""
    read_path = path_from(directory)

    def read(value: object) -> str:
        if value in ("-", "none"):
            return str(value)
        try:
            return str(read_path(value))
        except Rejected:
            raise Rejected.one(shown(value), "'-' for standard output, 'none', or the path of a file") from None

    return read


def endpoint(value: object) -> str:
    """A Twisted endpoint string of which a listener can be made."""
    if not isinstance(value, str):
        raise Rejected.one(shown(value), "an endpoint string such as tcp:8080:interface=127.0.0.1")
    endpoints.address(value)
    return value


def base_url(value: object) -> str:
    """A provider's base URL, without a trailing slash. Userinfo, query and fragment may be secrets: never shown."""
    expected = "http:// or https://, a host, perhaps a port and a path, such as https://api.openai.com/v1"
    if not isinstance(value, str):
        raise Rejected.one(shown(value), expected)
    if "@" in value:
        raise Rejected.one("a URL that holds credentials (hidden)", f"{expected}; clients send their own credentials")
    if "?" in value or "#" in value:
        found = f"{shown(re.split('[?#]', value)[0])} with a query or fragment (hidden)"
        raise Rejected.one(found, f"{expected}; no query, no fragment")
    try:
        url = urlsplit(value)
        host, port = url.hostname or "", url.port
        if port == 0:
            raise ValueError
        if ":" in host:
            IPv6Address(host)
    except ValueError:  # AddressValueError is one
        raise Rejected.one(shown(value), f"{expected}; a port from 1 to 65535, an IPv6 address in brackets") from None
    well_formed = (
        re.fullmatch("[!-~]+", value)
        and url.scheme in ("http", "https")
        and (":" in host or _HOST_NAME.fullmatch(host))
        and _PATH.fullmatch(url.path)
    )
    if not well_formed:
        raise Rejected.one(shown(value), expected)
    if _DOT_SEGMENT.search(url.path) or "//" in url.path:
        raise Rejected.one(shown(value), f"{expected}; no dot segments, no empty segments in the path")
    authority = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{authority}{'' if port is None else f':{port}'}{url.path.rstrip('/')}"


def host(value: object) -> str:
    """A name that clients send in ``Host``, in lower case. No port, no wildcard."""
    expected = "a host name without a port, such as openai.flowstack.example"
    if not isinstance(value, str):
        raise Rejected.one(shown(value), expected)
    lowered = value.lower()
    if lowered.startswith("[") and lowered.endswith("]"):
        try:
            return f"[{IPv6Address(lowered[1:-1])}]"
        except AddressValueError:
            raise Rejected.one(shown(value), expected) from None
    if not _HOST_NAME.fullmatch(lowered):
        raise Rejected.one(shown(value), expected)
    return lowered


def removed_field(value: object) -> str:
    """A request field's name in lower case, or a beginning with ``*`` behind it, that may be taken out.

    ``_`` is taken for ``-``, as many servers do.
    """
    expected = "a header's name, such as X-Team, or a beginning such as X-Team-*"
    name = value.lower().replace("_", "-") if isinstance(value, str) else ""
    beginning = name.removesuffix("*")
    if not _FIELD.fullmatch(beginning) or looks_secret(name):
        raise Rejected.one(shown(value), expected)
    for kept in _NEEDED:
        plain = kept.removesuffix("*")
        if beginning == plain or (kept != plain and beginning.startswith(plain)) or (
            beginning != name and plain.startswith(beginning)
        ):  # fmt: skip
            raise Rejected.one(
                f"{shown(value)}, which takes out {kept}",
                f"{expected}; not what frames a request, says what its body is, or holds the provider's key",
            )
    return name


def key_field(value: object) -> str:
    """The field in which a provider's key goes."""
    expected = "the header in which the provider takes its key: Authorization, api-key, x-api-key or another such"
    name = value.lower() if isinstance(value, str) else ""
    reserved = _CONNECTIONS | {"host", "cookie", "expect", "date", "te", "accept", "user-agent", "origin"}
    others = ("content-", "flowstack-", "accept-")
    if not _FIELD.fullmatch(name) or looks_secret(name) or name in reserved or name.startswith(others):
        raise Rejected.one(shown(value), expected)
    return str(value)


def prefix_path(value: object) -> str:
    """A path that begins and ends with ``/`` and that two servers cannot read differently."""
    if not isinstance(value, str) or not _PREFIX.fullmatch(value) or _DOT_SEGMENT.search(value):
        raise Rejected.one(
            shown(value),
            "a path that begins and ends with '/', such as /v1/, without dot segments, empty segments or "
            "percent-encoding",
        )
    return value


def table(readers: Mapping[str, Reader], make: Callable[..., Any], **needed: str) -> Reader:
    """A table of such keys, made into what *make* gives for the good ones.

    :param needed: keys that have to be there, with what is expected of them.
    """

    def read_all(value: object) -> Any:
        if not isinstance(value, dict):
            raise Rejected.one(shown(value), "a table")
        good: dict[str, Any] = {}
        problems = []
        for key, item in value.items():
            try:
                if key not in readers:
                    raise Rejected.one("an unknown key", one_of(readers, key))
                good[key] = readers[key](item)
            except Rejected as rejected:
                problems += [(f".{key_name(key)}{at}", found, expected) for at, found, expected in rejected.problems]
        problems += [(f".{key}", "nothing", expected) for key, expected in needed.items() if key not in value]
        if problems:
            raise Rejected(*problems)
        return make(**good)

    return read_all


_prefix_table = table(
    {"path": prefix_path, "base_path": optional(prefix_path)},
    Prefix,
    path="the path that clients ask for, such as /v1/",
)


def prefix(value: object) -> Prefix:
    """A path, or a table with ``path`` and ``base_path``."""
    made: Prefix = _prefix_table(value) if isinstance(value, dict) else Prefix(path=prefix_path(value))
    return made


def origin(value: object) -> str:
    """``*``, or an origin exactly as browsers send it: ASCII, in lower case, without a default port (Fetch §3.2)."""
    expected = "'*', or scheme://host or scheme://host:port in lower case, such as https://app.example"
    if value == "*":
        return "*"
    match = _ORIGIN.fullmatch(value) if isinstance(value, str) else None
    if match is None or not (_HOST_NAME.fullmatch(match[2]) or re.fullmatch(r"\[[0-9a-f:.]+\]", match[2])):
        raise Rejected.one(shown(value), expected)
    if match[3] is not None and (_DEFAULT_PORTS.get(match[1]) == match[3] or not 0 < int(match[3]) <= 65535):
        raise Rejected.one(shown(value), f"{expected}; a port from 1 to 65535, and not the scheme's own")
    return match[0]


def network(value: object) -> str:
    """A network in CIDR notation, or one address, as ``ipaddress`` writes the network."""
    expected = "a network such as 10.0.0.0/8 or 2001:db8::/32, or an address"
    if not isinstance(value, str) or not _NETWORK.fullmatch(value):
        raise Rejected.one(shown(value), expected)
    try:
        found = ip_network(value, strict=False)
    except ValueError:
        raise Rejected.one(shown(value), expected) from None
    if ip_address(value.partition("/")[0]) != found.network_address:
        raise Rejected.one(f"{shown(value)}, whose address has bits set beyond its prefix", f"{found}, or an address")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        raise Rejected.one(f"{shown(value)}, an IPv4 address written as IPv6", "it written as IPv4")
    return str(found)


def dollars(value: object) -> float:
    """US dollars for a million tokens; 0 is free, and neither ``true`` nor ``nan`` is a price."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= DEAREST:
        raise Rejected.one(shown(value), f"US dollars for a million tokens, from 0 to {DEAREST}")
    return float(value)


def budget(value: object) -> str:
    """An amount and its period, written as in the keystore file."""
    match = _BUDGET.fullmatch(value) if isinstance(value, str) else None
    if match is None or not match[1].strip("0."):
        expected = "an amount above 0, 'usd/', and day, month or total, such as 50.00usd/month"
        raise Rejected.one(shown(value), expected)
    return match[0]


def model_pattern(value: str) -> str:
    """A pattern of model names, in which ``*`` stands for any run of characters."""
    if not _MODEL_PATTERN.fullmatch(value):
        raise Rejected.one(shown(value), "a model's name, or a pattern such as gpt-4o*, without spaces")
    return value
