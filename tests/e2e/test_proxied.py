"""Behind another proxy: whose word is taken for where a client is, by the PROXY protocol or X-Forwarded-For."""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.e2e.crowd import journal
from tests.e2e.processes import StandIn, StartProxy, eventually
from tests.e2e.raw import Answer, Client, assert_own_error, request
from tests.e2e.raw_upstream import Front, front

pytestmark = pytest.mark.e2e

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
ASKING = b"GET /v1/models HTTP/1.1"


def version_1(source: str, family: str = "TCP4", target: str = "192.0.2.9") -> bytes:
    """A header of version 1 (PROXY protocol §2.1)."""
    return f"PROXY {family} {source} {target} 56324 443\r\n".encode()


def version_2(source: str = "", command: int = 1, family: int | None = None, more: bytes = b"") -> bytes:
    """A header of version 2 (PROXY protocol §2.2)."""
    address = b""
    if source:
        packed = ipaddress.ip_address(source).packed
        address = packed + packed + struct.pack("!HH", 56324, 443)
        family = (0x11 if len(packed) == 4 else 0x21) if family is None else family
    address += more
    return SIGNATURE + bytes((0x20 | command, family or 0)) + struct.pack("!H", len(address)) + address


@define
class House:
    """A proxy whose connections begin with a PROXY header, and keys for clients in one network alone."""

    ends: Front
    there: str = field(repr=False)
    six: str = field(repr=False)

    def ask(self, header: bytes, key: str | None = None, *fields: bytes) -> Answer:
        """Send a PROXY header and a request at once."""
        with self.ends.client() as client:
            return client.ask(header + request(key or self.ends.proxy.key, ASKING, *fields))

    def address(self, answer: Answer) -> str:
        """The client's address in the answer's row."""
        (row,) = [row for row in journal(self.ends.proxy) if row["request_id"] == answer.request_id]
        found: str = row["client_addr"]
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    server = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.0/8"], "forwarded": "append"}
    with front(tmp_path_factory.mktemp("proxied"), base="/v1", server=server) as ends:
        there = ends.proxy.keystore.add("allow_ip=203.0.113.0/24")
        six = ends.proxy.keystore.add("allow_ip=2001:db8::/32")
        assert ends.proxy.reload()["fault"] is None
        yield House(ends, there, six)


