"""Flowstack's own paths on the proxy's listener, and what the holder of a key is told there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from flowstack.http.replies import Reply
from flowstack.interfaces import Answered
from flowstack.keys import Budget, Key
from flowstack.limits.money import NANO

KEY_PATH = b"/flowstack/v1/key"
"""Where a key's holder may ask what it may do, and what of its limits is left."""

USAGE_PATH = b"/flowstack/v1/usage"
"""Where it may ask what it used."""

METHODS = (b"GET", b"HEAD")

_LAST = 253_402_300_799.0  # the end of the year 9999, after which datetime knows nothing


class Standing(Protocol):
    """How one limit stands; see :class:`flowstack.limits.books.Standing`."""

    @property
    def limit(self) -> str:
        """``rpm``, ``tpm``, ``max_parallel`` or ``budget``."""

    @property
    def name(self) -> str:
        """The key's id, or a group's name with an ``@`` before it."""

    @property
    def scope(self) -> str:
        """The upstream whose requests alone count; empty where all do."""

    @property
    def most(self) -> int:
        """The limit; money in billionths of a dollar."""

    @property
    def used(self) -> int:
        """Of these."""

    @property
    def left(self) -> int:
        """Of these."""

    @property
    def reset(self) -> float | None:
        """Seconds until all is free again, or None."""

    @property
    def budget(self) -> Budget | None:
        """Of the limit ``budget``: with its period."""


def key_reply(key: Key, standings: Iterable[Standing], now: float) -> Reply:
    """The answer to :data:`KEY_PATH`: a JSON object, the same for HEAD.

    :param standings: of the key's limits and its group's.
    :param now: UTC Unix seconds.
    """
    limits, budgets = [], []
    for standing in standings:
        if standing.scope and key.upstreams and standing.scope not in key.upstreams:
            continue  # which the key cannot reach
        told: dict[str, Any] = {
            "of": "group" if standing.name.startswith("@") else "key",
            "upstream": standing.scope or None,
        }
        used = standing.used > 0
        reset_at = None if standing.reset is None else instant(now + standing.reset)
        if standing.budget is None:
            told |= {"limit": standing.most, "used": standing.used, "remaining": standing.left}
            limits.append({"name": standing.limit, **told, "reset_at": reset_at if used else None})
        else:
            told |= {
                "period": standing.budget.period,
                "limit_usd": standing.most / NANO,
                "spent_usd": standing.used / NANO,
                "left_usd": standing.left / NANO,
                "reset_at": reset_at,
            }
            budgets.append(told)
    shown = {
        "object": "flowstack.key",
        "id": key.id,
        "owner": key.owner,
        "group": key.group,
        "disabled": key.disabled,
        "expires_at": None if key.expires_at is None else instant(key.expires_at),
        "models": key.models or None,
        "endpoints": key.endpoints or None,
        "upstreams": key.upstreams or None,
        "allow_ip": tuple(map(str, key.allow_ip)) or None,
        "limits": limits,
        "budgets": budgets,
    }
    body = orjson.dumps(shown, option=orjson.OPT_APPEND_NEWLINE)
    return Reply(
        200,
        [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
        ],
        body,
    )


def usage_reply(answered: Answered) -> Reply:
    """The answer to :data:`USAGE_PATH`."""
    pairs = [
        (b"Content-Type", answered.kind),
        (b"Content-Length", b"%d" % len(answered.body)),
        (b"Cache-Control", b"no-store"),
    ]
    return Reply(200, pairs, answered.body)


def instant(seconds: float) -> str:
    """UTC Unix seconds as RFC 3339 has it, whole, rounded up."""
    return datetime.fromtimestamp(min(math.ceil(seconds - 0.001), _LAST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
