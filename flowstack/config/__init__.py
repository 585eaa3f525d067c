"""TOML bytes in, frozen settings out; every fault named with its table and key, all of them at once.

:mod:`~flowstack.config.settings` states every setting once, :mod:`~flowstack.config.values` reads one value,
:mod:`~flowstack.config.parse` a whole file and what belongs to several keys together,
:mod:`~flowstack.config.endpoints` Twisted's endpoint strings; :mod:`~flowstack.config.places` checks what a start
writes to, and :mod:`~flowstack.config.faults` has the error that names every fault.
"""

from flowstack.config.faults import ConfigError
from flowstack.config.node import node_of
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
    Shared,
    Target,
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
    "Shared",
    "Target",
    "Timeouts",
    "Upstream",
    "UpstreamLimits",
    "load",
    "node_of",
    "parse",
]
