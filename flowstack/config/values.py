"""What one value may be: readers from a TOML value to a checked one, and how a setting is declared with one."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from attrs import Attribute, field, fields, frozen

from flowstack.config import endpoints
from flowstack.config.credentials import proxy_authorization
from flowstack.config.faults import key_name, one_of
from flowstack.errors import ParseError
from flowstack.files import read_regular, read_secret
from flowstack.notation import BUDGET, NETWORK, is_model_pattern, read_budget, read_network
from flowstack.redact import looks_secret, shown

YEAR = 365 * 24 * 60 * 60
MAX_SECRET = 8192
"""Bytes of a file with a secret."""

MAX_PEM = 8 * 1024 * 1024
"""Bytes of a file with certificates."""

MAX_DOLLARS = 1_000_000
"""US dollars for a million tokens above which a price is a slip of the pen."""

_PCHAR = r"[A-Za-z0-9\-._~!$&'()*+,;=:@]"
"""RFC 3986 §3.3, without percent-encoding."""

_PATH = re.compile(rf"(?:/(?:{_PCHAR}|%[0-9A-Fa-f]{{2}})*)*")
_PREFIX = re.compile(rf"/(?:{_PCHAR}+/)*")
_DOT_SEGMENT = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@]+?)(?::([0-9]{1,5}))?")

_FIELD = re.compile(r"[!#$%&'+\-.^_`|~0-9A-Za-z]+")
_CONNECTIONS = frozenset(
    ("connection", "proxy-connection", "keep-alive", "te", "transfer-encoding", "upgrade", "trailer")
)
_NEEDED = (
    "authorization", "api-key", "x-api-key", "host", "content-*", "transfer-encoding", "connection", "flowstack-*"
)  # fmt: skip

_DEFAULT_PORTS = {"http": "80", "https": "443"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_POSTGRES = re.compile(
    r"postgres(?:ql)?://([A-Za-z_][\w-]{0,62})@([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
    r"/([A-Za-z_][\w-]{0,62})",
    re.ASCII,
)

NOTHING_MORE: Mapping[str, Any] = MappingProxyType({})


@frozen(slots=True)
class Reader:
    """Reads what :mod:`tomllib` gave for one setting into what the settings hold.

    :ivar read: takes the value and the directory from which relative paths start; raises
        :class:`~flowstack.errors.ParseError`.
    :ivar takes: what it accepts, for the reference.
    """

    read: Callable[[object, Path], Any]
    takes: str

    def __call__(self, value: object, directory: Path = Path()) -> Any:
        """Read a value.

        :raises ParseError: it is not what it should be.
        """
        return self.read(value, directory)


@frozen(slots=True)
class Setting:
    """One key of a table, as its class declares it.

    :ivar text: what it does, in whole sentences; names and values in double backticks.
    :ivar examples: values in TOML, each with a remark or without.
    """

    name: str
    reader: Reader
    default: Any
    text: str
    examples: tuple[tuple[str, str], ...]


def setting(
    default: Any, reader: Reader, text: str, *, example: str = "", examples: tuple[tuple[str, str], ...] = ()
) -> Any:
    """Declare a setting as a field of its table's class; see :class:`Setting`."""
    shown_examples = ((example, ""),) if example else examples
    return field(default=default, metadata={"setting": (reader, text, shown_examples)})


def settings_of(cls: type) -> dict[str, Setting]:
    """Return what a table's class declares, by key; a table that an upstream holds is one of them.

    Those that it shares with other tables, which are keywords of its class, come last.
    """
    known = sorted(fields(cls), key=lambda one: one.kw_only)
    return {one.name: _setting(one) for one in known if "setting" in one.metadata}


def _setting(one: Attribute[Any]) -> Setting:
    reader, text, examples = one.metadata["setting"]
    return Setting(one.name, reader, one.default, text, examples)


def _reads(takes: str) -> Callable[[Callable[[object], Any]], Reader]:
    """Make a reader of a function that needs no directory."""

    def make(read: Callable[[object], Any]) -> Reader:
        return Reader(lambda value, directory: read(value), takes)

    return make


@_reads("true or false")
def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ParseError.found(shown(value), "true or false")
    return value


