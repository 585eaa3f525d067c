"""Which header fields pass, in both directions, and what they may say.

Header fields are pairs ``(name, value)`` of bytes in wire order; a :class:`RawHeaders` holds them beside an index by
lower-case name, so that order, case and repeats survive and a look-up is one dict access.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import ClassVar, NamedTuple

from flowstack.errors import MalformedRequest
from flowstack.http.names import CREDENTIALS, HOP_BY_HOP, belongs_to_request, folded, reroutes, tells_client
from flowstack.memo import Memo
from flowstack.tokens import hide_keys

Pair = tuple[bytes, bytes]

_LOCATIONS = frozenset((b"location", b"content-location"))

MOST_OPTIONS = 32
"""Names in a request's Connection; nobody has use for as many."""

MAX_ATTRIBUTES = 16
MAX_ATTRIBUTE_BYTES = 4096

_ATTRIBUTE = b"flowstack-attribute-"


def lines_of(pairs: Iterable[Pair]) -> bytes:
    """Fields as they stand in a head, each on a line that begins with CRLF."""
    return b"\r\n".join((b"", *map(b": ".join, pairs)))


def pairs_of(lines: bytes) -> tuple[Pair, ...]:
    """The fields of such lines."""
    fields = [line.partition(b": ") for line in lines.split(b"\r\n")[1:]]
    return tuple([(name, value) for name, _, value in fields])


class RawHeaders:
    """Header fields as they were on the wire.

    It has the methods of :class:`twisted.web.http_headers.Headers` that agents, treq and their stand-ins call, without
    the case folding and the grouping that Twisted's own does.

    :cvar upgrades: whether they ask for another protocol, so that a 101 may answer them.
    """

    __slots__ = ("_pairs",)

    upgrades: ClassVar[bool] = False

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs

    @property
    def pairs(self) -> list[Pair]:
        """The fields in order."""
        return self._pairs

    def lines(self) -> bytes:
        """See :func:`lines_of`."""
        return lines_of(self.pairs)

    # Twisted's interface.

    def __repr__(self) -> str:
        """Names only: a value may be a credential."""
        return f"RawHeaders({[name for name, _ in self.pairs]!r})"

    def copy(self) -> RawHeaders:
        """An independent copy."""
        return RawHeaders(list(self.pairs))

    def hasHeader(self, name: str | bytes) -> bool:  # noqa: N802
        """Whether a field of this name is there."""
        wanted = _lower(name)
        return any(other.lower() == wanted for other, _ in self.pairs)

    def getRawHeaders(self, name: str | bytes, default: object = None) -> object:  # noqa: N802
        """The values of a field, or ``default``."""
        wanted = _lower(name)
        values = [value for other, value in self.pairs if other.lower() == wanted]
        if not values:
            return default
        return values if isinstance(name, bytes) else [value.decode("latin-1") for value in values]

    def getAllRawHeaders(self) -> Iterator[tuple[bytes, list[bytes]]]:  # noqa: N802
        """Each field by itself, in wire order and case."""
        return ((name, [value]) for name, value in self.pairs)

    def addRawHeader(self, name: str | bytes, value: str | bytes) -> None:  # noqa: N802
        """Append a field."""
        self.pairs.append((_bytes(name), _bytes(value)))

    def setRawHeaders(self, name: str | bytes, values: Iterable[str | bytes]) -> None:  # noqa: N802
        """Replace a field's values; new ones go to the end."""
        self.removeHeader(name)
        self._pairs += [(_bytes(name), _bytes(value)) for value in values]

    def removeHeader(self, name: str | bytes) -> None:  # noqa: N802
        """Remove a field."""
        gone = _lower(name)
        self._pairs = [pair for pair in self.pairs if pair[0].lower() != gone]


class PreparedHeaders(RawHeaders):
    """Fields whose lines are known already, and which are seldom asked for one by one. They are not changed any more.

    :param lines: what :meth:`lines` gives.
    """

    __slots__ = ("_lines",)

    def __init__(self, lines: bytes) -> None:
        self._pairs = []
        self._lines = lines

    @property
    def pairs(self) -> list[Pair]:
        """See :attr:`RawHeaders.pairs`."""
        return list(pairs_of(self._lines))

    def lines(self) -> bytes:
        """See :meth:`RawHeaders.lines`."""
        return self._lines


