"""Looks for rows in the journal, from the newest back: what ended last comes first.

The journal is the truth, holds all of a row, and is in order: a file's lines stand in the order in which requests
ended. So a place in it is a byte's offset in each file of a day, which no row that comes later moves. What is looked
for in vain is left out by the hours in which the index knows of no such row. Work is bounded by time, and goes on from
where it ended.
"""

from __future__ import annotations

import base64
import heapq
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import orjson
from attrs import field, frozen

from flowstack.errors import ParseError
from flowstack.files import open_regular
from flowstack.keys.patterns import Patterns, compiled
from flowstack.ledger.database import Database
from flowstack.ledger.files import Name, files
from flowstack.ledger.queries import ATTRIBUTE, Condition

SLACK = 3_600_000_000
"""Microseconds by which a request may go on beyond the time that is asked for, and still be found."""

_EARLY = 120_000_000
"""Microseconds by which a line may tell of an earlier end than the one before: rows that stand for several."""

_PASSED = 256
"""Lines that are passed over between two looks at the clock: some milliseconds' work."""

_BLOCK = 256 * 1024
_MAX_LINE = 1024 * 1024
_HOUR = 3_600_000_000
_DAY_CHARACTERS = len("2026-11-23")
ALWAYS = 1 << 62
"""When no more request begins."""

_ID_DIGITS = 32

_COLUMNS = {"key": "key_id", "error": "error_code"}
"""Where a field of the index is not called so in a row."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:@/+ -]+").fullmatch
"""What JSON writes as it is."""

Row = dict[str, Any]


@frozen(slots=True, kw_only=True)
class Filter:
    """What is looked for.

    :ivar where: as of a report.
    :ivar since: microseconds since 1970: the first beginning that counts.
    :ivar until: the first that no more counts.
    :ivar ids: the request's id, or the provider's, is one of these; empty for any.
    :ivar cost: US dollars, from and to; a row without a cost is in no such range.
    :ivar duration: milliseconds, from and to.
    """

    where: tuple[Condition, ...] = ()
    since: int = 0
    until: int = ALWAYS
    ids: tuple[str, ...] = ()
    cost: tuple[float | None, float | None] = (None, None)
    duration: tuple[float | None, float | None] = (None, None)
    _ready: tuple[tuple[str, bool, Patterns], ...] = field(init=False, eq=False, repr=False)

    @_ready.default
    def _make_ready(self) -> tuple[tuple[str, bool, Patterns], ...]:
        return tuple((one.field, "" in one.patterns, compiled(tuple(filter(None, one.patterns)))) for one in self.where)

    def fits(self, row: Row) -> bool:
        """Whether a row is looked for."""
        if self.ids and row["request_id"] not in self.ids and row.get("upstream_request_id") not in self.ids:
            return False
        if not _within(row.get("cost_usd"), self.cost) or not _within(row.get("duration_ms"), self.duration):
            return False
        for name, empty, patterns in self._ready:
            value = _value(row, name)
            if not (empty if value is None else patterns.fit(str(value))):
                return False
        return self.since <= _began(row) < self.until

    def needles(self) -> tuple[bytes, ...]:
        """Bytes that stand in each line that fits."""
        found = [self.ids[0]] if len(self.ids) == 1 else []
        found += [condition.patterns[0] for condition in self.where if len(condition.patterns) == 1]
        return tuple(word.encode("ascii") for word in found if _PLAIN(word))


@frozen(slots=True)
class Found:
    """What was found.

    :ivar rows: the latest end first.
    :ivar older: from where to look on, further back; None where nothing is left.
    :ivar newer: from where to look for what came since.
    :ivar searched_from: microseconds since 1970, down to which ends were looked at; None where none was.
    """

    rows: list[Row]
    older: str | None
    newer: str
    searched_from: int | None


Hours = Callable[[], Iterable[int] | None]
"""Gives the hours since 1970 in which rows that fit may have begun; None where that is not known."""


def older(
    journal: Path,
    wanted: Filter,
    limit: int,
    cursor: str | None,
    seconds: float,
    hours: Hours = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Look for rows from the newest back, or from where a cursor says.

    :param seconds: it may take, about.
    :raises ParseError: the cursor is none of ours.
    :raises OSError: the journal cannot be read.
    """
    end = clock() + seconds
    newer = _written({path.name: _whole_lines(path) for path in _last_day(files(journal))})
    begun = None if cursor is None else _read_cursor(cursor, 1)
    spans = _spans(wanted, hours())
    rows: list[Row] = []
    searched: int | None = None
    for day, paths in _days(files(journal)):
        if begun is not None and day > _day_of(begun):
            continue
        if _day(day) + 24 * _HOUR <= wanted.since:
            break
        at = {path.name: path.stat().st_size for path in paths if path.exists()}
        if begun is not None and day == _day_of(begun):
            at = {name: min(offset, at[name]) for name, offset in begun.items() if name in at}
        readers = [_back(journal / name, offset, spans, wanted) for name, offset in at.items()]
        for ended, name, offset, row in heapq.merge(*readers, key=lambda item: -item[0]):
            at[name] = offset
            if ended < ALWAYS:
                searched = ended
            if row is not None:
                rows.append(row)
            if len(rows) >= limit or clock() >= end:
                return Found(rows, _written(at), newer, searched)
    return Found(rows, None, newer, searched)