HEADERS = {
    "1, TCP4": (version_1("203.0.113.7"), "203.0.113.7"),
    "1, TCP6": (version_1("2001:db8::7", "TCP6", "2001:db8::1"), "2001:db8::7"),
    "1, TCP6 in full": (version_1("2001:0db8:0:0:0:0:0:7", "TCP6", "2001:db8::1"), "2001:db8::7"),
    "1, UNKNOWN": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "1, IPv4 as IPv6": (version_1("::ffff:203.0.113.7", "TCP6", "::1"), "203.0.113.7"),
    "1, UNKNOWN with more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "127.0.0.1"),
    "2, TCP4": (version_2("203.0.113.7"), "203.0.113.7"),
    "2, TCP6": (version_2("2001:db8::7"), "2001:db8::7"),
    "2, TCP4 with more": (version_2("203.0.113.7", more=b"\x04\x00\x03abc"), "203.0.113.7"),
    "2, LOCAL": (version_2(command=0), "127.0.0.1"),
    "2, LOCAL with an address": (version_2("203.0.113.7", command=0), "127.0.0.1"),
    "2, unspecified": (version_2(family=0), "127.0.0.1"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_trusted_proxy_s_header_says_where_the_client_is(house: House, name: str) -> None:
    header, address = HEADERS[name]
    answer = house.ask(header)
    assert answer.status == 200
    assert house.address(answer) == address
    assert house.ends.upstream.last().all(b"x-forwarded-for") == [address.encode()]


@pytest.mark.parametrize("name", HEADERS)
def test_allow_ip_is_held_against_the_client_s_address_and_not_the_proxy_s(house: House, name: str) -> None:
    header, address = HEADERS[name]
    four, six = house.ask(header, house.there), house.ask(header, house.six)
    assert four.status == (200 if address.startswith("203.") else 403)
    assert six.status == (200 if address.startswith("2001:") else 403)


def test_x_forwarded_for_is_not_believed_where_the_header_says_it(house: House) -> None:
    answer = house.ask(version_1("198.51.100.4"), house.there, b"X-Forwarded-For: 203.0.113.7")
    assert_own_error(answer, 403, "address_not_allowed")
    assert house.address(answer) == "198.51.100.4"


def test_the_address_stands_for_each_request_of_the_connection(house: House) -> None:
    with house.ends.client() as client:
        client.send(version_2("203.0.113.7"))
        for _ in range(3):
            answer = client.ask(request(house.there, ASKING))
            assert (answer.status, house.address(answer)) == (200, "203.0.113.7")
        client.send(request(house.there, ASKING) * 2)
        assert [client.answer().status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("header", [version_1("203.0.113.7"), version_2("203.0.113.7")], ids=["1", "2"])
def test_a_header_may_come_in_pieces(house: House, header: bytes) -> None:
    for cut in (1, 5, 8, 12, 15, 16, 20, len(header) - 1, len(header)):
        with house.ends.client() as client:
            client.send(header[:cut])
            assert client.quiet(0.05), cut
            client.send(header[cut:] + request(house.there, ASKING))
            assert client.answer().status == 200, cut


GARBAGE = {
    "no header": request("sk", ASKING),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "1, another family": b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
    "1, no ports": b"PROXY TCP4 1.2.3.4 1.2.3.4\r\n",
    "1, ports in words": b"PROXY TCP4 1.2.3.4 1.2.3.4 one two\r\n",
    "1, no address": b"PROXY TCP4 here there 1 2\r\n",
    "1, no ASCII": b"PROXY TCP4 \xff\xfe 1.2.3.4 1 2\r\n",
    "1, without end": b"PROXY TCP4 " + b"1" * 300,
    "2, another version": SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
    "2, another command": version_2("1.2.3.4", command=2),
    "2, another family": version_2("1.2.3.4", family=0x41),
    "2, too short": SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_header_ends_the_connection_without_a_word(house: House, name: str) -> None:
    house.ends.upstream.forget()
    with house.ends.client() as client:
        client.offer(GARBAGE[name] + request(house.ends.proxy.key, ASKING))
        assert client.to_the_end()[0] == b""
    assert house.ends.upstream.requests == []
    assert house.ask(version_1("203.0.113.7"), house.there).status == 200


def test_a_large_answer_and_a_large_upload_pass_behind_a_header(start_proxy: StartProxy, stand_in: StandIn) -> None:
    server = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    proxy = start_proxy(server=server)
    size = 30_000_000
    auth = b"Authorization: Bearer sk-x"
    with Client(proxy.port, limit=60) as client:
        client.send(version_2("203.0.113.7"))
        answer = client.ask(request(proxy.key, ASKING, b"Stand-In: size=%d" % size, auth))
        assert len(answer.body) == size
        fields = (b"Stand-In: sink", b"Content-Length: %d" % size, auth)
        client.send(request(proxy.key, b"POST /v1/files HTTP/1.1", *fields))
        for _ in range(30):
            client.send(bytes(1_000_000))
        assert b'"bytes": %d' % size in client.answer().body


def test_a_header_from_elsewhere_is_not_even_read(start_proxy: StartProxy) -> None:
    proxy = start_proxy(server={"proxy_protocol": True, "trusted_proxies": ["192.0.2.0/24"]})
    for _ in range(20):
        # The cut may come before the client has noticed that it is connected.
        with suppress(ConnectionResetError), Client(proxy.port) as client:
            client.offer(version_1("192.0.2.1") + request(proxy.key, ASKING))
            assert client.to_the_end()[0] == b""
    eventually(lambda: "it is not in [server] trusted_proxies" in proxy.log_text(), "the log says why")
    assert proxy.log_text().count("it is not in [server] trusted_proxies") < 5, "strangers must not fill a disk"
    assert journal(proxy) == []


FORWARDED = [
    (["127.0.0.1"], ["203.0.113.7"], "203.0.113.7"),
    (["127.0.0.1"], ["192.0.2.1, 203.0.113.7"], "203.0.113.7"),
    (["127.0.0.1", "203.0.113.0/24"], ["192.0.2.1, 203.0.113.7"], "192.0.2.1"),
    (["127.0.0.1", "203.0.113.0/24"], ["192.0.2.1", "203.0.113.7"], "192.0.2.1"),
    (["127.0.0.1"], ["203.0.113.7:1234"], "203.0.113.7"),
    (["127.0.0.1"], ["[2001:0db8::0007]:80"], "2001:db8::7"),
    (["127.0.0.1"], ["203.0.113.7, unknown"], "127.0.0.1"),
    (["127.0.0.1"], [], "127.0.0.1"),
    (["192.0.2.0/24"], ["203.0.113.7"], "127.0.0.1"),
    ([], ["203.0.113.7"], "127.0.0.1"),
]


def test_x_forwarded_for_is_believed_as_far_as_trusted_proxies_wrote_it(tmp_path: Path) -> None:
    trusted: list[list[str]] = []
    for networks, _, _ in FORWARDED:
        if networks not in trusted:
            trusted.append(networks)
    for number, networks in enumerate(trusted):
        server: dict[str, Any] = {"trusted_proxies": networks}
        with front(tmp_path / str(number), base="/v1", server=server) as ends:
            house = House(ends, "", "")
            for one, values, address in FORWARDED:
                if one == networks:
                    answer = house.ask(b"", None, *(b"X-Forwarded-For: " + value.encode() for value in values))
                    assert (answer.status, house.address(answer)) == (200, address)
                    assert ends.upstream.last().all(b"x-forwarded-for") == [], "removed by default"


def test_a_socket_for_both_families_shows_an_ipv4_client_as_one(tmp_path: Path) -> None:
    server = {"listen": ["tcp:0:interface=127.0.0.1", "tcp6:0"], "trusted_proxies": ["127.0.0.1"]}
    with front(tmp_path, base="/v1", server=server) as ends:
        house = House(ends, "", "")
        found = re.search(r"http://\[::\]:(\d+)", ends.proxy.log_text())
        assert found, ends.proxy.log_text()
        for fields, address in (((), "127.0.0.1"), ((b"X-Forwarded-For: ::ffff:203.0.113.7",), "203.0.113.7")):
            with Client(int(found[1])) as client:
                answer = client.ask(request(ends.proxy.key, ASKING, *fields))
            assert (answer.status, house.address(answer)) == (200, address)
        with Client(int(found[1])) as client:
            client.ask(request("nobody", ASKING))
        ends.proxy.stop()
        assert "the last from 127.0.0.1" in ends.proxy.log_text()
