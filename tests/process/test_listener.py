"""Listeners as services."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from flowstack.process.listener import url_of


@pytest.mark.parametrize(
    ("address", "description", "url"),
    [
        (IPv4Address("TCP", "127.0.0.1", 80), "tcp:80", "http://127.0.0.1:80"),
        (IPv4Address("TCP", "127.0.0.1", 443), "ssl:443", "https://127.0.0.1:443"),
        (IPv6Address("TCP", "::1", 80), "tcp6:80", "http://[::1]:80"),
        (UNIXAddress(b"/run/s"), "unix:/run/s", "unix:/run/s"),
    ],
    ids=str,
)
def test_an_address_is_shown_as_a_client_writes_it(address: Any, description: str, url: str) -> None:
    assert url_of(address, description) == url
