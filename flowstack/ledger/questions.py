"""What is asked of the ledger in words, and what it answers: the same for a command and for a page.

Words come from outside. A ParseError says what was found and what was expected, and in ``key`` which option it was:
``by``, ``where``, ``since``, ``until`` or ``sort``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from attrs import frozen

from flowstack.errors import ParseError
from flowstack.ledger.database import Database
from flowstack.ledger.formats import Entry, Gap, Gaps
from flowstack.ledger.intake import fitting, without_nul
from flowstack.ledger.moments import moment
from flowstack.ledger.queries import ATTRIBUTE, CLOCK, Condition, Line, Question, gaps, report, standing, total
from flowstack.ledger.schema import DIMENSIONS
from flowstack.tokens import hide_keys

FIELDS = (*DIMENSIONS, *CLOCK)
WHAT = f"{', '.join(FIELDS)} or {ATTRIBUTE}<name>"

COST = "cost_nano_usd"
SHORT = {"cost": COST, "cost_usd": COST, "tokens": "total_tokens", "latency": "duration_p95_ms"}
"""Shorter names of figures, to sort by."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONDITION = re.compile(rf"(?:{'|'.join(DIMENSIONS)}|{ATTRIBUTE}[^=,]+)=")


# What is asked


def question_of(
    by: str, where: Iterable[str], since: str | None, until: str | None, now: datetime, read: Callable[[str, str], str]
) -> Question:
    """Read a question.

    :param by: fields, with commas between.
    :param where: as of :func:`conditions`; likewise ``read``.
    :param since: a moment, see :func:`flowstack.ledger.moments.moment`; likewise ``until``.
    :raises ParseError: it is none.
    """
    question = Question(fields(by), conditions(where, read), _at("since", since, now), _at("until", until, now))
    if question.since is not None and question.until is not None and question.since >= question.until:
        raise ParseError(f"{until} is not after {since}, which --since says", key="until")
    return question


def fields(text: str) -> tuple[str, ...]:
    """Read what a report is to be grouped by.

    :raises ParseError: there is no such field.
    """
    _check_text(text, "by")
    found = tuple(dict.fromkeys(filter(None, (field.strip() for field in text.split(",")))))
    for field in found:
        if field not in FIELDS and not (field.startswith(ATTRIBUTE) and field != ATTRIBUTE):
            raise ParseError(f"found {field!r}, expected {WHAT}, with commas between", key="by")
    return tuple(_as_kept(field) for field in found)


def conditions(texts: Iterable[str], read: Callable[[str, str], str]) -> tuple[Condition, ...]:
    """Read conditions such as ``model=gpt-4o*,owner=alice``.

    :param read: takes a field and its pattern, and gives the pattern, or raises: there may be a key in it.
    :raises ParseError: it is no condition.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        _check_text(text, "where")
        # A comma may stand in a value: it ends one only where another condition begins.
        starts = [match.start() for match in _CONDITION.finditer(text) if _begins(text, match.start())]
        if not text.strip() or not starts or starts[0] != 0:
            raise ParseError(
                f"found {text!r}, expected conditions such as model=gpt-4o*,owner=alice, each on one of "
                f"{', '.join(DIMENSIONS)} or {ATTRIBUTE}<name>",
                key="where",
            )
        for start, end in zip(starts, [*starts[1:], len(text) + 1], strict=True):
            field, _, pattern = text[start : end - 1].partition("=")
            found.setdefault(_as_kept(field), []).append(without_nul(read(field, pattern)))
    return tuple(Condition(field, tuple(patterns)) for field, patterns in found.items())


def _check_text(text: str, key: str) -> None:
    """Refuse what no name in the ledger can be: bytes that were no UTF-8.

    :raises ParseError: it is that.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ParseError(f"found {text!r}, expected UTF-8", key=key)


def _as_kept(field: str) -> str:
    """The field's name as the ledger has it: attributes in lower case, without a key in them, and not endless."""
    if not field.startswith(ATTRIBUTE):
        return field
    return ATTRIBUTE + fitting(hide_keys(field.removeprefix(ATTRIBUTE).lower()))


def _begins(text: str, start: int) -> bool:
    return start == 0 or text[start - 1] == ","


def _at(key: str, text: str | None, now: datetime) -> int | None:
    try:
        return None if text is None else moment(text, now)
    except ValueError as error:
        raise ParseError(str(error), key=key) from None


