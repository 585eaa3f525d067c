"""The header with which a proxy says for which client it made a connection: the PROXY protocol, versions 1 and 2.

The rules are those of HAProxy's ``doc/proxy-protocol.txt``. A header may come in pieces, as its §2 recommends to allow.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from flowstack.addresses import parse_address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""§2.2: how a header of version 2 begins. No request can begin so."""

_BEGIN_1 = b"PROXY "
_MOST_1 = 107
"""§2.1: the longest header of version 1, its line's end included."""

_HEAD_2 = len(SIGNATURE) + 4
_LOCAL, _PROXY = 0x20, 0x21
_PORT = re.compile(r"[0-9]{1,5}").fullmatch

_SIZES = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
"""§2.2: by family and protocol, the bytes that two addresses of it have; 0 is unspecified."""


class BadProxyHeader(ValueError):
    """What came is no such header; the text says why, and repeats nothing of it."""


@frozen(slots=True)
class ProxyHeader:
    """A header, whole.

    :ivar size: its bytes; what follows is the client's.
    :ivar address: the client's, in its usual form; None where the header says to take the connection's own: the proxy
        speaks for itself (``LOCAL``), or does not know (``UNKNOWN``), or its client has no address of the Internet.
    """

    size: int
    address: str | None


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at a connection's beginning.

    :param data: all that has come so far.
    :return: None while more of it must come; at most 65,551 bytes.
    :raises BadProxyHeader: no header can come of this.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _read_2(data)
    if data.startswith(_BEGIN_1[: len(data)]):
        return _read_1(data)
    raise BadProxyHeader("it does not begin with a PROXY protocol header")


def _read_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _MOST_1)
    if end < 0:
        if len(data) >= _MOST_1:
            raise BadProxyHeader("its PROXY line does not end")
        return None
    try:
        words = data[len(_BEGIN_1) : end].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise BadProxyHeader("its PROXY line is no ASCII") from None
    if words[0] == "UNKNOWN":
        return ProxyHeader(end + 2, None)
    if words[0] not in ("TCP4", "TCP6") or len(words) != 5:
        raise BadProxyHeader("its PROXY line does not hold TCP4 or TCP6, two addresses and two ports")
    kind = IPv4Address if words[0] == "TCP4" else IPv6Address
    try:
        source, _ = kind(words[1]), kind(words[2])
    except ValueError:
        raise BadProxyHeader("its PROXY line has an address that is none of its family") from None
    if not all(_PORT(port) and int(port) < 65536 for port in words[3:]):
        raise BadProxyHeader("its PROXY line has a port that is none")
    return ProxyHeader(end + 2, str(parse_address(str(source))))


def _read_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _HEAD_2:
        return None
    command, family = data[12], data[13]
    size = int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("its PROXY header has another version than 2, or an unknown command")
    if command == _PROXY and _SIZES.get(family, size + 1) > size:
        raise BadProxyHeader("its PROXY header has an unknown kind of address, or is too short for it")
    if len(data) < _HEAD_2 + size:
        return None
    address = None
    if command == _PROXY and family in (0x11, 0x12, 0x21, 0x22):
        width = 4 if family < 0x20 else 16
        packed = data[_HEAD_2 : _HEAD_2 + width]
        address = str(parse_address(str(IPv4Address(packed) if width == 4 else IPv6Address(packed))))
    return ProxyHeader(_HEAD_2 + size, address)
