"""From a machine's journal to the ledger in PostgreSQL.

The journal is the queue. Its rows go in batches, in order; the place that is reached in each file stands in PostgreSQL,
and changes in the same transaction. Whoever sends a row that is there already, as another machine had the same file, or
a commit's answer was lost, adds nothing: a row is known by its id and beginning.

Several machines send at once. None waits for another, but where both send the same rows; as all insert in the order of
ids, no two of them wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import orjson
from attrs import evolve, frozen
from twisted.logger import Logger

from flowstack.ledger.database import Unavailable
from flowstack.ledger.files import files
from flowstack.ledger.index import Taken, changed
from flowstack.ledger.migrate import LOCK
from flowstack.ledger.postgres import Misfit, Postgres
from flowstack.util import Throttle

log = Logger()

BATCH_ROWS: Final = 10_000
"""Rows in one transaction, at most."""

COUNTED_BYTES: Final = 1600
"""A row that is so many times longer counts as so many rows, so that a batch is bounded in bytes."""

MAX_ID: Final = 200
"""Characters of the longest id, which is a key in PostgreSQL."""

_LARGEST: Final = 2**63 - 1


def _text(value: Any) -> str | None:
    return value.replace("\0", "\ufffd") if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and -_LARGEST <= value <= _LARGEST else None


def _number(value: Any) -> float | int | None:
    return value if type(value) is float or type(value) is int else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _attributes(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    return orjson.dumps({str(_text(name)): _text(one) for name, one in value.items()}).decode()


_OF: Final[dict[Callable[[Any], Any], set[type]]] = {_text: {str}, _whole: {int}, _number: {int, float}, _flag: {bool}}
"""The kinds that these readers give as they are, unless a number is too large, or a text has a NUL."""


COLUMNS: Final[dict[str, Callable[[Any], Any]]] = {
    "node": _text, "owner": _text, "group": _text, "attributes": _attributes, "client_addr": _text,
    "user_agent": _text, "method": _text, "path": _text, "model_requested": _text, "model": _text,
    "service_tier": _text, "status": _whole, "error_code": _text, "end": _text, "stream": _flag,
    "prompt_tokens": _whole, "cached_tokens": _whole, "cache_write_tokens": _whole, "completion_tokens": _whole,
    "reasoning_tokens": _whole, "total_tokens": _whole, "usage_source": _text, "cost_usd": _number, "unpriced": _text,
    "first_byte_ms": _number, "duration_ms": _number, "overhead_ms": _number, "bytes_in": _whole, "bytes_out": _whole,
    "upstream": _text, "upstream_request_id": _text, "attempts": _whole, "parent_request_id": _text,
    "requests": _whole,
}  # fmt: skip
"""The fields of a row that have columns, with what makes a value of theirs: NULL where it is of another kind, as it
then stands in the whole row alone."""

_SEVERAL: Final = ("attributes", "requests")
"""Those that are read by themselves: an object, and what few rows have."""

_PLAIN: Final = tuple((name, read) for name, read in COLUMNS.items() if name not in _SEVERAL)
_plain = itemgetter(*(name for name, _ in _PLAIN))
_wholes = itemgetter(*(at for at, (_, read) in enumerate(_PLAIN) if read is _whole))
_FIT: Final = [{*_OF[read], type(None)} for _, read in _PLAIN]
_ORDER: Final = ("request_id", "started_at", "key_id", "row", *_SEVERAL, *(name for name, _ in _PLAIN))
_NAMES: Final = ", ".join(f'"{name}"' for name in _ORDER)
_MOST_KINDS: Final = 1000
_STAGING: Final = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS staging AS "
    f"SELECT {_NAMES}, batch FROM ledger WITH NO DATA"
)  # fmt: skip
_STAGE: Final = f"COPY staging ({_NAMES}, batch) FROM STDIN"
_COPY: Final = f"COPY ledger ({_NAMES}, batch) FROM STDIN"
_SETTLE: Final = (
    "INSERT INTO settlements SELECT DISTINCT ON (request_id) request_id, started_at FROM staging WHERE requests = 0 "
    "ORDER BY request_id, started_at ON CONFLICT DO NOTHING"
)
_INSERT: Final = (
    f"INSERT INTO ledger ({_NAMES}, batch) SELECT {_NAMES}, batch FROM staging WHERE requests IS DISTINCT FROM 0 "
    "OR EXISTS (SELECT FROM settlements WHERE settlements.request_id = staging.request_id "
    "AND settlements.started_at = staging.started_at) ORDER BY request_id, started_at ON CONFLICT DO NOTHING"
)
_BATCH: Final = "INSERT INTO batches (id, node, rows, bytes, since, until) VALUES (?, ?, ?, ?, ?, ?)"
_PLACE: Final = (
    "INSERT INTO files (node, name, taken, seal, bad) VALUES (?, ?, ?, ?, ?) ON CONFLICT (node, name) DO UPDATE SET "
    "taken = excluded.taken, seal = excluded.seal, bad = excluded.bad, seen = CURRENT_DATE"
)
_UNFIT: Final = "INSERT INTO unfit (node, file, why, line) VALUES (?, ?, ?, ?)"

LOG_SECONDS: Final = 60.0
"""Between two times that it is logged that rows are left out."""


class Batch:
    """Rows that go in one transaction.

    :param number: of the batch.
    :param keep_back: whether rows that settle earlier work are not sent, as it is to be looked whether they are there.
    :ivar send: takes each row's values.
    :ivar rows: how many there are.
    :ivar kept_back: the values of those rows.
    :ivar last: the last one's line.
    :ivar months: in which they began, as the first day of each.
    """

    def __init__(self, number: int, keep_back: bool) -> None:
        self.number = number
        self.send: Callable[[Sequence[Any]], None]
        self.kept_back: list[Sequence[Any]] = []
        self._keep_back = keep_back
        self.last = b""
        self._kinds: dict[tuple[type, ...], bool] = {}  # of a row's values, whether they are as they should be
        self._months: set[tuple[int, int]] = set()
        self.rows = self.bytes = 0
        self.since = self.until = datetime.fromtimestamp(0, UTC)

    @property
    def count(self) -> int:
        """How many rows it holds, or what their bytes come to."""
        return max(self.rows, self.bytes // COUNTED_BYTES)

    @property
    def months(self) -> set[datetime]:
        """See above."""
        return {datetime(year, month, 1, tzinfo=UTC) for year, month in self._months}

    def add(self, line: bytes) -> None:
        """Take a line of the journal.

        :raises ValueError: it is no row.
        """
        row = orjson.loads(line)
        if not isinstance(row, dict):
            raise ValueError("no row: it is no object")
        get = row.get
        request_id, key_id, began = get("request_id"), get("key_id"), get("started_at")
        if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_ID or not isinstance(key_id, str):
            raise ValueError("no row: it tells no id, or no key")
        if not isinstance(began, str):
            raise ValueError("no row: it tells no beginning")
        at = datetime.fromisoformat(began)
        if at.tzinfo is not UTC:
            try:
                at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
            except OverflowError:
                raise ValueError("no row: it began beyond all years") from None
        if at.year < 1970:
            raise ValueError("no row: it began before 1970")
        requests = _whole(get("requests"))
        values = (
            _text(request_id), at, _text(key_id), line.decode(), _attributes(get("attributes")), requests,
            *self._values(row, line), self.number,
        )  # fmt: skip
        if requests == 0 and self._keep_back:
            self.kept_back.append(values)
        else:
            self.send(values)
        self._months.add((at.year, at.month))
        if not self.rows:
            self.since = self.until = at
        elif at < self.since:
            self.since = at
        elif at > self.until:
            self.until = at
        self.rows += 1
        self.bytes += len(line)
        self.last = line

    def _values(self, row: dict[str, Any], line: bytes) -> Sequence[Any]:
        """Those of the plain columns: mostly they are as they should be."""
        try:
            values: tuple[Any, ...] = _plain(row)
        except KeyError:  # of an earlier version
            pass
        else:
            kinds = tuple(map(type, values))
            fit = self._kinds.get(kinds)
            if fit is None:
                fit = all(kind in fitting for kind, fitting in zip(kinds, _FIT, strict=True))
                if len(self._kinds) < _MOST_KINDS:
                    self._kinds[kinds] = fit
            if fit and b"\\u0000" not in line and max(filter(None, _wholes(values)), default=0) <= _LARGEST:
                return values
        return [read(row.get(name)) for name, read in _PLAIN]


@frozen(slots=True)
class Shipped:
    """What :meth:`Shipping.ship` did, and what is left.

    :ivar rows: of them were new there.
    :ivar bad_lines: found now, and left out.
    :ivar behind: bytes of the journal that are still to go, without torn lines.
    """

    rows: int = 0
    bad_lines: int = 0
    behind: int = 0


class Shipping:
    """Sends one machine's rows over one connection.

    :param node: what the machine is called: its places are kept under this name.
    :raises Unavailable: PostgreSQL cannot be used.
    """

    def __init__(self, database: Postgres, journal: Path, node: str) -> None:
        self._database = database
        self._journal = journal
        self._node = node
        places = database.execute("SELECT name, taken, seal, bad FROM files WHERE node = ?", (node,))
        self._files = {row[0]: Taken(*row) for row in places if _is_there(journal, Taken(*row))}
        self._torn: dict[str, int] = {}
        self._months: set[datetime] = set()  # whose partitions are there
        self._most = BATCH_ROWS
        self._straight = False  # whether the next rows are taken to be new, and fit
        self._throttle = Throttle(time.monotonic, LOG_SECONDS)
        database.execute(_STAGING)

    def done(self) -> dict[str, int]:
        """The size up to which all that is whole in a file is in PostgreSQL, by the file's name.

        :raises OSError: the journal's directory cannot be read.
        """
        there = [self._files[path.name] for path in files(self._journal) if path.name in self._files]
        return {file.name: self._torn.get(file.name, file.taken) for file in there}

    def ship(self) -> Shipped:
        """Send the next batch.

        :raises Unavailable: PostgreSQL cannot be used now. Nothing is lost: begin anew with another connection.
        :raises OSError: the journal's directory cannot be read.
        """
        left = changed(self._journal, {file.name: file.taken for file in self._files.values()}, self._torn)
        if not left:
            return Shipped()
        behind = sum(size for _, size in left.values())
        (number,) = self._database.execute("SELECT nextval('batch_ids')").fetchone()
        batch = Batch(number, self._straight)
        read: list[Taken] = []
        try:
            rows, bad = (self._send if self._straight else self._bring)(batch, left, read)
        except Misfit as error:
            if self._straight:
                self._straight = False
                return Shipped(behind=behind)
            return Shipped(bad_lines=self._narrow(batch, read, str(error)), behind=behind)
        # Where some were there already, others will be.
        self._straight = rows == batch.rows and self._most == BATCH_ROWS
        self._most = min(2 * self._most, BATCH_ROWS)
        self._note(read)
        left = changed(self._journal, {file.name: file.taken for file in self._files.values()}, self._torn)
        return Shipped(rows, bad, sum(size for _, size in left.values()))

    def _send(self, batch: Batch, left: Mapping[str, tuple[int, int]], read: list[Taken]) -> tuple[int, int]:
        """Copy rows into the ledger, which is half the work of :meth:`_bring`. It fails if one is there already, or its
        month is not.

        :return: how many rows were new, and how many lines are no rows.
        """
        database = self._database
        with database.transaction():
            bad = self._copy(_COPY, batch, left, read)
            rows = batch.rows - len(batch.kept_back)
            if batch.kept_back:
                database.execute("TRUNCATE staging")
                with database.copying(_STAGE) as send:
                    for values in batch.kept_back:
                        send(values)
                rows += self._insert()
            self._keep(batch, rows, read)
        return rows, bad

    def _bring(self, batch: Batch, left: Mapping[str, tuple[int, int]], read: list[Taken]) -> tuple[int, int]:
        """Copy rows to where they can be looked at, and bring those that are new from there, in the order of ids.

        :return: as of :meth:`_send`.
        """
        database = self._database
        database.execute("TRUNCATE staging")
        bad = self._copy(_STAGE, batch, left, read)
        make_partitions(database, batch.months - self._months)
        with database.transaction():
            rows = self._insert()
            self._keep(batch, rows, read)
        self._months |= batch.months
        return rows, bad

    def _copy(self, sql: str, batch: Batch, left: Mapping[str, tuple[int, int]], read: list[Taken]) -> int:
        """What is read goes out at once, so that PostgreSQL takes it in while more is read.

        :return: how many lines are no rows.
        """
        bad = 0
        with self._database.copying(sql) as batch.send:
            for file, more in self._read(left, batch):
                read.append(file)
                bad += more
        return bad

    def _read(self, left: Mapping[str, tuple[int, int]], batch: Batch) -> Iterator[tuple[Taken, int]]:
        """Put into a batch what files have: how far each then is, and how many of its lines were no rows.

        :param left: the files' names and sizes.
        """
        for name, (size, _) in left.items():
            if batch.count >= self._most:
                break
            before = self._files.get(name) or Taken(name)
            file = evolve(before, torn=0)
            try:
                file.read(self._journal, size, batch, self._most)
            except FileNotFoundError:
                continue  # removed since it was seen; what was sent of it stays
            except OSError as error:
                log.error("left out the journal file {name}: {error}", name=name, error=str(error))
                file.torn = size
            if file.taken < before.taken:
                log.warn(
                    "the journal file {name} is another than the one that was sent, and is sent from its beginning. If "
                    "that goes on, another machine has this one's name, {node}", name=name, node=self._node,
                )  # fmt: skip
            yield file, file.bad - before.bad

    def _note(self, read: list[Taken]) -> None:
        for file in read:
            self._files[file.name] = file
            self._torn.pop(file.name, None)
            if file.torn:
                self._torn[file.name] = file.torn

    def _narrow(self, batch: Batch, read: list[Taken], why: str) -> int:
        """A row does not fit: look for it in ever smaller batches. Alone it is put aside: it would stop all others.

        :return: how many were put aside.
        """
        known, self._months = self._months, set()
        if known & batch.months:
            return 0  # first it may be that a partition was dropped
        if batch.rows > 1:
            self._most = max(1, min(self._most, batch.rows) // 2)
            return 0
        file = read[-1]
        file.bad += 1
        with self._database.transaction():
            self._database.execute(_UNFIT, (self._node, file.name, why, batch.last))
            self._keep_places(read)
        self._note(read)
        if self._throttle.ready(why):
            log.error(
                "PostgreSQL does not take a row of {name}, which is now in its table unfit, and in no report: {why}",
                name=file.name, why=why,
            )  # fmt: skip
        return 1

    def _insert(self) -> int:
        """Bring the rows from where they were copied to.

        :return: how many were new.
        """
        self._database.execute(_SETTLE)
        return self._database.execute(_INSERT).rowcount

    def _keep(self, batch: Batch, rows: int, read: list[Taken]) -> None:
        """Keep what is to be added up, and the places up to which the files then are."""
        if rows:
            self._database.execute(_BATCH, (batch.number, self._node, rows, batch.bytes, batch.since, batch.until))
        self._keep_places(read)

    def _keep_places(self, read: list[Taken]) -> None:
        for file in read:
            self._database.execute(_PLACE, (self._node, file.name, file.taken, file.seal, file.bad))


def _is_there(journal: Path, file: Taken) -> bool:
    """Whether a file is the one that was sent, and not one of the same name, perhaps another machine's."""
    try:
        return file.is_of(journal / file.name)
    except OSError:
        return False