# What is answered


@frozen(slots=True)
class Report:
    """The answer.

    :ivar lines: in order.
    :ivar total: of all of them.
    :ivar gaps: which models and endpoints lack a price or usage.
    :ivar damaged_lines: of the journal, which count nowhere.
    """

    question: Question
    lines: list[Line]
    total: Entry
    gaps: Gaps
    damaged_lines: int

    def entries(self, limit: int | None = None) -> list[Entry]:
        """The lines as they are shown: all, or the first ones."""
        return [_entry(line, self.question.by) for line in self.lines[:limit]]

    def about(self, limit: int | None, behind: int) -> dict[str, Any]:
        """What programs are told beside the figures.

        :param behind: bytes of the journal that are not in the index yet.
        """
        return {
            "since": shown(self.question.since),
            "until": shown(self.question.until),
            "where": where_shown(self.question),
            "left_out": 0 if limit is None else len(self.lines[limit:]),
            "journal_bytes_not_indexed": behind,
            "damaged_lines": self.damaged_lines,
        }


def answer(connection: Database, question: Question, sort: str | None = None, gaps: bool = True) -> Report:
    """Answer a question.

    :param sort: a field, ascending, or a figure, descending; None for the time, or else the cost.
    :param gaps: whether to look for what has no price or usage.
    :raises ParseError: there is nothing like that to sort by.
    :raises sqlite3.Error: the index cannot be read.
    """
    order = _order(question.by, sort)
    lines = report(connection, question)
    everything = Entry((), total(lines).figures())
    found = _gaps(connection, question, everything) if gaps else Gaps()
    for at in reversed(range(len(question.by))):
        _sort(lines, at)
    order(lines)
    return Report(question, lines, everything, found, standing(connection).bad_lines)


def _gaps(connection: Database, question: Question, everything: Entry) -> Gaps:
    """Which models and endpoints lack a price or usage; nothing is read where none does."""
    if not everything.figures["without_price"] and not everything.figures["without_usage"]:
        return Gaps()
    lines = gaps(connection, question)

    def of(figure: str) -> list[Gap]:
        found = []
        for line in lines:
            model, endpoint, reason = line.group
            if count := line.counts()[figure]:
                found.append(Gap(model, endpoint, reason, int(count)))
        return sorted(found, key=lambda gap: (-gap.rows, gap.of, gap.reason or ""))

    return Gaps(of("without_price"), of("without_usage"))


def _entry(line: Line, by: tuple[str, ...]) -> Entry:
    pairs = zip(by, line.group, strict=True)
    return Entry(tuple(_clock(field, value) if field in CLOCK else value for field, value in pairs), line.figures())


def _clock(field: str, hours: int) -> str:
    time = _EPOCH + timedelta(hours=hours)
    return time.strftime("%Y-%m-%d" if field == "day" else "%Y-%m-%dT%H:%MZ")


def _order(by: tuple[str, ...], sort: str | None) -> Callable[[list[Line]], None]:
    """What puts lines in order, those without the value that counts last; equal ones stay as they are."""
    if sort is None:
        sort = next((field for field in by if field in CLOCK), "cost_usd")
    if sort in by:
        return partial(_sort, at=by.index(sort))
    name = SHORT.get(sort, sort)
    names = Line().figures()
    if name not in names:
        known = ", ".join([*by, *(figure for figure in names if figure != COST), *SHORT])
        raise ParseError(f"found {sort!r}, expected one of {known}", key="sort")
    some = Line.counts if name in Line().counts() else Line.percentiles

    def place(line: Line) -> tuple[float, int]:
        value = some(line)[name]
        return (float("inf") if value is None else -value, -line.requests)

    return lambda lines: lines.sort(key=place)


def _sort(lines: list[Line], at: int) -> None:
    """Put lines in the order of one field of their group, those without it last."""
    ranks = {value: rank for rank, value in enumerate(sorted({line.group[at] for line in lines} - {None}))}
    lines.sort(key=lambda line: ranks.get(line.group[at], len(ranks)))


def where_shown(question: Question) -> list[str]:
    """The conditions as they were written, each alone."""
    return [hide_keys(f"{condition.field}={pattern}") for condition in question.where for pattern in condition.patterns]


def shown(microseconds: int | None) -> str | None:
    """Microseconds since 1970 as RFC 3339 has it."""
    if microseconds is None:
        return None
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")
