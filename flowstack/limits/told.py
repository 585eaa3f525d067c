"""What Redis tells of limits: under which keys it has them, and how what it says is read.

It is written into counters of this process alone, so that whatever reads counters reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from flowstack.config.settings import Limits, Settings
from flowstack.keys import Budget, Group, Key
from flowstack.limits.books import bounds_by_scope
from flowstack.limits.counters import LATEST, RESET, SEEN, USED, Counters
from flowstack.limits.money import Period, period_at
from flowstack.limits.plans import slot_name
from flowstack.limits.windows import BUCKETS, RING, TOTAL, bucket_of

REQUEST, TOKEN, FLIGHT, MONEY, LOOK = b"r", b"t", b"p", b"m", b"l"
"""Kinds of limits, as the functions call them; the last only looks at a window."""

_KINDS: Final = {"rpm": REQUEST, "tpm": TOKEN, "max_parallel": FLIGHT, "budget": MONEY}

_INT: Final = frozenset((int,))

STRANGE: Final = "it answered something else than our functions do"


class Untold(Exception):
    """An answer is none that our functions give; the text says what it is."""


class Unfit(Untold):
    """The keys of one call hold something else than our functions put there."""


_UNFIT = "WRONGTYPE", "ERR hash value is not an integer"

_ARGUMENTS = ", with args beginning with"
"""After which Redis repeats what it was told, be it a password."""


def plain(text: str, secret: bytes | None = None) -> str:
    """An error of Redis' in one short line.

    :param secret: the password, which is not repeated.
    """
    text = text.partition(_ARGUMENTS)[0]
    if secret:
        text = text.replace(secret.decode("ascii"), "...")
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def time_of(answer: Any) -> float:
    """When Redis answered: UTC Unix seconds.

    :raises Untold: it is no answer of our functions; the text may be Redis' own: see :func:`plain`.
    :raises Unfit: the keys of this call alone are the reason.
    """
    if isinstance(answer, Exception):
        text = str(answer)
        raise (Unfit if text.startswith(_UNFIT) else Untold)(text)
    if not isinstance(answer, list) or not answer or type(answer[0]) is not int or not 0 < answer[0] < 1 << 53:
        raise Untold(STRANGE)
    return answer[0] / 1e6


def key_of(kind: bytes, slot: str, period: Period | None = None) -> bytes:
    """The key of Redis' for one limit.

    :param slot: as :func:`flowstack.limits.plans.slot_name` has it.
    :param period: of money.
    """
    name, _, scope = slot.partition("\0")
    if kind == LOOK:
        kind = REQUEST
    label = b"" if period is None else b":%x" % period.label
    return b"flowstack:{%b}:%b:%b%b" % (name.encode("utf-8"), scope.encode("utf-8"), kind, label)


def ends_ms(period: Period) -> int:
    """When a period ends, in milliseconds since 1970; 0 for never."""
    return 0 if period.ends == float("inf") else int(period.ends * 1000)


def unfit_of(answer: list[Any]) -> str:
    """Take off an answer why something could not be done, as something else had its key; nothing where all was."""
    return answer.pop().decode("utf-8", "replace") if isinstance(answer[-1], bytes) else ""


def numbers_of(answer: list[Any], first: int, count: int) -> list[int]:
    """The numbers of an answer from one on.

    :raises Untold: there are not so many, or something else.
    """
    numbers = answer[first:]
    if len(numbers) != count or not _INT.issuperset(map(type, numbers)):
        raise Untold(STRANGE)
    return numbers


class Told:
    """A limit of which Redis tells.

    :ivar slot: the counters' name of it.
    :ivar period: of money.
    """

    __slots__ = ("key", "kind", "period", "slot")

    def __init__(self, kind: bytes, slot: str, period: Period | None) -> None:
        self.kind = kind
        self.slot = slot
        self.period = period
        self.key = key_of(kind, slot, period)


def told_of(name: str, limited: Key | Group | Limits, settings: Settings, now: float) -> list[Told]:
    """The limits that stand for a key or a group, whichever upstream's requests they count.

    :param name: the key's id, or of a group :func:`flowstack.limits.plans.group_slot`.
    :param now: UTC Unix seconds.
    """
    found = []
    for limit, bound in bounds_by_scope(limited, settings):
        period = period_at(bound.value.period, now) if isinstance(bound.value, Budget) else None
        found.append(Told(_KINDS[limit], slot_name(name, bound.scope), period))
    return found


def mirror(counters: Counters, some: Sequence[Told], dumps: Any, now: float) -> None:
    """Write what Redis told into counters of one worker.

    :param dumps: as ``look`` gives it.
    :param now: Redis' time then, in UTC Unix seconds.
    :raises Untold: it is something else.
    """
    if not isinstance(dumps, list) or len(dumps) != len(some):
        raise Untold(STRANGE)
    layout = counters.layout
    for told, dump in zip(some, dumps, strict=True):
        if not isinstance(dump, list):
            raise Untold(STRANGE)
        slot = counters.slot(told.slot)
        cells = counters.cells
        if told.kind == FLIGHT:
            (cells[slot + layout.parallel],) = numbers_of(dump, 0, 1)
        elif told.kind == MONEY:
            assert told.period is not None
            used, reset = numbers_of(dump, 0, 2)
            at = slot + layout.money
            cells[at + LATEST] = cells[at + SEEN] = told.period.label
            cells[at + USED] = used
            cells[at + layout.record + RESET] = reset
        else:
            newest, total, *ring = numbers_of(dump, 0, 2 + BUCKETS)
            at = slot + (layout.tpm if told.kind == TOKEN else layout.rpm)
            cells[at] = min(newest, bucket_of(now))
            cells[at + TOTAL] = total
            for number, amount in enumerate(ring):
                cells[at + RING + number] = amount