class ReceivedHeaders(RawHeaders):
    """The fields of a head that came, with a look-up that costs one dict access.

    :ivar by_name: lower-case name to its value; to the last one where a field is repeated.
    :ivar repeated: whether any field came more than once.
    :ivar located: whether a field says where something is: ``Location`` or ``Content-Location``.
    """

    __slots__ = ("by_name", "located", "repeated")

    by_name: MutableMapping[bytes, bytes]

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs
        self.by_name = {name.lower(): value for name, value in pairs}
        self._sum_up()

    def _sum_up(self) -> None:
        self.repeated = len(self.by_name) != len(self._pairs)
        self.located = not _LOCATIONS.isdisjoint(self.by_name)

    def relocated(self, location: Callable[[bytes], bytes]) -> ReceivedHeaders:
        """The same fields with other values of those that say where something is."""
        return ReceivedHeaders(
            [(name, location(value) if name.lower() in _LOCATIONS else value) for name, value in self.pairs]
        )

    def onward(self) -> bytes:
        """Of a response's fields, the lines of those that go back to the client; see :func:`response_pairs`."""
        return lines_of(response_pairs(self))

    def all(self, name: bytes) -> list[bytes]:
        """The values of the field with this lower-case name, in order."""
        if not self.repeated:
            value = self.by_name.get(name)
            return [] if value is None else [value]
        return [value for other, value in self.pairs if other.lower() == name]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def _lower(name: str | bytes) -> bytes:
    return _bytes(name).lower()


def connection_names(values: Iterable[bytes]) -> set[bytes]:
    """The lower-case names in all values of Connection (RFC 9110 §7.6.1: each is one list)."""
    return {name.strip(b" \t").lower() for value in values for name in value.split(b",")} - {b""}


def check_connection(names: set[bytes]) -> None:
    """Refuse a Connection field that would strip what the request means.

    :param names: in lower case.
    :raises MalformedRequest: if it names a credential, Host, Cookie, ``Accept*``, ``Content-*``, ``Flowstack-*`` or
        another field that is meant for whoever answers; or more than 32.
    """
    if len(names) > MOST_OPTIONS:
        raise MalformedRequest(f"The Connection header names {len(names)} fields. Send 'keep-alive' or 'close' only.")
    for name in names:
        if belongs_to_request(folded(name)):
            raise MalformedRequest(
                f"The Connection header names {hide_keys(name.decode('latin-1'))!r}, which is no field of the "
                "connection. Send Connection with 'keep-alive' or 'close' only."
            )


KEEP, DROP, OWN, REROUTES = range(4)
"""KEEP is false, since most fields are kept."""


def _response_kind(name: bytes) -> int:
    lower = name.lower()
    return DROP if lower in HOP_BY_HOP or lower.startswith(b"flowstack-") else KEEP


_response_kinds = Memo(_response_kind, longest=64)


class SplitFields(NamedTuple):
    """A request's fields, set apart.

    :ivar out: those that go to the upstream.
    :ivar own: ``Flowstack-*``.
    :ivar rerouting: of those that go out, the ones by which some server takes another method, path or model; see
        :func:`flowstack.http.names.reroutes`.
    """

    out: list[Pair]
    own: list[Pair]
    rerouting: list[Pair]


class RequestFields:
    """Which of a request's fields go to the upstream.

    :param forwarded: ``remove``, ``pass`` or ``append`` (see :class:`flowstack.config.Server`).
    :param remove: names of fields that go too, in lower case; one that ends in ``*`` is a beginning.
    """

    __slots__ = ("_kinds", "_passes_client", "_removed", "_removed_beginnings")

    def __init__(self, forwarded: str = "remove", remove: Iterable[str] = ()) -> None:
        names = [name.encode("ascii") for name in remove]
        self._passes_client = forwarded != "remove"
        self._removed = frozenset(name for name in names if not name.endswith(b"*"))
        self._removed_beginnings = tuple(name[:-1] for name in names if name.endswith(b"*"))
        self._kinds = Memo(self._kind, longest=64)

    def _kind(self, name: bytes) -> int:
        """What a field's name means; remembered for the spellings that occur."""
        plain = folded(name)
        if plain in HOP_BY_HOP or plain == b"expect" or plain in self._removed:
            return DROP
        if plain.startswith(b"flowstack-"):
            return OWN
        if plain == b"host":
            return KEEP  # in its place, whatever beginnings are removed: see with_host
        if plain.startswith(self._removed_beginnings):
            return DROP
        if not self._passes_client and tells_client(plain):
            return DROP
        return REROUTES if reroutes(name.lower()) else KEEP

    def split(self, headers: ReceivedHeaders) -> SplitFields:
        """Set a request's fields apart.

        :raises MalformedRequest: see :func:`check_connection`.
        """
        out: list[Pair] = []
        own: list[Pair] = []
        rerouting: list[Pair] = []
        kinds = self._kinds
        for pair in headers.pairs:
            kind = kinds[pair[0]]
            if not kind:
                out.append(pair)
            elif kind == OWN:
                own.append(pair)
            elif kind == REROUTES:
                out.append(pair)
                rerouting.append(pair)
        if b"connection" in headers.by_name:
            names = connection_names(headers.all(b"connection"))
            if not names <= _USUAL:
                check_connection(names)
                out = [pair for pair in out if pair[0].lower() not in names]
        return SplitFields(out, own, rerouting)


