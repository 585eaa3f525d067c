"""From the journal's lines to the index's tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from flowstack.http.names import OWN_PREFIX
from flowstack.ledger.combinations import Combinations
from flowstack.ledger.database import Database
from flowstack.ledger.histogram import code
from flowstack.ledger.rollup import roll_up, settle, waiting
from flowstack.ledger.schema import DAY, FIGURES, HOUR, ROW, TOLD, columns
from flowstack.memo import cut

MOST = 10**12
"""Tokens and microseconds above this are nobody's: a line that says so is no row, and sums stay within 64 bits."""

NANO = 10**9
MOST_NANO = 10**14

AT_ONCE = 1000
"""Rows that are inserted together."""

MANY = 20_000
"""Rows that wait before they are rolled up; reports read these one by one."""

MANY_BEHIND = 100_000
"""The same while more of the journal is to be read: the more there are, the less each costs."""

KEPT_WORDS = 50_000
"""Words, and combinations of what tells rows apart, whose numbers are kept in memory."""

KEPT_SIZE = 256
"""Characters of the longest word that is kept; a combination may have four times as many."""

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

_SECOND = len("2026-11-23T07:30:00.")
_MOMENT = len("2026-11-23T07:30:00.000000Z")

# To hand None, a bool or bytes to sqlite3 costs 1 µs each, as it looks for an adapter. So -1 stands for NULL, and a
# bytearray for bytes.
_MARKS = ", ".join("NULLIF(?, -1)" if name in FIGURES else "?" for name in ROW)
_INSERT = f"INSERT INTO rows ({columns(*ROW)}) VALUES ({_MARKS}) ON CONFLICT (request_id) DO NOTHING"

ASKED_FOR_USAGE = "asked_for_usage"
"""What stands for an error code where an upstream finds fault with a request (400, 422) in which Flowstack had asked
for usage: it may be that which the upstream does not know."""

CUT_SHORT, SILENT_STREAM = "cut", "stream"
"""Why an answer that was good told no usage: it did not come to its end; it was a stream, which tells none unless it is
asked to."""

_FAILED_ENDS = frozenset({"refused", "upstream_lost", "timeout", "drain"})

_METERED = frozenset({"upstream", "partial"})

_AN_ID = re.compile(r"(?<=/)(?!v[0-9]+(?:/|$))[^/]*[0-9][^/]*")
"""A segment of a path that may be an id. Without these there are few paths."""

_OWN = OWN_PREFIX.decode("ascii")
"""What Flowstack itself answers is below this path."""


