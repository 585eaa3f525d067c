"""TOML bytes in, frozen settings out; every fault named with its table and key, all of them at once.

:mod:`~flowstack.config.settings` holds the values and their defaults, :mod:`~flowstack.config.tables` which keys there
are, :mod:`~flowstack.config.parse` what belongs to several keys together, :mod:`~flowstack.config.values` what one
value may be, :mod:`~flowstack.config.endpoints` Twisted's endpoint strings, :mod:`~flowstack.config.places` what a
start writes to, :mod:`~flowstack.config.faults` the words for what is wrong. ``etc/flowstack.toml`` shows every key.
"""

from flowstack.config.faults import ConfigError
from flowstack.config.parse import load, parse
from flowstack.config.settings import (
    Admin,
    Estimates,
    Ledger,
    Limits,
    Log,
    Prefix,
    Price,
    Reconcile,
    Server,
    Settings,
    Timeouts,
    Upstream,
    UpstreamLimits,
)

__all__ = [
    "Admin",
    "ConfigError",
    "Estimates",
    "Ledger",
    "Limits",
    "Log",
    "Prefix",
    "Price",
    "Reconcile",
    "Server",
    "Settings",
    "Timeouts",
    "Upstream",
    "UpstreamLimits",
    "load",
    "parse",
]
