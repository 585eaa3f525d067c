"""The PROXY protocol's header: every kind, every cut, every other byte."""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.http.proxy_protocol import SIGNATURE, BadProxyHeader, ProxyHeader, read_proxy_header

REST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def version_1(words: str) -> bytes:
    return f"PROXY {words}\r\n".encode()


def version_2(family: int, body: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body)) + body


def two(address: str) -> bytes:
    return ip_address(address).packed * 2 + struct.pack("!HH", 1, 65535)


GOOD = {
    "TCP4": (version_1("TCP4 203.0.113.7 192.0.2.9 56324 443"), "203.0.113.7"),
    "longest": (version_1(f"TCP6 {'ffff:' * 7}ffff {'ffff:' * 7}ffff 65535 65535"), "ffff:" * 7 + "ffff"),
    "TCP6": (version_1("TCP6 2001:db8::7 ::1 0 1"), "2001:db8::7"),
    "TCP6 in full": (version_1("TCP6 2001:0DB8:0:0:0:0:0:0007 ::1 1 2"), "2001:db8::7"),
    "IPv4 as IPv6": (version_1("TCP6 ::ffff:203.0.113.7 ::1 1 2"), "203.0.113.7"),
    "UNKNOWN": (version_1("UNKNOWN"), None),
    "UNKNOWN with more": (version_1("UNKNOWN ffff::1 x 1"), None),
    "2, TCP4": (version_2(0x11, two("203.0.113.7")), "203.0.113.7"),
    "2, UDP4": (version_2(0x12, two("203.0.113.7")), "203.0.113.7"),
    "2, TCP6": (version_2(0x21, two("2001:db8::7")), "2001:db8::7"),
    "2, IPv4 as IPv6": (version_2(0x21, two("::ffff:203.0.113.7")), "203.0.113.7"),
    "2, TCP4 with more": (version_2(0x11, two("203.0.113.7") + b"\x04\x00\x01x"), "203.0.113.7"),
    "2, socket": (version_2(0x31, b"/run/a".ljust(108, b"\0") * 2), None),
    "2, unspecified": (version_2(0x00, b""), None),
    "2, unspecified with more": (version_2(0x00, bytes(40)), None),
    "2, LOCAL": (version_2(0x00, b"", 0x20), None),
    "2, LOCAL with an address": (version_2(0x11, two("203.0.113.7"), 0x20), None),
    "2, LOCAL of any family": (version_2(0xFF, b"", 0x20), None),
    "2, longest": (version_2(0x11, two("203.0.113.7") + bytes(65523)), "203.0.113.7"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_header_is_read_when_its_last_byte_is_there_and_what_follows_is_left(name: str) -> None:
    header, address = GOOD[name]
    cuts = range(len(header)) if len(header) < 300 else (0, 1, 11, 12, 15, 16, 300, len(header) - 1)
    assert [read_proxy_header(header[:cut]) for cut in cuts] == [None] * len(cuts)
    for rest in (b"", REST, SIGNATURE, b"\x00" * 100):
        assert read_proxy_header(header + rest) == ProxyHeader(len(header), address)


BAD = {
    "a request": REST,
    "TLS": b"\x16\x03\x01\x02\x00",
    "another word": b"PROXIED TCP4",
    "lower case": b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
    "another family": version_1("TCP5 1.2.3.4 1.2.3.4 1 2"),
    "no family": version_1(""),
    "no ports": version_1("TCP4 1.2.3.4 1.2.3.4"),
    "a port less": version_1("TCP4 1.2.3.4 1.2.3.4 1"),
    "a word more": version_1("TCP4 1.2.3.4 1.2.3.4 1 2 3"),
    "two spaces": version_1("TCP4  1.2.3.4 1.2.3.4 1 2"),
    "another's address": version_1("TCP4 ::1 ::1 1 2"),
    "another's address, turned": version_1("TCP6 1.2.3.4 1.2.3.4 1 2"),
    "a name": version_1("TCP4 localhost 1.2.3.4 1 2"),
    "a bad target": version_1("TCP4 1.2.3.4 x 1 2"),
    "a number": version_1("TCP4 16909060 1.2.3.4 1 2"),
    "a port too high": version_1("TCP4 1.2.3.4 1.2.3.4 1 65536"),
    "a port below": version_1("TCP4 1.2.3.4 1.2.3.4 -1 2"),
    "a port in words": version_1("TCP4 1.2.3.4 1.2.3.4 one 2"),
    "a bare line feed": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + b"x" * 107,
    "no ASCII": b"PROXY TCP4 \xff 1.2.3.4 1 2\r\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 93,
    "an end too late": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "version 1 in binary": version_2(0x11, two("1.2.3.4"), 0x11),
    "version 3": version_2(0x11, two("1.2.3.4"), 0x31),
    "another command": version_2(0x11, two("1.2.3.4"), 0x22),
    "another family of 2": version_2(0x41, bytes(300)),
    "another protocol": version_2(0x13, bytes(300)),
    "half of unspecified": version_2(0x01, bytes(300)),
    "too short": version_2(0x11, bytes(11)),
    "too short for IPv6": version_2(0x21, two("1.2.3.4")),
    "too short for a socket": version_2(0x31, bytes(215)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header_is_said_so_and_not_repeated(name: str) -> None:
    with pytest.raises(BadProxyHeader) as caught:
        read_proxy_header(BAD[name])
    assert re.fullmatch(r"it(s PROXY (line|header))? [a-zA-Z0-9 ,]+", str(caught.value))
    for word in ("1.2", "localhost", "here", "GET"):
        assert word not in str(caught.value)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_no_bytes_make_it_fail_in_another_way(data: bytes, before: bytes) -> None:
    try:
        header = read_proxy_header(before + data)
    except BadProxyHeader:
        return
    assert header is None or header.size <= len(before + data)


@given(st.ip_addresses(), st.integers(0, 65535), st.integers(0, 65535))
def test_both_versions_say_the_same_of_any_address(address: IPv4Address | IPv6Address, one: int, two: int) -> None:
    kind, family = ("TCP4", 0x11) if address.version == 4 else ("TCP6", 0x21)
    text = read_proxy_header(version_1(f"{kind} {address} {address} {one} {two}"))
    binary = read_proxy_header(version_2(family, address.packed * 2 + struct.pack("!HH", one, two)))
    assert text is not None and binary is not None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert text.address == binary.address == str(mapped or address)
