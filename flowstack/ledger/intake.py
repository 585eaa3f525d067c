"""From the journal's lines to the index's tables."""

from __future__ import annotations

import re
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from flowstack.ledger.cells import Cells, Figures, Place, figures, only
from flowstack.ledger.schema import COUNTS, DAY, DIMENSIONS, FIGURES, GAP, HOUR, PAIR, TIMES, column
from flowstack.memo import cut

MOST = 10**12
"""Tokens and microseconds above this are nobody's: a line that says so is no row, and sums stay within 64 bits."""

NANO = 10**9
MOST_NANO = 10**14

AT_ONCE = 1000
"""Rows that are inserted together."""

MOST_CELLS = 50_000
"""Sums that wait in memory, about."""

KEPT_WORDS = 50_000
"""Words, and sets of attributes, whose numbers are kept in memory, where they are of at most :data:`KEPT_SIZE`
characters."""

KEPT_SIZE = 256

MAX_WORD = 256
"""Characters of the longest word; a longer one is cut."""

OTHER = "(other)"
"""What stands for the words beyond these:"""

MOST_NEW = {"model": 1000, "endpoint": 100, "reason": 1000, "attribute": 100, "attribute:": 10_000}
"""How many names of models, paths, reasons (which name models), names of attributes and values of attributes each key
may bring on a day that were not there before. All other words are the operator's or Flowstack's own."""

_MOST_COUNTED = 10_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_COLUMNS = (
    "request_id", "started_at", *map(column, DIMENSIONS), "attributes", *GAP, *COUNTS, *FIGURES, *TIMES, "buckets",
)  # fmt: skip
_NULLABLE = {*FIGURES, *TIMES}
# To hand None, a bool or bytes to sqlite3 costs 1 µs each, as it looks for an adapter. So -1 stands for NULL, and a
# bytearray for bytes.
_MARKS = ", ".join("nullif(?, -1)" if name in _NULLABLE else "?" for name in _COLUMNS)
_VALUES = f"INTO rows ({', '.join(_COLUMNS)}) VALUES ({_MARKS})"

ASKED_FOR_USAGE = "asked_for_usage"
"""What stands for an error code where an upstream finds fault with a request (400, 422) in which Flowstack had asked
for usage: it may be that which the upstream does not know."""

_NO_MORE_SILENT = "UPDATE rows SET unmetered = 0, endpoint = 0, reason = 0 WHERE request_id = ? AND unmetered > 0"

CUT_SHORT, SILENT_STREAM = "cut", "stream"
"""Why an answer that was good told no usage: it did not come to its end; it was a stream, which tells none unless it is
asked to."""

_FAILED_ENDS = frozenset({"refused", "upstream_lost", "timeout", "drain"})

_METERED = frozenset({"upstream", "partial"})

_NO_GAP = (0, 0)
_NO_TIMES = (None, None, None)

_AN_ID = re.compile(r"(?<=/)(?!v[0-9]+(?:/|$))[^/]*[0-9][^/]*")
"""A segment of a path that may be an id. Without these there are few paths."""

_TO_SETTLE = (
    f"SELECT request_id, started_at, attributes, unmetered, {', '.join(map(column, DIMENSIONS))} FROM settled "
    "JOIN rows USING (request_id)"
)


