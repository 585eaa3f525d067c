"""Work whose usage is known only after the request that began it: what is kept of it, and the rows in which it ends.

A background response is known when it is seen completed, a batch up to a day after it was created. Until then the
estimate of the request that began it stays charged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, cast

from attrs import asdict, fields, frozen

from flowstack.ledger.row import BLANK, FoldedRow, Row, put_usage
from flowstack.prices.cost import Prices
from flowstack.usage.model import Used
from flowstack.usage.operations import Work

WAIT_SECONDS: Final = 30 * 86400.0
"""How long after its beginning work is still waited for. OpenAI keeps stored responses for 30 days, and Anthropic a
message batch's results for 29; a batch ends within one."""

_TEXTS: Final = ("upstream", "kind", "id", "key_id", "request_id", "method", "path")
_OPERATIONS: Final[dict[Work, str]] = {"response": "responses", "batch": "batch", "message_batch": "batch"}


@frozen(slots=True)
class Begun:
    """Work as it was begun.

    :ivar id: the upstream's.
    :ivar key_id: of the key that began it, and so is charged; ``owner``, ``group`` and ``attributes`` go with it.
    :ivar request_id: of the request that began it; ``method``, ``path``, ``model_requested`` and ``service_tier`` too.
    :ivar begun: UTC Unix seconds.
    :ivar expires: UTC Unix seconds; what is seen after that is charged no more, and the estimate stays.
    :ivar kept: of :meth:`flowstack.interfaces.Reservation.kept`, or None.
    """

    upstream: str
    kind: Work
    id: str
    key_id: str
    owner: str | None
    group: str | None
    attributes: dict[str, str] | None
    request_id: str
    method: str
    path: str
    model_requested: str | None
    service_tier: str | None
    begun: float
    expires: float
    kept: dict[str, Any] | None

    @classmethod
    def of(cls, row: Row, upstream: str, kind: Work, identity: str, when: float, kept: dict[str, Any] | None) -> Begun:
        """What is kept of a request's row, so far as it is known.

        :param when: UTC Unix seconds, when the request began.
        """
        return cls(
            upstream=upstream,
            kind=kind,
            id=identity,
            key_id=row["key_id"],
            owner=row["owner"],
            group=row["group"],
            attributes=row["attributes"],
            request_id=row["request_id"],
            method=row["method"] or "",
            path=row["path"] or "",
            model_requested=row["model_requested"],
            service_tier=row["service_tier"],
            begun=when,
            expires=when + WAIT_SECONDS,
            kept=kept,
        )

    @classmethod
    def read(cls, text: bytes) -> Begun | None:
        """From :meth:`written`; None where it is none."""
        try:
            values = json.loads(text)
            made = cls(**{each.name: values[each.name] for each in fields(cls)})
        except (ValueError, TypeError, KeyError):
            return None
        whole = all(type(getattr(made, name)) is str for name in _TEXTS) and made.kind in _OPERATIONS
        return made if whole and type(made.begun) is type(made.expires) is float else None

    def written(self) -> bytes:
        """As JSON in ASCII, for :meth:`read`: a header's texts may hold what is no UTF-8."""
        return json.dumps(asdict(self, recurse=False)).encode("ascii")

    @property
    def name(self) -> str:
        """See :func:`name_of`."""
        return name_of(self.upstream, self.kind, self.id)

    @property
    def operation(self) -> str:
        """By which it is counted."""
        return _OPERATIONS[self.kind]


def name_of(upstream: str, kind: Work, identity: str) -> str:
    """What work is found by: no two have one."""
    return sha256("\0".join((upstream, kind, identity)).encode("utf-8", "replace")).hexdigest()[:32]


def settlement(begun: Begun, used: Sequence[Used], prices: Prices, now: float, status: int) -> list[Row]:
    """The rows in which finished work ends, one for each model that worked, of the key that began it.

    Each time they are made they have the same ids, so that a row that is written twice counts once.

    :param now: UTC Unix seconds.
    :param status: of the answer that showed it.
    """
    batch = begun.kind != "response"
    rows: list[Row] = []
    for number, one in enumerate(used):
        usage = one.usage
        row = cast(FoldedRow, {**BLANK, "requests": 0})
        identity = "\0".join((begun.request_id, begun.upstream, begun.kind, begun.id, str(number)))
        row["request_id"] = sha256(identity.encode("utf-8", "replace")).hexdigest()[:32]
        row["parent_request_id"] = begun.request_id
        row["started_at"] = datetime.fromtimestamp(now, UTC)
        row["key_id"], row["owner"], row["group"] = begun.key_id, begun.owner, begun.group
        row["attributes"] = begun.attributes
        row["client_addr"] = None
        row["method"], row["path"], row["upstream"] = begun.method, begun.path, begun.upstream
        row["model_requested"], row["model"] = begun.model_requested, one.model
        row["service_tier"] = one.service_tier or begun.service_tier
        row["status"] = status
        put_usage(row, usage, prices, batch, begun.begun)
        if usage.total_tokens == 0 and not usage.details:
            row["cost_usd"], row["price_date"], row["priced_by"], row["unpriced"] = 0.0, None, None, None
        rows.append(row)
    return rows


def together(rows: Sequence[Row]) -> Row:
    """All that one piece of work ended in, as the limiter is to charge it."""
    if len(rows) == 1:
        return rows[0]
    sums: dict[str, Any] = {}
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cost_usd"):
        figures = [row[name] for row in rows]
        sums[name] = None if None in figures else sum(figures)
    return cast(Row, {**rows[0], **sums})