class Intake:
    """Turns lines into rows, and stores these. The caller holds the transaction.

    :ivar count: lines taken in this transaction.
    :ivar last_row: when the youngest of them had begun, in microseconds since 1970.
    """

    def __init__(self, connection: Database) -> None:
        self._connection = connection
        self._rows: list[tuple[Any, ...]] = []  # to be inserted
        self._settled: list[tuple[bytearray]] = []  # requests whose usage these rows tell
        self._new = 0
        self._kept = 0
        self._words: defaultdict[str, dict[str | None, int]] = defaultdict(_none)
        self._dims: dict[tuple[Any, ...], int] = {}
        self._combinations = Combinations(connection)
        self._brought: dict[tuple[str, int, int], int] = {}  # new words, by their kind, day and key
        self._bringer = (0, 0)  # day and key of the row that is read
        self._over = False  # whether a word of it was one too many
        self._second = ("?", 0)  # the last one seen, and its microseconds since 1970
        self.count = 0
        self.last_row: int | None = None

    def forget(self) -> None:
        """The transaction was rolled back: what it would have brought is not there."""
        self._words.clear()
        self._dims.clear()
        self._combinations.forget()
        self._brought.clear()
        self._reset()

    def _reset(self) -> None:
        self._rows.clear()
        self._settled.clear()
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
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no row: {error!r}") from None
        self.count += 1
        if len(self._rows) >= AT_ONCE:
            self._insert()

    def store(self, behind: bool) -> int:
        """Store what is not yet stored, roll up what waits if it is much, and begin anew.

        :param behind: whether the journal has more.
        :return: how many rows were new.
        """
        self._insert()
        settle(self._connection)
        if waiting(self._connection) >= (MANY_BEHIND if behind else MANY):
            roll_up(self._connection)
        new = self._new
        self._reset()
        return new

    def _add(self, row: dict[str, Any]) -> None:
        get = row.get
        if get("upstream") is None and (get("path") or "").startswith(_OWN):
            return  # its holder asked what the key used: that is no use of it
        status, end, cost, requests = get("status"), row["end"], get("cost_usd"), get("requests", 1)
        parent: str = get("parent_request_id", "")
        if type(requests) is not int or not (0 if parent else 1) <= requests <= MOST:
            raise ValueError(f"found {requests!r} requests, expected a whole number from 1 up, or 0 with a parent")
        if status is None:
            status = 0
        elif status == 101:
            requests = 0  # of a WebSocket, whose responses are the requests
        elif type(status) is not int or not 0 < status < 1000:
            raise ValueError(f"found {status!r}, expected a status")
        source = get("usage_source")
        metered = source in _METERED
        failed = status >= 400 or end in _FAILED_ENDS
        silent = 200 <= status < 300 and not metered and cost is None and (get("method") == "POST" or parent)
        unpriced = metered and cost is None
        stands_for = requests or 1
        prompt, completion, total = get("prompt_tokens"), get("completion_tokens"), get("total_tokens")
        if total is None and prompt is not None and completion is not None:
            total = prompt + completion
        duration = _microseconds(row["duration_ms"])
        tokens = [
            prompt, get("cached_tokens"), get("cache_write_tokens"), completion, get("reasoning_tokens"), total
        ]  # fmt: skip
        for place, count in enumerate(tokens):
            if count is None:
                tokens[place] = -1
            elif type(count) is not int or not 0 <= count <= MOST:
                raise ValueError(f"found {count!r} tokens, expected a whole number from 0 to {MOST}")
        figures = (
            requests, requests if failed else 0, requests if silent else 0, stands_for if unpriced else 0,
            stands_for if source == "partial" else 0, 1 if status == 101 else 0, *tokens, _nano(cost),
            # of several requests times are a mean, and of none they are none
            code(_microseconds(get("first_byte_ms")), duration, _microseconds(get("overhead_ms")))
            if requests == 1 else 0,
        )  # fmt: skip
        request_id, started_at = _request_id(row["request_id"]), self._moment(row["started_at"])
        model = get("model") or get("model_requested")
        endpoint = why = None
        if unpriced or (silent and requests):
            endpoint = None if model else get("path")
            why = get("unpriced") if unpriced else _why_silent(end, get("stream"))
        error = get("error_code") or _fault_with_usage(get, status)
        attributes = get("attributes")
        told = (
            row["key_id"], get("owner"), model, get("upstream"), status, end, error, get("group"), get("node"),
            endpoint, why, tuple(attributes.items()) if attributes else (),
        )  # fmt: skip
        dims = self._dims.get(told) or self._new_dims(told, started_at // (DAY * HOUR))
        self._rows.append((request_id, started_at, dims, *figures))
        if not requests and (metered or (status == 101 and parent)):  # the latter heard a call, whose usage rows tell
            self._settled.append((_request_id(parent),))
        if self.last_row is None or started_at > self.last_row:
            self.last_row = started_at

    def _moment(self, text: str) -> int:
        """Read a time as the journal writes it, or any of ISO 8601, in microseconds since 1970.

        :raises ValueError: it is none, or before 1970.
        """
        second, at = self._second
        fraction = text[_SECOND:-1]
        if text.startswith(second) and len(text) == _MOMENT and text[-1] == "Z" and fraction.isdecimal():
            return at + int(fraction)
        moment = datetime.fromisoformat(text)
        since = ((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
        if since < 0:
            raise ValueError("it began before 1970")
        if len(text) == _MOMENT and text[_SECOND - 1] == "." and text[-1] == "Z":
            self._second = text[:_SECOND], since // 1_000_000 * 1_000_000
        return since

    def _new_dims(self, told: tuple[Any, ...], day: int) -> int:
        """The number of a combination that is not remembered."""
        *values, attributes = told
        self._bringer = day, self._word("key", told[0])
        self._over = False
        endpoint = values[TOLD.index("endpoint")]
        values[TOLD.index("endpoint")] = None if endpoint is None else _AN_ID.sub("*", endpoint)
        numbers = [
            value if field == "status" else self._word(field, value) for field, value in zip(TOLD, values, strict=True)
        ]
        found = self._combinations.number((*numbers, self._numbered(attributes) if attributes else 0))
        texts = [value for value in values if isinstance(value, str)]
        size = sum(map(len, texts)) + sum(len(name) + len(value) for name, value in attributes)
        if not self._over and size <= 4 * KEPT_SIZE:
            if len(self._dims) >= KEPT_WORDS:
                self._dims.clear()
            self._dims[told] = found
        return found

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
            insert = "INSERT INTO words (kind, word, day, key) VALUES (?, ?, ?, ?) RETURNING id"
            found = execute(insert, (kind, text, *self._bringer)).fetchone()
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

    def _numbered(self, attributes: tuple[tuple[str, str], ...]) -> int:
        """The number of a set of attributes."""
        numbers: dict[int, int] = {}
        before, over = self._over, False
        for name, value in attributes:
            self._over = False
            number = self._word("attribute", name)
            kept = (OTHER, OTHER) if self._over else (cut(name, MAX_WORD), value)
            numbers[number] = self._word(f"attribute:{kept[0]}", kept[1])
            over = over or self._over
        self._over = before or over
        text = ",".join(f"{name}={value}" for name, value in sorted(numbers.items()))
        execute = self._connection.execute
        found = execute("SELECT id FROM attributes WHERE pairs = ?", (text,)).fetchone()
        if found is None:
            found = execute("INSERT INTO attributes (pairs) VALUES (?) RETURNING id", (text,)).fetchone()
            some = ((found[0], name, value) for name, value in numbers.items())
            self._connection.executemany("INSERT INTO pairs VALUES (?, ?, ?)", some)
        return int(found[0])

    def _insert(self) -> None:
        """Store the rows that are not yet, but for those that are there already."""
        if self._rows:
            self._new += self._connection.executemany(_INSERT, self._rows).rowcount
        self._connection.executemany("INSERT INTO settled VALUES (?) ON CONFLICT DO NOTHING", self._settled)
        self._rows.clear()
        self._settled.clear()


def _fault_with_usage(get: Callable[[str], Any], status: int) -> str | None:
    return ASKED_FOR_USAGE if status in (400, 422) and get("usage_asked_by") == "flowstack" else None


def _why_silent(end: str, stream: object) -> str | None:
    return CUT_SHORT if end != "complete" else SILENT_STREAM if stream else None


def _none() -> dict[str | None, int]:
    return {None: 0}


def _request_id(text: str) -> bytearray:
    """The id's 16 bytes, or the text of one that is not ours."""
    if len(text) == 32:
        try:
            return bytearray.fromhex(text)
        except ValueError:
            pass
    return bytearray(b"=" + text.encode())


def _microseconds(milliseconds: float | None) -> int:
    """The whole microseconds; -1 where none is known."""
    if milliseconds is None:
        return -1
    time = int(float(milliseconds) * 1000 + 0.5)
    if not 0 <= time <= MOST:
        raise ValueError(f"found {milliseconds} ms, expected from 0 to {MOST // 1000}")
    return time


def _nano(cost_usd: float | None) -> int:
    """The cost in whole nano-dollars; -1 where none is known."""
    if cost_usd is None:
        return -1
    nano = round(float(cost_usd) * NANO)
    if not 0 <= nano <= MOST_NANO:
        raise ValueError(f"found a cost of {cost_usd} USD, expected from 0 to {MOST_NANO // NANO}")
    return nano
