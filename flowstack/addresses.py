"""Clients' addresses: how they are compared, and whose word is taken for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from flowstack.memo import Memo

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

MAX_HOPS = 32
"""Entries of ``X-Forwarded-For`` that are looked at, from the right; nobody has so many proxies."""

_MAX_ENTRY = len("[0000:0000:0000:0000:0000:ffff:255.255.255.255]:65535")
_IPV4_WITH_PORT = re.compile(r"([0-9.]{7,15}):[0-9]{1,5}").fullmatch
_IPV6_IN_BRACKETS = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?").fullmatch
_BARE = re.compile(r"[0-9A-Fa-f:.]{2,45}").fullmatch


def parse_address(text: str) -> Address | None:
    """Read an address such as a socket's peer has, or return None where it is none, as for a Unix socket.

    An IPv6 zone (``%eth0``) is left out, since networks have none. An IPv4 address that is written as IPv6
    (``::ffff:192.0.2.7``, RFC 4291 §2.5.5.2), as a socket for both shows it, is taken as IPv4.
    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def usual_address(host: str) -> str:
    """A socket's address in the one form in which it is told everywhere: see :func:`parse_address`.

    What is no address stays as it is.
    """
    address = parse_address(host) if ":" in host else None  # IPv4 has one form only
    return host if address is None else str(address)


def within(address: Address | None, networks: Iterable[Network]) -> bool:
    """Whether one of the networks holds the address."""
    return address is not None and any(address in network for network in networks)


class Networks:
    """Networks that are asked again and again about the same few addresses.

    :param networks: in CIDR notation, such as ``10.0.0.0/8``; an address stands for itself.
    :raises ValueError: one of them is no network.
    """

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Iterable[str | Network]) -> None:
        self._networks = tuple(ip_network(network, strict=False) for network in networks)
        self._known = Memo(self._hold)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def hold(self, address: str) -> bool:
        """Whether one of them holds the address; what is no address is held by none."""
        return self._known[address]

    def _hold(self, address: str) -> bool:
        return within(parse_address(address), self._networks)


def client_address(peer: str, forwarded_for: Sequence[bytes], trusted: Networks) -> str:
    """Say from where a request comes, given who handed it over.

    ``X-Forwarded-For`` is a list to which each proxy appends whom it got the request from, and what stands in it before
    the first trusted proxy is anybody's text. So it is read from the right, and only as long as a trusted proxy wrote:
    the right-most address that is no trusted proxy is the client's. An entry that is no address ends the reading, with
    the proxy that passed it on as the answer; where all are trusted, it is the left-most one.

    :param peer: the connection's other end, as the socket says.
    :param forwarded_for: the values of all ``X-Forwarded-For`` fields, in order.
    :param trusted: the proxies that are believed.
    :return: an address in its usual form, or ``peer`` as it is.
    """
    if not forwarded_for or not trusted.hold(peer):
        return peer
    address = peer
    entries = b",".join(forwarded_for).rsplit(b",", MAX_HOPS)
    if len(entries) > MAX_HOPS:
        del entries[0]
    for entry in reversed(entries):
        said = _entry(entry)
        if said is None:
            return address
        address = said
        if not trusted.hold(address):
            return address
    return address


def _entry(raw: bytes) -> str | None:
    """Read an entry: an address, with a port behind it as some proxies write, or not."""
    bare = raw.strip(b" \t")
    return _entries[bare] if len(bare) <= _MAX_ENTRY else None


def _read_entry(raw: bytes) -> str | None:
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        return None
    match = _IPV4_WITH_PORT(text) or _IPV6_IN_BRACKETS(text)
    bare = match[1] if match else text
    address = parse_address(bare) if _BARE(bare) else None
    return None if address is None else str(address)


_entries = Memo(_read_entry)
