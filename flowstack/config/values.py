"""What one value may be: small readers from a TOML value to a checked one.

A reader takes the value as ``tomllib`` gave it, returns what the settings hold, and raises
:class:`~flowstack.config.faults.Rejected` with what was found and what was expected.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowstack.config import endpoints
from flowstack.config.faults import Rejected, key_name, one_of, shown
from flowstack.config.settings import Prefix

Reader = Callable[[object], Any]

YEAR = 365 * 24 * 60 * 60

_PCHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
"""RFC 3986 §3.3, without percent-encoding."""

_PATH = re.compile(rf"(?:/(?:{_PCHAR}|%[0-9A-Fa-f]{{2}})*)*")
_PREFIX = re.compile(rf"/(?:{_PCHAR}+/)*")
_DOT_SEGMENT = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@]+?)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise Rejected.one(shown(value), "true or false")
    return value


def seconds(value: object) -> float:
    """A time above nothing, at most a year; neither ``true`` nor ``nan`` is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= YEAR:
        raise Rejected.one(shown(value), f"a number of seconds above 0, at most {YEAR}")
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


def authorities_from(directory: Path) -> Reader:
    """A PEM file with at least one certificate, which this user can read."""
    read_path = path_from(directory)

    def read(value: object) -> Path:
        path: Path = read_path(value)
        expected = "a PEM file with at least one certificate"
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cafile=path)
        except ssl.SSLError:
            raise Rejected.one(f"no PEM certificate in {shown(str(path))}", expected) from None
        except OSError as fault:
            raise Rejected.one(f"{shown(str(path))}, which cannot be read ({fault.strerror})", expected) from None
        if not context.cert_store_stats()["x509"]:
            raise Rejected.one(f"no certificate in {shown(str(path))}", expected)
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
            IPv6Address(lowered[1:-1])
        except AddressValueError:
            raise Rejected.one(shown(value), expected) from None
        return lowered
    if not _HOST_NAME.fullmatch(lowered):
        raise Rejected.one(shown(value), expected)
    return lowered


def prefix_path(value: object) -> str:
    """A path that begins and ends with ``/`` and that two servers cannot read differently."""
    if not isinstance(value, str) or not _PREFIX.fullmatch(value) or _DOT_SEGMENT.search(value):
        raise Rejected.one(
            shown(value),
            "a path that begins and ends with '/', such as /v1/, without dot segments, empty segments or "
            "percent-encoding",
        )
    return value


def prefix(value: object) -> Prefix:
    """A path, or a table with ``path`` and ``base_path``."""
    if not isinstance(value, dict):
        return Prefix(path=prefix_path(value))
    good: dict[str, Any] = {}
    problems = []
    readers = {"path": prefix_path, "base_path": optional(prefix_path)}
    for key, item in value.items():
        try:
            if key not in readers:
                raise Rejected.one("an unknown key", one_of(readers, key))
            good[key] = readers[key](item)
        except Rejected as rejected:
            problems += [(f".{key_name(key)}{at}", found, expected) for at, found, expected in rejected.problems]
    if "path" not in value:
        problems.append((".path", "nothing", "the path that clients ask for, such as /v1/"))
    if problems:
        raise Rejected(*problems)
    return Prefix(**good)


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