def partition(month: datetime) -> str:
    """The name of a month's partition."""
    return f"ledger_{month.year:04d}_{month.month:02d}"


def make_partitions(database: Postgres, months: set[datetime]) -> None:
    """Make the partitions of months, given by their first days, where they are missing.

    They are attached: to make them as partitions would hold up whoever inserts.

    :raises Unavailable: they cannot be made.
    """
    for month in sorted(months):
        name = partition(month)
        if _has_partition(database, name):
            continue
        until = f"'{following(month).isoformat()}'" if month < _LAST_MONTH else "MAXVALUE"
        with database.transaction():
            database.execute("SELECT pg_advisory_xact_lock(?)", (LOCK,))
            if not _has_partition(database, name):
                if database.has_table(name):
                    raise Unavailable(
                        f"PostgreSQL at {database.place}: found the table {name}, which is no partition of ledger, "
                        "expected none of that name: rename it, or attach it again"
                    )
                database.execute(f"CREATE TABLE {name} (LIKE ledger INCLUDING ALL)")
                database.execute(
                    f"ALTER TABLE ledger ATTACH PARTITION {name} FOR VALUES FROM ('{month.isoformat()}') TO ({until})"
                )


def _has_partition(database: Postgres, name: str) -> bool:
    return database.execute(_PARTITION, (name,)).fetchone() is not None


_PARTITION: Final = (
    "SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
    "WHERE inhparent = 'ledger'::regclass AND NOT inhdetachpending AND relname = ?"
)
_LAST_MONTH: Final = datetime(9999, 12, 1, tzinfo=UTC)


def following(month: datetime) -> datetime:
    """The first day of the month after."""
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
