"""Which build runs: the pure one, or the one in which the modules on a request's way are compiled.

``setup.py`` reads this file where nothing is installed yet, so it imports nothing of Flowstack's.
"""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final, Literal

COMPILED: Final = (
    "http/date", "http/frames", "http/framing", "http/handshake", "http/head_cache", "http/headers", "http/heads",
    "http/replies", "http/sse",
    "ledger/journal", "ledger/ledger", "ledger/lines", "ledger/row",
    "limits/bounds", "limits/charge", "limits/counters", "limits/look", "limits/money", "limits/plans",
    "limits/shared", "limits/windows",
    "metrics/recorder", "metrics/segment",
    "prices/cost",
    "relay/admission", "relay/attempt", "relay/authentication", "relay/behind", "relay/client", "relay/exchange",
    "relay/failover", "relay/gate", "relay/holding", "relay/ids", "relay/permission", "relay/resource", "relay/row",
    "relay/services", "relay/steps",
    "server/connection", "server/proxied", "server/request", "server/request_body", "server/site",
    "tokens",
    "transport/kernel", "transport/outbox", "transport/ticker",
    "upstream/call", "upstream/connection", "upstream/health", "upstream/pool", "upstream/targets",
    "upstream/upload",
    "usage/answers", "usage/chunks", "usage/estimate", "usage/figures", "usage/inject", "usage/inner",
    "usage/members", "usage/meters", "usage/model", "usage/operations", "usage/request_facts", "usage/shares",
    "usage/streams", "usage/turns",
)  # fmt: skip
"""The modules that the compiled build compiles. It has all of them, or it is broken: a call from one to another is
bound when they are compiled."""


def _build() -> Literal["pure", "compiled", "broken"]:
    folder, suffix = Path(__file__).parent, EXTENSION_SUFFIXES[0]
    compiled = {str(path.relative_to(folder)).removesuffix(suffix) for path in folder.rglob("*" + suffix)}
    return "pure" if not compiled else "compiled" if compiled == set(COMPILED) else "broken"


BUILD: Final = _build()
"""``broken``: some of the modules are compiled and some are not, or others are. Such a one does not start."""

BROKEN: Final = (
    "this installation is broken: it has other compiled modules than those that belong together. Remove it and install "
    "it anew: pip uninstall flowstack, then pip install flowstack"
)
