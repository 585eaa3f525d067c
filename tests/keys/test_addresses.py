"""Whose word is taken for a client's address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.addresses import MAX_HOPS, Networks, client_address, parse_address, usual_address

TRUSTED = Networks(("10.0.0.0/8", "192.0.2.1", "2001:db8::/32"))

CASES: list[tuple[str, list[bytes], str]] = [
    # peer, fields, the client
    ("203.0.113.9", [], "203.0.113.9"),
    ("203.0.113.9", [b"198.51.100.7"], "203.0.113.9"),  # a stranger's word
    ("10.0.0.1", [], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7"),
    ("192.0.2.1", [b"198.51.100.7"], "198.51.100.7"),
    ("192.0.2.2", [b"198.51.100.7"], "192.0.2.2"),
    ("10.0.0.1", [b"6.6.6.6, 198.51.100.7"], "198.51.100.7"),  # what the client wrote itself
    ("10.0.0.1", [b"198.51.100.7, 10.0.0.2"], "198.51.100.7"),
    ("10.0.0.1", [b"6.6.6.6", b"198.51.100.7", b"10.0.0.2"], "198.51.100.7"),
    ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # from within
    ("10.0.0.1", [b"  198.51.100.7\t"], "198.51.100.7"),
    ("10.0.0.1", [b"198.51.100.7:4711"], "198.51.100.7"),
    ("10.0.0.1", [b"[2001:4860::7]:4711"], "2001:4860::7"),
    ("10.0.0.1", [b"[2001:4860::7]"], "2001:4860::7"),
    ("10.0.0.1", [b"2001:4860:0::7"], "2001:4860::7"),
    ("10.0.0.1", [b"2001:4860::7, 2001:db8::5"], "2001:4860::7"),
    ("::ffff:10.0.0.1", [b"::ffff:198.51.100.7"], "198.51.100.7"),
    ("2001:db8::1%eth0", [b"198.51.100.7"], "198.51.100.7"),
    # what is no address ends the reading with the proxy that passed it on
    ("10.0.0.1", [b""], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.7,"], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
    ("10.0.0.1", [b"198.51.100.7, 10.0.0.2, _hidden"], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.7 10.0.0.2"], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.700"], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.07"], "10.0.0.1"),
    ("10.0.0.1", [b"0x7f.1"], "10.0.0.1"),
    ("10.0.0.1", [b"2130706433"], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.7:"], "10.0.0.1"),
    ("10.0.0.1", [b"198.51.100.7:port"], "10.0.0.1"),
    ("10.0.0.1", [b"[198.51.100.7"], "10.0.0.1"),
    ("10.0.0.1", [b'"198.51.100.7"'], "10.0.0.1"),
    ("10.0.0.1", [b"fe80::1%eth0"], "10.0.0.1"),
    ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
    ("10.0.0.1", [b"1" * 10_000], "10.0.0.1"),
    ("unix", [b"198.51.100.7"], "unix"),
    ("", [b"198.51.100.7"], ""),
]


@pytest.mark.parametrize(("peer", "fields", "client"), CASES)
def test_the_right_most_address_that_is_no_trusted_proxy_is_the_client(
    peer: str, fields: list[bytes], client: str
) -> None:
    assert client_address(peer, fields, TRUSTED) == client


@given(st.lists(st.binary(max_size=60)), st.ip_addresses(v=4).filter(lambda a: not TRUSTED.hold(str(a))))
def test_nothing_that_a_client_writes_changes_what_the_trusted_proxy_saw(fields: list[bytes], seen: object) -> None:
    appended = [*fields, str(seen).encode()]
    assert client_address("10.0.0.1", appended, TRUSTED) == str(seen)
    joined = b", ".join(appended)
    assert client_address("10.0.0.1", [joined], TRUSTED) == str(seen)


def test_only_so_many_entries_are_looked_at() -> None:
    fields = [b"198.51.100.7"] + [b"10.0.0.2"] * (MAX_HOPS - 1)
    assert client_address("10.0.0.1", fields, TRUSTED) == "198.51.100.7"
    assert client_address("10.0.0.1", [*fields, b"10.0.0.2"], TRUSTED) == "10.0.0.2"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("unix", "None"),
        ("", "None"),
        ("192.0.2.07", "None"),
    ],
)
def test_an_address_is_read_as_networks_compare_it(text: str, address: str) -> None:
    assert str(parse_address(text)) == address


def test_networks_hold_what_lies_in_one_of_them_however_often_they_are_asked() -> None:
    for _ in range(2):
        assert TRUSTED.hold("10.255.255.255")
        assert TRUSTED.hold("::ffff:10.1.1.1")
        assert TRUSTED.hold("2001:db8::9%eth0")
        assert not TRUSTED.hold("11.0.0.0")
        assert not TRUSTED.hold("unix")
    assert not Networks(())
    assert TRUSTED


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="example"):
        Networks(("example.com",))


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    networks = Networks(("10.0.0.0/8",))
    for number in range(5000):
        assert not networks.hold(f"11.0.{number // 256}.{number % 256}")
    assert len(networks._known) <= 1024
    assert networks.hold("10.0.0.1")


@pytest.mark.parametrize(
    ("socket_s", "usual"),
    [
        ("127.0.0.1", "127.0.0.1"), ("::ffff:127.0.0.1", "127.0.0.1"), ("::FFFF:7f00:1", "127.0.0.1"),
        ("::1", "::1"), ("2001:DB8:0:0::7", "2001:db8::7"), ("fe80::1%eth0", "fe80::1"), ("unix", "unix"), ("", ""),
        ("::ffff:0:127.0.0.1", "::ffff:0:7f00:1"),
    ],
)  # fmt: skip
def test_an_address_is_told_in_one_form(socket_s: str, usual: str) -> None:
    assert usual_address(socket_s) == usual