@_reads("seconds, above 0")
def seconds(value: object) -> float:
    """A time above nothing, at most a year; neither ``true`` nor ``nan`` is one."""
    return _time(value, none=False)


@_reads("seconds, or 0")
def seconds_or_none(value: object) -> float:
    """As :func:`seconds`, where 0 means that there is no such time."""
    return _time(value, none=True)


def _time(value: object, none: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= YEAR or not (value or none):
        raise ParseError.found(
            shown(value), f"a number of seconds {'from 0 to' if none else 'above 0, at most'} {YEAR}"
        )
    return float(value)


@_reads("a share from 0 to 1")
def share(value: object) -> float:
    """A part of a whole."""
    return _number(value, 0.0, 1.0)


@_reads("a number from 1 to 10")
def growth(value: object) -> float:
    """By how much something grows each time."""
    return _number(value, 1.0, 10.0)


def _number(value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ParseError.found(shown(value), f"a number from {least:g} to {most:g}")
    return float(value)


def whole(least: int, most: int, unit: str) -> Reader:
    """A whole number in a range, both ends included."""
    expected = f"a whole number of {unit} from {least} to {most}"

    @_reads(expected)
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ParseError.found(shown(value), expected)
        return value

    return read


@_reads('a number of processes up to 1024, or "auto"')
def workers(value: object) -> int:
    """How many processes; ``auto`` is 0, which means one for each core."""
    if value == "auto":
        return 0
    try:
        return int(whole(0, 1024, "processes")(value))
    except ParseError:
        raise ParseError.found(
            shown(value), "a whole number of processes from 1 to 1024, or 0 or 'auto' for one for each core"
        ) from None


def choice(*words: str) -> Reader:
    """One of a few words."""

    @_reads(one_of(f'"{word}"' for word in words))
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ParseError.found(shown(value), one_of(words, value if isinstance(value, str) else ""))
        return value

    return read


def whole_of(*numbers: int) -> Reader:
    """One of a few whole numbers."""

    @_reads(one_of(map(str, numbers)))
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value not in numbers:
            raise ParseError.found(shown(value), one_of(map(str, numbers)))
        return value

    return read


def optional(read: Reader) -> Reader:
    """Whatever *read* takes, or an empty string, which means None: TOML has no null."""
    return Reader(lambda value, directory: None if value == "" else read(value, directory), f"{read.takes}, or empty")


def array(read: Reader, *, min_items: int = 0, unique: bool | Callable[[Any], object] = False) -> Reader:
    """An array of what *read* takes; the error names every item that is wrong.

    :param unique: whether no two items may be equal, or what of them may not be.
    """

    def read_all(value: object, directory: Path) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < min_items:
            found = "an empty array" if value == [] else shown(value)
            raise ParseError.found(found, "an array with at least one item" if min_items else "an array")
        good: list[Any] = []
        problems: list[ParseError] = []
        seen = set()
        for index, item in enumerate(value):
            try:
                good.append(read(item, directory))
                if unique:
                    identity = unique(good[-1]) if callable(unique) else good[-1]
                    if identity in seen:
                        raise ParseError.found(f"{shown(identity)} a second time", "each only once")
                    seen.add(identity)
            except ParseError as error:
                problems += error.within(f"[{index}]")
        if problems:
            raise ParseError.several(problems)
        return tuple(good)

    return Reader(read_all, f"an array: {read.takes}")


def _read_path(value: object, directory: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ParseError.found(shown(value), "the path of a file or directory")
    return directory / value


path = Reader(_read_path, "a path")
"""Relative to the file's directory. Whether anything is there is not asked."""


def _read_secret_file(value: object, directory: Path) -> Path:
    path = _read_path(value, directory)
    read_secret(path, MAX_SECRET)
    return path


secret_file = Reader(_read_secret_file, "the path of a file with the secret")
"""A file that is not empty, and that this user can read, but not everybody. Its text is left to its user."""


def _read_authorities(value: object, directory: Path) -> Path:
    path = _read_path(value, directory)
    expected = "a PEM file with at least one certificate"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=read_regular(path, MAX_PEM)[0].decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise ParseError.found(f"no PEM certificate in {shown(str(path))}", expected) from None
    except OSError as fault:
        found = f"{shown(str(path))}, which cannot be read ({fault.strerror})"
        raise ParseError.found(found, expected) from None
    return path


authorities = Reader(_read_authorities, "the path of a PEM file with at least one certificate")


def _read_private_key(value: object, directory: Path) -> Path:
    path = _read_path(value, directory)
    text, name = read_secret(path, MAX_PEM), shown(str(path))
    if b"ENCRYPTED" in text:
        found = f"an encrypted private key in {name}"
        raise ParseError.found(found, "a key without a pass phrase: no one is there to type it")
    if b"PRIVATE KEY-----" not in text:
        raise ParseError.found(f"no private key in {name}", "a PEM file with a private key")
    return path


private_key = Reader(_read_private_key, "the path of a PEM file with a private key")


def _read_proxy_auth_file(value: object, directory: Path) -> Path:
    path = _read_path(value, directory)
    proxy_authorization(path)
    return path


proxy_auth_file = Reader(_read_proxy_auth_file, "the path of a file with user:password")


def _read_socket_path(value: object, directory: Path) -> Path:
    path = _read_path(value, directory)
    size = len(os.fsencode(path))
    if size > endpoints.MAX_PATH:
        found = f"{shown(str(path))}, a path of {size} bytes"
        raise ParseError.found(found, f"a path of at most {endpoints.MAX_PATH} bytes")
    return path


socket_path = Reader(_read_socket_path, "the path of a UNIX socket")
"""Whether anything is there is not asked: it may come later."""


def _read_requests_log(value: object, directory: Path) -> str:
    if value in ("-", "none"):
        return str(value)
    try:
        return str(_read_path(value, directory))
    except ParseError:
        raise ParseError.found(shown(value), "'-' for standard output, 'none', or the path of a file") from None


requests_log = Reader(_read_requests_log, '"-", "none", or the path of a file')


@_reads("an endpoint string")
def endpoint(value: object) -> str:
    """A Twisted endpoint string of which a listener can be made."""
    if not isinstance(value, str):
        raise ParseError.found(shown(value), "an endpoint string such as tcp:8080:interface=127.0.0.1")
    endpoints.address(value)
    return value


@_reads("a URL")
def base_url(value: object) -> str:
    """A provider's base URL, without a trailing slash. Userinfo, query and fragment may be secrets: never shown."""
    expected = "http:// or https://, a host, perhaps a port and a path, such as https://api.openai.com/v1"
    if not isinstance(value, str):
        raise ParseError.found(shown(value), expected)
    if "@" in value:
        raise ParseError.found(
            "a URL that holds credentials (redacted)", f"{expected}; clients send their own credentials"
        )
    if "?" in value or "#" in value:
        found = f"{shown(re.split('[?#]', value)[0])} with a query or fragment (redacted)"
        raise ParseError.found(found, f"{expected}; no query, no fragment")
    try:
        url = urlsplit(value)
        host, port = url.hostname or "", url.port
        if port == 0:
            raise ValueError
        if ":" in host:
            IPv6Address(host)
    except ValueError:  # AddressValueError is one
        raise ParseError.found(
            shown(value), f"{expected}; a port from 1 to 65535, an IPv6 address in brackets"
        ) from None
    well_formed = (
        re.fullmatch("[!-~]+", value)
        and url.scheme in ("http", "https")
        and (":" in host or _HOST_NAME.fullmatch(host))
        and _PATH.fullmatch(url.path)
    )
    if not well_formed:
        raise ParseError.found(shown(value), expected)
    if _DOT_SEGMENT.search(url.path) or "//" in url.path:
        raise ParseError.found(shown(value), f"{expected}; no dot segments, no empty segments in the path")
    authority = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{authority}{'' if port is None else f':{port}'}{url.path.rstrip('/')}"


@_reads("a URL, such as http://proxy.example:3128")
def proxy_url(value: object) -> str:
    """A forward proxy's host and port, as a URL. Userinfo may be a secret: never shown."""
    expected = "http://, a host and a port, such as http://proxy.example:3128"
    if isinstance(value, str) and "@" in value:
        raise ParseError.found(
            "a URL that holds credentials (redacted)", f"{expected}; credentials go into proxy_auth_file"
        )
    if isinstance(value, str) and value.lower().startswith("https:"):
        expected += "; TLS goes through a proxy, and not to it"
    try:
        url = base_url(value)
        parts = urlsplit(url)
    except ParseError:
        raise ParseError.found(shown(value), expected) from None
    if parts.scheme != "http" or parts.path or parts.port is None:
        raise ParseError.found(shown(value), expected)
    return str(url)


@_reads("a URL, such as redis://127.0.0.1:6379/0")
def redis_url(value: object) -> str:
    """Where Redis is, always with its port and database. A password may be in what is not accepted: never shown."""
    expected = "redis:// or rediss://, perhaps a user and @, a host, perhaps a port and /database"
    if not isinstance(value, str):
        raise ParseError.found(shown(value), expected)
    before, at, _ = value.rpartition("@")
    user = before.partition("://")[2]
    if at and not _NAME.fullmatch(user):
        found = "a URL that holds a password (redacted)" if ":" in user else "a user's name that is none (redacted)"
        raise ParseError.found(found, f"{expected}; the password goes into redis_password_file")
    try:
        url = urlsplit(value)
        name, port = url.hostname or "", 6379 if url.port is None else url.port
        if ":" in name:
            IPv6Address(name)
    except ValueError:
        name, port = "", 0
    number = re.fullmatch(r"/?|/(?:0|[1-9][0-9]{0,4})", url.path) if name else None
    if (number is None or not port or not re.fullmatch("[!-~]+", value) or url.scheme not in ("redis", "rediss")
            or "?" in value or "#" in value or not (":" in name or _HOST_NAME.fullmatch(name))):  # fmt: skip
        raise ParseError.found(shown(value), expected)
    authority = f"[{name}]" if ":" in name else name
    return f"{url.scheme}://{user}{at}{authority}:{port}/{url.path.strip('/') or 0}"


@_reads("a URL, such as postgresql://flowstack@127.0.0.1:5432/flowstack")
def postgres_url(value: object) -> str:
    """Where PostgreSQL is, always with its port. A password may be in what is not accepted: never shown."""
    expected = "postgresql://, a user and @, a host, perhaps a port, and /database"
    if not isinstance(value, str):
        raise ParseError.found(shown(value), expected)
    user = value.rpartition("@")[0].partition("://")[2]
    if ":" in user or "@" in user or "password" in value.lower():
        raise ParseError.found("a URL that holds a password (redacted)", f"{expected}; the password goes into "
                               "postgres_password_file")  # fmt: skip
    place = _POSTGRES.fullmatch(value)
    name, port = (place[2].strip("[]").lower(), int(place[3] or 5432)) if place else ("", 0)
    try:
        if ":" in name:
            IPv6Address(name)
    except ValueError:
        name = ""
    if place is None or not 0 < port <= 65535 or not (":" in name or _HOST_NAME.fullmatch(name)):
        raise ParseError.found(shown(value), expected)
    return f"postgresql://{place[1]}@{place[2].lower()}:{port}/{place[4]}"


@_reads("a host and a port")
def host_and_port(value: object) -> str:
    """Where a server is that is no web server."""
    expected = "a host, a colon and a port, such as 10.0.0.1:26379"
    name, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) <= 65535:
        raise ParseError.found(shown(value), expected)
    try:
        return f"{host(name)}:{int(port)}"
    except ParseError:
        raise ParseError.found(shown(value), expected) from None


@_reads("a host name")
def host(value: object) -> str:
    """A name that clients send in ``Host``, in lower case. No port, no wildcard."""
    expected = "a host name without a port, such as openai.flowstack.example"
    if not isinstance(value, str):
        raise ParseError.found(shown(value), expected)
    lowered = value.lower()
    if lowered.startswith("[") and lowered.endswith("]"):
        try:
            return f"[{IPv6Address(lowered[1:-1])}]"
        except AddressValueError:
            raise ParseError.found(shown(value), expected) from None
    if not _HOST_NAME.fullmatch(lowered):
        raise ParseError.found(shown(value), expected)
    return lowered


@_reads("a header name, or the beginning of one and *")
def removed_field(value: object) -> str:
    """A request field's name in lower case, or a beginning with ``*`` behind it, that may be taken out.

    ``_`` is taken for ``-``, as many servers do.
    """
    expected = "a header's name, such as X-Team, or a beginning such as X-Team-*"
    name = value.lower().replace("_", "-") if isinstance(value, str) else ""
    beginning = name.removesuffix("*")
    if not _FIELD.fullmatch(beginning) or looks_secret(name):
        raise ParseError.found(shown(value), expected)
    for kept in _NEEDED:
        plain = kept.removesuffix("*")
        if beginning == plain or (kept != plain and beginning.startswith(plain)) or (
            beginning != name and plain.startswith(beginning)
        ):  # fmt: skip
            raise ParseError.found(
                f"{shown(value)}, which takes out {kept}",
                f"{expected}; not what frames a request, says what its body is, or holds the provider's key",
            )
    return name


@_reads("a header name")
def key_field(value: object) -> str:
    """The field in which a provider's key goes."""
    expected = "the header in which the provider takes its key: Authorization, api-key, x-api-key or another such"
    name = value.lower() if isinstance(value, str) else ""
    reserved = _CONNECTIONS | {"host", "cookie", "expect", "date", "te", "accept", "user-agent", "origin"}
    others = ("content-", "flowstack-", "accept-")
    if not _FIELD.fullmatch(name) or looks_secret(name) or name in reserved or name.startswith(others):
        raise ParseError.found(shown(value), expected)
    return str(value)


@_reads("a path")
def prefix_path(value: object) -> str:
    """A path that begins and ends with ``/`` and that two servers cannot read differently."""
    if not isinstance(value, str) or not _PREFIX.fullmatch(value) or _DOT_SEGMENT.search(value):
        raise ParseError.found(
            shown(value),
            "a path that begins and ends with '/', such as /v1/, without dot segments, empty segments or "
            "percent-encoding",
        )
    return value


@_reads("a path")
def served_path(value: object) -> str:
    """A prefix that is not one of Flowstack's own paths."""
    path = str(prefix_path(value))
    if path.startswith("/flowstack/"):
        raise ParseError.found(shown(value), "another path: what is below /flowstack/ is answered by Flowstack itself")
    return path


def tables(cls: type, **needed: str) -> Reader:
    """Tables of one kind within another, by name: a tuple of what :func:`table` makes, each with its name as ``name``.

    :param needed: as in :func:`table`.
    """

    def read_all(value: object, directory: Path) -> tuple[Any, ...]:
        if not isinstance(value, dict):
            raise ParseError.found(shown(value), "tables")
        good: list[Any] = []
        problems: list[ParseError] = []
        for key, item in value.items():
            try:
                good.append(table(cls, {"name": name(key)}, **needed)(item, directory))
            except ParseError as error:
                problems += error.within(f".{key_name(key)}")
        if problems:
            raise ParseError.several(problems)
        return tuple(good)

    return Reader(read_all, "tables")


def table(cls: type, more: Mapping[str, Any] = NOTHING_MORE, **needed: str) -> Reader:
    """A table within another, made into a class that declares its keys by :func:`setting`.

    :param more: what the class takes besides.
    :param needed: keys that have to be there, with what is expected of them.
    """

    def read_all(value: object, directory: Path) -> Any:
        if not isinstance(value, dict):
            raise ParseError.found(shown(value), "a table")
        known = settings_of(cls)
        good: dict[str, Any] = dict(more)
        problems: list[ParseError] = []
        for key, item in value.items():
            try:
                if key not in known:
                    raise ParseError.found("an unknown key", one_of(known, key))
                good[key] = known[key].reader(item, directory)
            except ParseError as error:
                problems += error.within(f".{key_name(key)}")
        for key in needed.keys() - value.keys():
            problems += ParseError.found("nothing", needed[key]).within(f".{key}")
        if problems:
            raise ParseError.several(problems)
        return cls(**good)

    return Reader(read_all, "a table")


@_reads("an origin")
def origin(value: object) -> str:
    """``*``, or an origin exactly as browsers send it: ASCII, in lower case, without a default port (Fetch §3.2)."""
    expected = "'*', or scheme://host or scheme://host:port in lower case, such as https://app.example"
    if value == "*":
        return "*"
    match = _ORIGIN.fullmatch(value) if isinstance(value, str) else None
    if match is None or not (_HOST_NAME.fullmatch(match[2]) or re.fullmatch(r"\[[0-9a-f:.]+\]", match[2])):
        raise ParseError.found(shown(value), expected)
    if match[3] is not None and (_DEFAULT_PORTS.get(match[1]) == match[3] or not 0 < int(match[3]) <= 65535):
        raise ParseError.found(shown(value), f"{expected}; a port from 1 to 65535, and not the scheme's own")
    return match[0]


@_reads("a network or an address")
def network(value: object) -> str:
    """A network in CIDR notation, or one address, as ``ipaddress`` writes the network."""
    if not isinstance(value, str):
        raise ParseError.found(shown(value), NETWORK)
    return str(read_network(value, shown(value)))


@_reads("US dollars")
def dollars(value: object) -> float:
    """US dollars for a million tokens; 0 is free, and neither ``true`` nor ``nan`` is a price."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_DOLLARS:
        raise ParseError.found(shown(value), f"US dollars for a million tokens, from 0 to {MAX_DOLLARS}")
    return float(value)


@_reads("an amount and a period")
def budget(value: object) -> str:
    """An amount and its period, written as in the keystore file."""
    if not isinstance(value, str) or read_budget(value) is None:
        raise ParseError.found(shown(value), BUDGET)
    return value


@_reads("a model's name, or a pattern with ``*``")
def model_pattern(value: object) -> str:
    """A pattern of model names, in which ``*`` stands for any run of characters."""
    if not isinstance(value, str) or not is_model_pattern(value):
        raise ParseError.found(shown(value), "a model's name, or a pattern such as gpt-4o*, without spaces")
    return value


@_reads("a model's name")
def model_name(value: object) -> str:
    """One model's name."""
    if not isinstance(value, str) or not is_model_pattern(value) or "*" in value:
        raise ParseError.found(shown(value), "a model's name, without spaces and without '*'")
    return value


NAME = "at most 64 letters, digits, - and _, the first a letter or digit"


@_reads("an upstream's name")
def name(value: object) -> str:
    """The name of an upstream or a target."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ParseError.found(f"the name {shown(value)}" if isinstance(value, str) else shown(value), NAME)
    return value


@_reads("a name")
def node_name(value: object) -> str:
    """The name of a machine."""
    if not isinstance(value, str) or not _NODE.fullmatch(value) or looks_secret(value):
        raise ParseError.found(shown(value), "at most 63 letters, digits, -, _ and ., the first a letter or digit")
    return value


NO_ANSWER = ("connect", "reset", "timeout")
"""How a request fails to which no answer came. What each means: ``[upstreams.NAME.retry] on`` says."""


@_reads('"connect", "reset", "timeout" or a status from 401 to 599')
def failure(value: object) -> str | int:
    """What may be a reason to ask again. 400 is none: the same request would be refused again."""
    if value in NO_ANSWER and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 401 <= value <= 599:
        raise ParseError.found(shown(value), f"{one_of(NO_ANSWER)}, or a status from 401 to 599")
    return value


class Pairs(tuple[tuple[str, str], ...]):
    """A table whose keys are free, in the order of the file; unlike a dict it can be hashed."""

    __slots__ = ()


def mapping(keys: Reader, values: Reader, takes: str) -> Reader:
    """A table whose keys are free, as :class:`Pairs`."""

    def read_all(value: object, directory: Path) -> Pairs:
        if not isinstance(value, dict):
            raise ParseError.found(shown(value), "a table")
        good: list[tuple[str, str]] = []
        problems: list[ParseError] = []
        for key, item in value.items():
            try:
                good.append((keys(key), values(item, directory)))
            except ParseError as error:
                problems += error.within(f".{key_name(key)}")
        if problems:
            raise ParseError.several(problems)
        return Pairs(good)

    return Reader(read_all, takes)