_USUAL = frozenset((b"close", b"keep-alive"))


def with_host(pairs: list[Pair], host: bytes) -> list[Pair]:
    """The same fields with another Host: in its place, or first where there is none, as in HTTP/1.0."""
    for place, (name, _) in enumerate(pairs):
        if name.lower() == b"host":
            return [*pairs[:place], (name, host), *pairs[place + 1 :]]
    return [(b"Host", host), *pairs]


def append_forwarded(pairs: list[Pair], client: bytes, scheme: bytes, host: bytes | None) -> list[Pair]:
    """Add this hop to X-Forwarded-For; say scheme and host where no hop before did.

    :param client: the client's address without its port.
    """
    names = {name.lower() for name, _ in pairs}
    before = [value for name, value in pairs if name.lower() == b"x-forwarded-for"]
    out = [pair for pair in pairs if pair[0].lower() != b"x-forwarded-for"]
    out.append((b"X-Forwarded-For", b", ".join([*before, client])))
    if b"x-forwarded-proto" not in names:
        out.append((b"X-Forwarded-Proto", scheme))
    if b"x-forwarded-host" not in names and host is not None:
        out.append((b"X-Forwarded-Host", host))
    return out


def response_pairs(headers: ReceivedHeaders) -> list[Pair]:
    """The fields that go back to the client: all but the hop-by-hop ones and any ``Flowstack-*`` of the upstream's."""
    pairs = [pair for pair in headers.pairs if not _response_kinds[pair[0]]]
    if b"connection" in headers.by_name:
        names = connection_names(headers.all(b"connection"))
        if not names <= _USUAL:
            names.discard(b"content-length")  # it frames what has been read by it already
            pairs = [pair for pair in pairs if pair[0].lower() not in names]
    return pairs


def with_length(pairs: list[Pair], length: int | None) -> list[Pair]:
    """The same fields for a body of another length; None leaves it to the transfer coding."""
    kept = [pair for pair in pairs if pair[0].lower() != b"content-length"]
    return kept if length is None else [*kept, (b"Content-Length", b"%d" % length)]


_PROVIDERS = CREDENTIALS | {b"openai-organization", b"openai-project"}


def replace_credentials(pairs: list[Pair], api_key: bytes, name: bytes = b"Authorization") -> list[Pair]:
    """The same fields with the operator's provider key in place of whatever the client sent of that kind.

    :param name: of the field that takes it; ``Authorization`` says ``Bearer`` before it.
    """
    taken = {*_PROVIDERS, name.lower()}
    kept = [pair for pair in pairs if folded(pair[0]) not in taken]
    return [*kept, (name, b"Bearer " + api_key if name.lower() == b"authorization" else api_key)]


def identity_coding(pairs: list[Pair]) -> list[Pair]:
    """The same fields, asking for an answer that is not compressed (RFC 9110 §12.5.3)."""
    return [pair for pair in pairs if pair[0].lower() != b"accept-encoding"] + [(b"Accept-Encoding", b"identity")]


def attributes(own: list[Pair]) -> dict[str, str] | None:
    """The request's metadata: ``Flowstack-Attribute-<Name>: <value>``, names in lower case; None where there is none.

    :param own: the ``Flowstack-*`` fields.
    :raises MalformedRequest: more than 16, more than 4 KiB together, an empty name, or one name twice.
    """
    found: dict[str, str] = {}
    size = 0
    for name, value in own:
        lower = name.lower()
        if not lower.startswith(_ATTRIBUTE):
            continue
        key = hide_keys(lower[len(_ATTRIBUTE) :].decode("latin-1"))
        if not key:
            raise MalformedRequest("A Flowstack-Attribute header has no name: 'Flowstack-Attribute-<Name>: value'.")
        if key in found:
            raise MalformedRequest(f"Flowstack-Attribute-{key} came more than once. Send each attribute once.")
        found[key] = hide_keys(value.decode("utf-8", "replace"))
        size += len(lower) - len(_ATTRIBUTE) + len(value)
    if len(found) > MAX_ATTRIBUTES or size > MAX_ATTRIBUTE_BYTES:
        raise MalformedRequest(
            f"The Flowstack-Attribute headers hold {len(found)} attributes of {size} bytes together; "
            f"at most {MAX_ATTRIBUTES} and {MAX_ATTRIBUTE_BYTES} bytes are stored. Send fewer or shorter ones."
        )
    return found or None
