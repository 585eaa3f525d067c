"""How budgets, model patterns, networks and lengths of time are written, in the keystore and elsewhere alike."""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

from attrs import frozen

from flowstack.errors import ParseError

Period = Literal["day", "month", "total"]
Network = IPv4Network | IPv6Network

BUDGET = "an amount above 0, 'usd/', and day, month or total, such as 50.00usd/month"
DURATION = "a duration such as 30m, 24h or 7d, at most 366d, or 0"
NETWORK = "an address or a network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"

_BUDGET = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)usd/(day|month|total)").fullmatch
# Characters that other pattern languages give a meaning are kept out, so that nobody relies on one that is not there.
_MODEL = re.compile(r"[A-Za-z0-9_.:/@+~=*-]{1,256}").fullmatch
_NETWORK = re.compile(r"[0-9A-Fa-f.:]+(?:/[0-9]{1,3})?").fullmatch
_DURATION = re.compile(r"([0-9]{1,9})([smhd])").fullmatch
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 366 * 86_400
_MAPPED = IPv6Network("::ffff:0:0/96")


@frozen(slots=True)
class Budget:
    """How much money a key may use.

    :ivar amount: US dollars, more than 0.
    :ivar period: a day or a month of UTC, or all time.
    """

    amount: Decimal
    period: Period

    def __str__(self) -> str:
        return f"{self.amount:f}usd/{self.period}"


def read_budget(text: str) -> Budget | None:
    """Return the budget that *text* is, or None; see :data:`BUDGET`."""
    match = _BUDGET(text)
    amount = Decimal(match[1]) if match else Decimal(0)
    return Budget(amount, match[2]) if match and amount else None  # type: ignore[arg-type]


def read_duration(text: str) -> int | None:
    """Return the seconds that *text* is, or None; see :data:`DURATION`."""
    match = _DURATION(text)
    seconds = 0 if text == "0" else int(match[1]) * _UNITS[match[2]] if match else -1
    return seconds if 0 <= seconds <= _LONGEST else None


def is_model_pattern(text: str) -> bool:
    """Whether *text* is a model's name, or a pattern in which ``*`` stands for any run of characters."""
    return _MODEL(text) is not None


def read_network(text: str, shown: str, expected: str = NETWORK) -> Network:
    """Read a network in CIDR notation, or one address.

    :param shown: *text* as an error may repeat it.
    :raises ParseError: it is none, or one that no client's address would ever match.
    """
    try:
        if not _NETWORK(text):
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        raise ParseError.found(shown, expected) from None
    address = text.partition("/")[0]
    if ip_address(address) != network.network_address:
        raise ParseError(
            f"found {shown}, whose address has bits set beyond its prefix, expected {network} for the network, or "
            f"{address} for the one address"
        )
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ParseError(
            f"found {shown}, an IPv4 address written as IPv6, expected it written as IPv4, as that is how clients are "
            "seen"
        )
    return network