def newer(
    journal: Path,
    wanted: Filter,
    limit: int,
    cursor: str,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Look for rows that came since a cursor: the last ones, where they are more than ``limit``.

    :raises ParseError: the cursor is none of ours.
    :raises OSError: the journal cannot be read.
    """
    end = clock() + seconds
    at = _read_cursor(cursor, 2)
    latest: deque[tuple[int, Row]] = deque(maxlen=limit)
    needles = wanted.needles()
    first, reached = _day_of(at), dict(at)
    for path in files(journal):
        name = Name.of(path.name)
        if name is None or name.day < first:
            continue
        reached.setdefault(path.name, 0)
        for offset, line in _forward(path, reached[path.name]):
            reached[path.name] = offset
            row = _row(line, needles)
            if row is not None and wanted.fits(row):
                latest.append((_ended(row), row))
            if clock() >= end:
                break
    days = sorted({name[:_DAY_CHARACTERS] for name in reached})[-2:]  # at midnight some workers still write the old one
    kept = {name: offset for name, offset in reached.items() if name[:_DAY_CHARACTERS] in days}
    rows = [row for _, row in sorted(latest, key=lambda one: -one[0])]
    return Found(rows, None, _written(kept), None)


def row_of(journal: Path, request_id: str, began: int | None, seconds: float) -> Row | None:
    """One row, whole; None where the journal has it no more, or it was not found in time.

    :param began: microseconds since 1970, where the index knows.
    """
    since, until = (0, ALWAYS) if began is None else (began, began + 1)
    found = older(journal, Filter(ids=(request_id,), since=since, until=until), 1, None, seconds)
    if not found.rows and began is not None:  # it went on for longer
        found = older(journal, Filter(ids=(request_id,), since=since), 1, None, seconds)
    return found.rows[0] if found.rows else None


def began_of(connection: Database, request_id: str) -> int | None:
    """When a request began, in microseconds since 1970; None where the index does not know it.

    :raises sqlite3.Error: the index cannot be read.
    """
    try:
        key = bytes.fromhex(request_id) if len(request_id) == _ID_DIGITS else None
    except ValueError:
        key = None
    key = key or b"=" + request_id.encode()
    found = connection.execute("SELECT started_at FROM rows WHERE request_id = ?", (key,)).fetchone()
    return None if found is None else int(found[0])


# One file


def _back(
    path: Path, high: int, spans: Sequence[tuple[int, int]], wanted: Filter
) -> Iterator[tuple[int, str, int, Row | None]]:
    """Rows of a file that fit, from an offset back: when each ended, the file's name, the offset of its line, the row.

    Now and then there is no row, so that whoever gives up knows how far it was.
    """
    needles = wanted.needles()
    passed = 0
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return  # removed since it was seen
    try:
        last = ALWAYS
        for since, until in spans:
            top = high if until >= ALWAYS else min(_seek(file, until, high), high)
            bottom = 0 if since <= 0 else _seek(file, since, high)
            for offset, line in _lines_back(file, bottom, top, needles):
                row = None if line is None else _row(line, needles)
                fits = row is not None and wanted.fits(row)
                passed += 1
                if not fits and line is not None and passed % _PASSED:
                    continue
                if row is not None:
                    last = _ended(row)
                yield last, path.name, offset, row if fits else None
            high = min(high, bottom)
    finally:
        os.close(file)


def _lines_back(file: int, low: int, high: int, needles: Sequence[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Whole lines between two places, the last first; None for a block in which nothing can fit."""
    rest = b""
    while high > low:
        start = max(low, high - _BLOCK)
        data = os.pread(file, high - start, start) + rest
        high = start
        first = 0 if start <= low else data.find(b"\n") + 1
        if start > low and not first:
            rest = data if len(data) < _MAX_LINE else b""
            continue
        rest, body = data[:first], data[first:]
        base = start + first
        if not all(needle in body for needle in needles):
            yield base, None
            continue
        end = len(body)
        lines = body.split(b"\n")
        end -= len(lines.pop())  # what has no end yet
        for line in reversed(lines):
            end -= len(line) + 1
            yield base + end, line


def _forward(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines from an offset on, each with the offset behind it."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    try:
        rest = b""
        place = offset
        while block := os.pread(file, _BLOCK, place):
            place += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                offset += len(line) + 1
                yield offset, line
            if len(rest) > _MAX_LINE:
                return
    finally:
        os.close(file)


def _seek(file: int, when: int, high: int) -> int:
    """The offset of the first line that ended at a time or later, by halves."""
    low = 0
    while high - low > _BLOCK:
        middle = (low + high) // 2
        found = _line_from(file, middle, high)
        if found is None:
            high = middle
        elif found[1] < when:
            low = found[0]
        else:
            high = middle
    for start, ended in _ends(file, low, high + _BLOCK):
        if ended >= when:
            return start
        low = start
    return high


def _line_from(file: int, offset: int, high: int) -> tuple[int, int] | None:
    """The first line that begins behind an offset: where, and when it ended."""
    return next(iter(_ends(file, offset, high, skip=True)), None)


def _ends(file: int, low: int, high: int, skip: bool = False) -> Iterator[tuple[int, int]]:
    """Where lines begin, and when they ended.

    :param skip: whether the first one may have begun before.
    """
    data = os.pread(file, min(high - low, 2 * _BLOCK), low)
    start = data.find(b"\n") + 1 if skip else 0
    if skip and not start:
        return
    while (end := data.find(b"\n", start)) >= 0:
        row = _row(data[start:end], ())
        if row is not None:
            yield low + start, _ended(row)
        start = end + 1


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return 0
    try:
        size = os.fstat(file).st_size
        start = max(size - _MAX_LINE, 0)
        return start + os.pread(file, size - start, start).rfind(b"\n") + 1
    finally:
        os.close(file)


# Rows


def _row(line: bytes, needles: Sequence[bytes]) -> Row | None:
    for needle in needles:
        if needle not in line:
            return None
    try:
        row = orjson.loads(line)
    except ValueError:
        return None
    good = (
        type(row) is dict
        and type(row.get("request_id")) is str
        and type(row.get("started_at")) is str
        and type(row.get("duration_ms")) in (int, float)
    )
    return row if good else None


def _began(row: Row) -> int:
    """In microseconds since 1970; before that where it is no time."""
    try:
        return round(datetime.fromisoformat(row["started_at"]).timestamp() * 1e6)
    except ValueError:
        return -1


def _ended(row: Row) -> int:
    return _began(row) + int(row["duration_ms"] * 1000)


def _within(value: float | None, bounds: tuple[float | None, float | None]) -> bool:
    least, most = bounds
    if least is None and most is None:
        return True
    return value is not None and (least is None or value >= least) and (most is None or value <= most)


def _value(row: Row, name: str) -> Any:
    """What a row has in a field of reports."""
    if name.startswith(ATTRIBUTE):
        return (row.get("attributes") or {}).get(name.removeprefix(ATTRIBUTE))
    if name == "model":
        return row.get("model") or row.get("model_requested")
    return row.get(_COLUMNS.get(name, name))


# Where to look


def _spans(wanted: Filter, hours: Iterable[int] | None) -> list[tuple[int, int]]:
    """Times at which rows that fit may have ended, the latest first."""
    until = ALWAYS if wanted.until >= ALWAYS - SLACK else wanted.until + SLACK
    whole = (max(wanted.since - _EARLY, 0), until)
    if hours is None:
        return [whole]
    found: list[tuple[int, int]] = []
    for hour in sorted(set(hours), reverse=True):
        since, top = max(hour * _HOUR - _EARLY, whole[0]), min((hour + 1) * _HOUR + SLACK, until)
        if found and top >= found[-1][0]:
            found[-1] = since, found[-1][1]
        elif since < top:
            found.append((since, top))
    return found


def _days(paths: Iterable[Path]) -> list[tuple[str, list[Path]]]:
    """Files by their day, the latest first."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        name = Name.of(path.name)
        if name is not None:
            found.setdefault(name.day, []).append(path)
    return sorted(found.items(), reverse=True)


def _last_day(paths: Iterable[Path]) -> list[Path]:
    days = _days(paths)
    return days[0][1] if days else []


def _day(day: str) -> int:
    """A day's beginning, in microseconds since 1970."""
    try:
        return (date.fromisoformat(day) - date(1970, 1, 1)).days * 24 * _HOUR
    except ValueError:
        return ALWAYS


def _written(at: Mapping[str, int]) -> str:
    """A cursor: offsets in the files of one day."""
    return base64.urlsafe_b64encode(orjson.dumps(sorted(at.items()))).decode("ascii")


def _read_cursor(text: str, days: int) -> dict[str, int]:
    fault = ParseError("found no cursor, expected one of an answer before", key="cursor")
    try:
        pairs = orjson.loads(base64.urlsafe_b64decode(text.encode("ascii")))
        if not isinstance(pairs, list):
            raise fault
        found = {name: offset for name, offset in pairs}
    except (ValueError, TypeError):
        raise fault from None
    if not all(
        isinstance(name, str) and Name.of(name) and type(offset) is int and offset >= 0
        for name, offset in found.items()
    ) or len({name[:_DAY_CHARACTERS] for name in found}) > days:  # fmt: skip
        raise fault
    return found


def _day_of(at: Mapping[str, int]) -> str:
    return min(at, default="")[:_DAY_CHARACTERS]
