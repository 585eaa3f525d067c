"""Twisted's endpoint strings, checked by Twisted's own parser without binding anything.

The parser gets a recorder in the reactor's place. What it finds wrong comes as any exception, often with words meant
for a programmer; they are put into an operator's here.
"""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path

from attrs import frozen

from flowstack.config.faults import one_of
from flowstack.errors import ParseError
from flowstack.files import read_regular
from flowstack.redact import shown

FORMS = {
    "tcp": "tcp:PORT[:interface=ADDRESS]",
    "tcp6": "tcp6:PORT[:interface=ADDRESS]",
    "unix": "unix:ADDRESS[:mode=OCTAL]",
    "ssl": "ssl:PORT:privateKey=FILE:certKey=FILE[:extraCertChain=FILE][:interface=ADDRESS]",
    "systemd": "systemd:domain=INET|INET6|UNIX:name=NAME (or index=N)",
}
"""The kinds that a proxy can use, and how each is written. A plug-in of Twisted's may add more."""

UNFIT = {
    "stdio": "an endpoint that several clients can connect to, such as tcp:8080",
    "tls": f"{FORMS['ssl']}: SIGHUP reloads its certificate, which tls: does not; a listener for each certificate",
    "haproxy": "the endpoint alone, with proxy_protocol = true and trusted_proxies in [server]: its header's address "
    "would not be used otherwise",
}
"""Kinds that Twisted has and a proxy cannot do its work with, each with what takes its place."""

_RECORDED = ("tcp", "tcp6", "unix", "ssl")
"""The kinds whose ``listen`` is known to do nothing but call the reactor."""

_ANY = {"": "0.0.0.0", "::0": "::"}
_SSL_FILES = {2: "privateKey", 3: "certKey", 7: "extraCertChain", 8: "dhParameters"}
"""The files of ``ssl:``, by their place where they are not named."""

_PUBLIC = ("certKey", "extraCertChain", "dhParameters")
_MAX_KEY_BYTES = 1 << 20

MAX_PATH = 107
"""Bytes of a UNIX socket's path (unix(7))."""

_ARGUMENT = re.compile(r"'(\w+)'$")


@frozen(slots=True)
class Address:
    """Where an endpoint would listen.

    :ivar host: an IP address or name, ``0.0.0.0`` or ``::`` for any; the path of a UNIX socket.
    :ivar port: None for a UNIX socket.
    """

    host: str
    port: int | None

    @property
    def is_any(self) -> bool:
        """Whether every network of the machine reaches it."""
        return self.host in ("0.0.0.0", "::")

    def clashes(self, other: Address) -> bool:
        """Whether both cannot be bound at once."""
        if self.port != other.port or self.port == 0:
            return False
        same_family = (":" in self.host) == (":" in other.host)
        return self.host == other.host or (self.port is not None and same_family and (self.is_any or other.is_any))


class _Recorder:
    """Stands where a reactor would, and notes what would be bound."""

    address: Address | None = None

    def listenTCP(self, port: int, factory: object, backlog: int = 50, interface: str = "") -> None:
        self.address = Address(_ANY.get(interface, interface), port)

    def listenSSL(self, port: int, factory: object, backlog: int, interface: str, **tls: object) -> None:
        self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(self, address: str, factory: object, **rest: object) -> None:  # noqa: N802 - Twisted's name
        self.address = Address(address, None)