class Intake:
    """Turns lines into rows, and stores these with their sums. The caller holds the transaction.

    :ivar count: lines taken in this transaction.
    :ivar last_row: when the youngest of them had begun, in microseconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._waiting: list[tuple[tuple[Any, ...], Place, Figures]] = []
        self._cells = Cells()
        self._new = 0
        self._kept = 0
        self._words: defaultdict[str, dict[str | None, int]] = defaultdict(_none)
        self._pairs: dict[tuple[tuple[str, str], ...], bytes] = {}
        self._parents: dict[bytes, bytearray] = {}  # of rows that wait: by the row's id, the request that it settles
        self._brought: dict[tuple[str, int, int], int] = {}  # new words, by their kind, day and key
        self._bringer = (0, 0)  # day and key of the row at hand
        self._over = False  # whether a word of it was one too many
        self.count = 0
        self.last_row: int | None = None

    @property
    def full(self) -> bool:
        """Whether it is time to end the transaction."""
        return len(self._cells) >= MOST_CELLS

    def forget(self) -> None:
        """The transaction was rolled back: what it would have brought is not there."""
        self._words.clear()
        self._pairs.clear()
        self._brought.clear()
        self._reset()

    def _reset(self) -> None:
        self._waiting = []
        self._parents.clear()
        self._cells.clear()
        self._new = self.count = 0
        self.last_row = None

    def add(self, row: dict[str, Any]) -> None:
        """Take one line of the journal.

        :param row: as :func:`flowstack.ledger.reader.read` gives it.
        :raises ValueError: it is no row.
        :raises sqlite3.Error: the database cannot be written.
        """
        try:
            self._add(row)
        except (KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
            raise ValueError(f"no row: {error!r}") from None
        self.count += 1
        if len(self._waiting) >= AT_ONCE:
            self._insert()

    def store(self) -> int:
        """Store what is not yet stored, and begin anew.

        :return: how many rows were new.
        """
        self._insert()
        self._cells.store(self._connection)
        self._settle()
        new = self._new
        self._reset()
        return new

    def _add(self, row: dict[str, Any]) -> None:
        get = row.get
        word = self._word
        status, end, cost, requests = get("status"), row["end"], get("cost_usd"), get("requests", 1)
        source = get("usage_source")
        metered = source in _METERED
        failed = 1 if end in _FAILED_ENDS or (status is not None and status >= 400) else 0
        answered = status is not None and 200 <= status < 300
        unmetered = 1 if answered and not metered and cost is None and get("method") == "POST" else 0
        unpriced = 1 if metered and cost is None else 0
        prompt, cached, completion = get("prompt_tokens"), get("cached_tokens"), get("completion_tokens")
        reasoning, total, written = get("reasoning_tokens"), get("total_tokens"), get("cache_write_tokens")
        if total is None and prompt is not None and completion is not None:
            total = prompt + completion
        nano = None if cost is None else round(float(cost) * NANO)
        stands_for = requests or 1
        counts = (
            requests,
            requests * failed,
            requests * unmetered,
            stands_for * unpriced,
            stands_for if source == "partial" else 0,
        )
        sums = (
            *counts,
            0 if prompt is None else prompt, prompt is not None,
            0 if cached is None else cached, cached is not None,
            0 if written is None else written, written is not None,
            0 if completion is None else completion, completion is not None,
            0 if reasoning is None else reasoning, reasoning is not None,
            0 if total is None else total, total is not None,
            0 if nano is None else nano, nano is not None,
        )  # fmt: skip
        took = _microseconds(row["duration_ms"])
        times = (
            # of several requests it is a mean, and of none it is none
            (_microseconds(get("first_byte_ms")), took, _microseconds(get("overhead_ms")))
            if requests == 1
            else _NO_TIMES
        )
        if max(sums[:-2]) > MOST or sums[-2] > MOST_NANO or (status is not None and not 0 < status < 1000):
            raise ValueError("a figure that cannot be")
        parent: str = get("parent_request_id", "")
        if type(requests) is not int or requests < (0 if parent else 1):
            raise ValueError(f"found {requests!r} requests, expected a whole number from 1 up, or 0 with a parent")
        started_at = (_aware(datetime.fromisoformat(row["started_at"])) - _EPOCH) // _MICROSECOND
        if started_at < 0:
            raise ValueError("it began before 1970")
        key = word("key", row["key_id"])
        self._bringer = started_at // (DAY * HOUR), key
        attributes = get("attributes")
        pairs = self._numbered(attributes) if attributes else b""
        dimensions = (
            key,
            word("owner", get("owner")),
            word("model", get("model") or get("model_requested")),
            word("upstream", get("upstream")),
            0 if status is None else int(status),
            word("end", end),
            word("error", get("error_code") or _fault_with_usage(get, status)),
            word("group", get("group")),
        )
        gap = self._gap(get, dimensions[2], unpriced) if unpriced or counts[2] else _NO_GAP
        row_figures = figures(sums, times)
        request_id = _request_id(row["request_id"])
        columns = (
            request_id, started_at, *dimensions, bytearray(pairs), *gap, *counts,
            -1 if prompt is None else prompt,
            -1 if cached is None else cached,
            -1 if written is None else written,
            -1 if completion is None else completion,
            -1 if reasoning is None else reasoning,
            -1 if total is None else total,
            -1 if nano is None else nano,
            *[-1 if time is None else time for time in times],
            bytearray(row_figures[1]),
        )  # fmt: skip
        if not requests and metered:
            self._parents[bytes(request_id)] = _request_id(parent)
        self._waiting.append((columns, (started_at // HOUR, pairs, dimensions), row_figures))
        if self.last_row is None or started_at > self.last_row:
            self.last_row = started_at

    def _gap(self, get: Callable[[str], Any], model: int, unpriced: int) -> tuple[int, int]:
        """The endpoint, where there is no model, and why there is no price, or no usage."""
        if unpriced:
            why = get("unpriced")
        else:
            why = CUT_SHORT if get("end") != "complete" else SILENT_STREAM if get("stream") else None
        path = None if model else get("path")
        return (
            self._word("endpoint", None if path is None else _AN_ID.sub("*", path)),
            self._word("reason", why),
        )

    def _word(self, kind: str, word: str | None) -> int:
        try:
            return self._words[kind][word]
        except KeyError:
            return self._new_word(kind, word)

    def _new_word(self, kind: str, word: Any) -> int:
        if not isinstance(word, str):
            raise TypeError(f"{kind} is no text")
        text = cut(word, MAX_WORD)
        execute = self._connection.execute
        found = execute("SELECT id FROM words WHERE kind = ? AND word = ?", (kind, text)).fetchone()
        if found is None:
            if text != OTHER and not self._may_bring(kind):
                self._over = True
                return self._word(kind, OTHER)  # and not remembered: on another day there is room
            insert = "INSERT INTO words (kind, word, day, key) VALUES (?, ?, ?, ?)"
            found = (execute(insert, (kind, text, *self._bringer)).lastrowid,)
        if len(word) <= KEPT_SIZE:
            self._kept += 1
            if self._kept > KEPT_WORDS:
                self._words.clear()
                self._kept = 1
            self._words[kind][word] = found[0]
        return int(found[0])

    def _may_bring(self, kind: str) -> bool:
        """Count a word that was not there before; say whether the row's key may still bring one on its day."""
        group = "attribute:" if kind.startswith("attribute:") else kind
        most = MOST_NEW.get(group)
        if most is None:
            return True
        place = (group, *self._bringer)
        count = self._brought.get(place)
        if count is None:
            kinds = "kind > ? AND kind < 'attribute;'" if group == "attribute:" else "kind = ?"
            query = f"SELECT count(*) FROM words WHERE day = ? AND key = ? AND {kinds}"
            (count,) = self._connection.execute(query, (*self._bringer, group)).fetchone()
            if len(self._brought) >= _MOST_COUNTED:
                self._brought.clear()
        self._brought[place] = count + 1
        return bool(count < most)

    def _numbered(self, attributes: dict[str, str]) -> bytes:
        items = tuple(attributes.items())
        pairs = self._pairs.get(items)
        if pairs is not None:
            return pairs
        numbers: dict[int, int] = {}
        over = False
        for name, value in items:
            self._over = False
            number = self._word("attribute", name)
            kept = (OTHER, OTHER) if self._over else (cut(name, MAX_WORD), value)
            numbers[number] = self._word(f"attribute:{kept[0]}", kept[1])
            over = over or self._over
        pairs = b"".join(PAIR.pack(*pair) for pair in sorted(numbers.items()))
        if not over and sum(len(name) + len(value) for name, value in items) <= KEPT_SIZE:
            if len(self._pairs) >= KEPT_WORDS:
                self._pairs.clear()
            self._pairs[items] = pairs
        return pairs

    def _insert(self) -> None:
        """Store the rows that wait, but for those that are there already."""
        execute = self._connection.execute
        new, self._waiting = self._waiting, []
        execute("SAVEPOINT rows")
        try:
            self._connection.executemany(f"INSERT {_VALUES}", (row for row, _, _ in new))
        except sqlite3.IntegrityError:  # at least one is there already: see which, one by one
            execute("ROLLBACK TO rows")
            new = [one for one in new if execute(f"INSERT OR IGNORE {_VALUES}", one[0]).rowcount]
        execute("RELEASE rows")
        if self._parents:
            ids = [bytes(row[0]) for row, _, _ in new]
            parents = [(self._parents[one],) for one in ids if one in self._parents]
            self._connection.executemany("INSERT OR IGNORE INTO settled (request_id) VALUES (?)", parents)
            self._parents.clear()
        self._new += len(new)
        for _, place, sums in new:
            self._cells.add(place, sums)

    def _settle(self) -> None:
        """A request whose usage a later row tells is no more without, wherever it was counted so."""
        execute = self._connection.execute
        found = execute(_TO_SETTLE).fetchall()
        if not found:
            return
        settled = Cells()
        for _, started_at, attributes, unmetered, *dimensions in found:
            if unmetered:
                settled.add((started_at // HOUR, attributes, tuple(dimensions)), only(unmetered=unmetered))
        settled.store(self._connection, take_out=True)
        ids = [(bytearray(row[0]),) for row in found]
        executemany = self._connection.executemany
        executemany(_NO_MORE_SILENT, ids)
        executemany("DELETE FROM settled WHERE request_id = ?", ids)


def _fault_with_usage(get: Callable[[str], Any], status: int | None) -> str | None:
    return ASKED_FOR_USAGE if status in (400, 422) and get("usage_asked_by") == "flowstack" else None


def _none() -> dict[str | None, int]:
    return {None: 0}


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _request_id(text: str) -> bytearray:
    """The id's 16 bytes, or the text of one that is not ours."""
    if len(text) == 32:
        try:
            return bytearray.fromhex(text)
        except ValueError:
            pass
    return bytearray(b"=" + text.encode())


def _microseconds(milliseconds: float | None) -> int | None:
    if milliseconds is None:
        return None
    time = int(float(milliseconds) * 1000 + 0.5)
    if not 0 <= time <= MOST:
        raise ValueError(f"found {milliseconds} ms, expected from 0 to {MOST // 1000}")
    return time