def fields(endpoint: str) -> tuple[list[str], dict[str, str]]:
    r"""Split an endpoint string: fields at ``:``, names at the first ``=``, ``\`` takes either's meaning away.

    The kind is the first field without a name, wherever that stands.
    """
    positional, named = [], {}
    for part in re.findall(r"(?:^|:)((?:\\.|[^\\:])*)", endpoint, re.DOTALL):
        name, equals, value = re.match(r"((?:\\.|[^\\=])*)(=?)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        if equals:
            named[_unescaped(name)] = _unescaped(value)
        else:
            positional.append(_unescaped(name))
    return positional, named


def kind_of(endpoint: str) -> str:
    """What kind an endpoint string is of: its first field without a name, wherever that stands."""
    return (fields(endpoint)[0] or [""])[0]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def address(endpoint: str) -> Address | None:
    """Where *endpoint* would listen; None where only the start can tell (``systemd:``, wrapped and plug-in kinds).

    :raises ParseError: Twisted cannot make a listener of it, with the reason and the form of its kind.
    """
    kind = kind_of(endpoint)
    if kind in UNFIT:
        raise ParseError.found(shown(endpoint), UNFIT[kind])
    if kind == "systemd":
        _check_systemd(endpoint)
        return None
    if kind == "ssl":
        _check_key_files(endpoint)
    # Here, as it takes longer than all else that a command imports, and most commands check no endpoint.
    from twisted.internet.endpoints import serverFromString
    from twisted.internet.protocol import Factory

    recorder = _Recorder()
    try:
        made = serverFromString(recorder, endpoint)
    except Exception as fault:  # a parser, or the plug-in that it finds, may raise anything
        raise _unusable(endpoint, kind, fault) from None
    if kind in _RECORDED:
        made.listen(Factory())
    if recorder.address is not None:
        _check(endpoint, kind, recorder.address)
    return recorder.address


def _check(endpoint: str, kind: str, found: Address) -> None:
    """Refuse what Twisted takes until it binds."""
    if found.port is not None and not 0 <= found.port <= 65535:
        raise ParseError.found(shown(endpoint), f"a port from 0 to 65535, as {FORMS[kind]}")
    if found.port is None:
        if not found.host:
            raise ParseError.found(f"{shown(endpoint)} without its address", FORMS[kind])
        if len(os.fsencode(found.host)) > MAX_PATH:
            found_too_long = f"{shown(endpoint)}, whose path has {len(os.fsencode(found.host))} bytes"
            raise ParseError.found(found_too_long, f"a path of at most {MAX_PATH} bytes, as {FORMS[kind]}")
        return
    try:
        ip_address(found.host)
    except ValueError:
        if not re.search("[a-z]", found.host, re.IGNORECASE) or ":" in found.host:
            expected = f"an IP address of this machine as interface, as {FORMS[kind]}"
            raise ParseError.found(shown(endpoint), expected) from None


def _check_systemd(endpoint: str) -> None:
    """Check the form alone: the descriptors are there only in the service's own process."""
    arguments = dict(re.findall(r":(\w+)=([^:]*)", endpoint))
    named = arguments.keys() & {"name", "index"}
    well_formed = (
        arguments.keys() <= {"domain", "name", "index"}
        and endpoint == "systemd" + "".join(f":{key}={value}" for key, value in arguments.items())
        and hasattr(socket, f"AF_{arguments.get('domain')}")
        and len(named) == 1
        and arguments.get("name") != ""
        and re.fullmatch("[0-9]{1,4}", arguments.get("index", "0"))
    )
    if not well_formed:
        raise ParseError.found(shown(endpoint), FORMS["systemd"])


def _check_key_files(endpoint: str) -> None:
    """Refuse a file that would be waited for, and a key for which OpenSSL would ask for a pass phrase and wait."""
    try:
        named = _files_of(endpoint)
        for file in named.values():
            if file.exists() and not file.is_file():
                raise ParseError.found(f"{shown(endpoint)}, whose {shown(str(file))} is no regular file", FORMS["ssl"])
        encrypted = [file for name, file in named.items() if name not in _PUBLIC and _is_encrypted(file)]
    except (OSError, ValueError):
        return  # the parser finds it too, and says so
    if encrypted:
        found = f"an encrypted private key in {shown(str(encrypted[0]))}"
        raise ParseError.found(found, "a key without a pass phrase: no one is there to type it")


def _is_encrypted(file: Path) -> bool:
    return b"ENCRYPTED" in read_regular(file, _MAX_KEY_BYTES)[0]


def _files_of(endpoint: str) -> dict[str, Path]:
    """The files that an ``ssl:`` string names, by their argument."""
    positional, named = fields(endpoint)
    found = {name: positional[place] for place, name in _SSL_FILES.items() if place < len(positional)}
    found |= {name: value for name, value in named.items() if name in _SSL_FILES.values()}
    return {name: Path(value) for name, value in found.items()}


def _unusable(endpoint: str, kind: str, fault: Exception) -> ParseError:
    """Say what a parser's exception means for the one who wrote the string."""
    form = FORMS.get(kind, "")
    if f"Unknown endpoint type: '{kind}'" in str(fault):
        found = f"{shown(endpoint)}, of an unknown kind" if endpoint else "an empty endpoint string"
        return ParseError.found(
            found, f"an endpoint string of {one_of(FORMS, kind)}, such as tcp:8080:interface=127.0.0.1"
        )
    argument = _ARGUMENT.search(str(fault))
    match fault:
        case OSError():
            return ParseError.found(
                f"{shown(endpoint)}, whose file {shown(fault.filename or '')} cannot be read "
                f"({fault.strerror or fault})",
                f"{form or 'files'} with files that this user can read",
            )
        case TypeError() if "missing" in str(fault):
            missing = argument[1] if argument else "arguments"
            return ParseError.found(f"{shown(endpoint)} without its {missing}", form or "all of its arguments")
        case TypeError() if "unexpected" in str(fault) and argument:
            return ParseError.found(
                f"{shown(endpoint)} with the unknown argument {argument[1]}", form or "known arguments"
            )
        case TypeError():
            return ParseError.found(f"{shown(endpoint)} with too many arguments", form or "fewer arguments")
        case ValueError() if "invalid literal" in str(fault):
            return ParseError.found(f"{shown(endpoint)} with a word where a number belongs", form or "a number")
    if kind == "ssl":
        return ParseError.found(
            f"{shown(endpoint)}, whose private key or certificate is not valid PEM, or which do not belong together",
            f"{form} with a PEM private key and its certificate",
        )
    return ParseError.found(f"{shown(endpoint)}, which Twisted cannot read", form or "a Twisted endpoint string")
