"""From the journal's lines to the index's tables."""

from __future__ import annotations

import re
from binascii import unhexlify
from datetime import UTC, datetime, timedelta
from typing import Any

from orjson import loads

from flowstack.http.names import OWN_PREFIX
from flowstack.ledger.combinations import Combinations
from flowstack.ledger.database import Database
from flowstack.ledger.histogram import bucket_of
from flowstack.ledger.numbers import Numbers
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

KEPT_HEADS = 10_000
"""The same of the words of a line, as they stand there."""

KEPT_SIZE = 256
"""Characters of the longest word that is kept; a combination may have four times as many, a line's words bytes."""

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

# How a line begins: its id and its time, whose lengths are known; then the words, which are those of many rows; then
# from these bytes on the figures.
_BEGIN, _BETWEEN, _BEHIND, _FIGURES = b'{"v":2,"request_id":"', b'","started_at":"', b'Z",', b',"prompt_tokens":'
_ID = len(_BEGIN)
_ID_END = _ID + 32
_AT = _ID_END + len(_BETWEEN)
_SECOND = _AT + len("2026-11-23T07:30:")
_POINT = _SECOND + 2
_AT_END = _POINT + len(".000000")
_WORDS = _AT_END + len(_BEHIND)
_DOT = ord(".")

_NAMES_OF_WORDS = frozenset({
    "key_id", "owner", "group", "attributes", "method", "path", "model_requested", "model", "status", "error_code",
    "end", "stream",
})  # fmt: skip
_NAMES_OF_FIGURES = frozenset({
    "requests", "upstream", "node", "parent_request_id", "usage_source", "usage_asked_by", "unpriced", "cost_usd",
    "prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens", "total_tokens",
    "first_byte_ms", "duration_ms", "overhead_ms",
})  # fmt: skip
"""What is read of either part of a line. A line whose members stand in another order is not read in parts."""

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
        self._words = Numbers(connection, "words", ("kind", "word"), ("day", "key"), KEPT_WORDS)
        self._sets = Numbers(connection, "attributes", ("pairs",), (), KEPT_WORDS)
        self._pairs: list[tuple[int, int, int]] = []  # of new sets
        self._dims: dict[tuple[Any, ...], int] = {}
        self._heads: dict[bytes, _Head] = {}
        self._combinations = Combinations(connection)
        self._brought: dict[tuple[str, int, int], int] = {}  # new words, by their kind, day and key
        self._bringer = (0, 0)  # day and key of the row that is read
        self._over = False  # whether a word of it was one too many
        self._minute = (b"", 0)  # the last one seen, and its microseconds since 1970
        self.count = 0
        self.last_row: int | None = None

    def forget(self) -> None:
        """The transaction was rolled back: what it would have brought is not there."""
        self._words.forget()
        self._sets.forget()
        self._pairs.clear()
        self._dims.clear()
        self._heads.clear()
        self._combinations.forget()
        self._brought.clear()
        self._reset()

    def _reset(self) -> None:
        self._rows.clear()
        self._settled.clear()
        self._new = self.count = 0
        self.last_row = None

    def add(self, line: bytes) -> None:
        """Take one line of the journal.

        :raises ValueError: it is no row.
        :raises sqlite3.Error: the database cannot be written.
        """
        try:
            self._add(*(self._parted(line) or self._whole(line)))
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
        self._words.store()
        self._sets.store()
        self._connection.executemany("INSERT INTO pairs VALUES (?, ?, ?)", self._pairs)
        self._pairs.clear()
        self._combinations.store()
        settle(self._connection)
        if waiting(self._connection) >= (MANY_BEHIND if behind else MANY):
            roll_up(self._connection)
        new = self._new
        self._reset()
        return new

    def _parted(self, line: bytes) -> _Parts | None:
        """A line as Flowstack writes it now; None of any other.

        The words that many lines share are read once. Where these make an object, and the rest makes one, the line is
        the two of them. An attribute that is named as the first figure breaks off the words, which make none then.
        """
        if not line.startswith(_BEGIN) or line[_ID_END:_AT] != _BETWEEN or line[_AT_END:_WORDS] != _BEHIND:
            return None
        seconds = line[_SECOND:_POINT] + line[_POINT + 1 : _AT_END]
        if line[_POINT] != _DOT or not seconds.isdigit() or seconds >= b"6":
            return None
        minute, begun = self._minute
        figures = line.find(_FIGURES, _WORDS)
        if figures < 0:
            return None
        try:
            if line[_AT:_SECOND] != minute:
                minute = line[_AT:_SECOND]
                begun = _moment(f"{minute.decode()}00Z")
                self._minute = minute, begun
            head = self._heads.get(words := line[_WORDS:figures])
            if head is None:
                head = self._new_head(words)
            row = loads(b"{" + line[figures + 1 :])
            return bytearray(unhexlify(line[_ID:_ID_END])), begun + int(seconds), head, row
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _new_head(self, words: bytes) -> _Head:
        row = loads(b"{%b}" % words)
        if not row.keys() >= _NAMES_OF_WORDS or not _NAMES_OF_FIGURES.isdisjoint(row):
            raise ValueError("the members of the line stand in another order")
        head = _Head(row)
        if len(words) <= 4 * KEPT_SIZE:
            if len(self._heads) >= KEPT_HEADS:
                self._heads.clear()
            self._heads[words] = head
        return head

    def _whole(self, line: bytes) -> _Parts:
        """Any line."""
        row = loads(line)
        return _request_id(row["request_id"]), _moment(row["started_at"]), _Head(row), row

    def _add(self, request_id: bytearray, started_at: int, head: _Head, row: dict[str, Any]) -> None:
        get = row.get
        upstream = get("upstream")
        if upstream is None and head.own:
            return  # its holder asked what the key used: that is no use of it
        status, error = head.status, head.error
        source, cost, requests = get("usage_source"), get("cost_usd"), get("requests", 1)
        parent: str = get("parent_request_id") or ""
        if type(requests) is not int or not (0 if parent else 1) <= requests <= MOST:
            raise ValueError(f"found {requests!r} requests, expected a whole number from 1 up, or 0 with a parent")
        if status == 101:
            requests = 0  # of a WebSocket, whose responses are the requests
        metered = source in _METERED
        silent = head.good and not metered and cost is None and (head.posts or parent != "")
        unpriced = metered and cost is None
        prompt, completion, total = get("prompt_tokens"), get("completion_tokens"), get("total_tokens")
        if total is None and prompt is not None and completion is not None:
            total = prompt + completion
        tokens = [
            -1 if count is None else count if type(count) is int and 0 <= count <= MOST else _no_count(count)
            for count in (
                prompt, get("cached_tokens"), get("cache_write_tokens"), completion, get("reasoning_tokens"), total
            )
        ]  # fmt: skip
        duration = bucket_of(row["duration_ms"])
        times = 0  # of several requests they are a mean, and of none they are none
        if requests == 1:
            times = bucket_of(get("first_byte_ms")) | duration << 8 | bucket_of(get("overhead_ms")) << 16
        why = None
        gap = unpriced or (silent and requests > 0)
        if gap:
            why = get("unpriced") if unpriced else head.why_silent
        if not error and status in (400, 422) and get("usage_asked_by") == "flowstack":
            error = ASKED_FOR_USAGE
        place = upstream, get("node"), error, gap, why
        dims = head.numbers.get(place) or self._numbered_place(head, place, started_at // (DAY * HOUR))
        self._rows.append((
            request_id, started_at, dims,
            requests, requests if head.failed else 0, requests if silent else 0, (requests or 1) if unpriced else 0,
            (requests or 1) if source == "partial" else 0, 1 if status == 101 else 0, *tokens, _nano(cost), times,
        ))  # fmt: skip
        if not requests and (metered or (status == 101 and parent)):  # the latter heard a call, whose usage rows tell
            self._settled.append((_request_id(parent),))
        if self.last_row is None or started_at > self.last_row:
            self.last_row = started_at

    def _numbered_place(self, head: _Head, place: _Place, day: int) -> int:
        """The number of a combination that the words of a line do not remember."""
        upstream, node, error, gap, why = place
        told = (
            head.key, head.owner, head.model, upstream, head.status, head.end, error, head.group, node,
            head.path if gap and not head.model else None, why, head.attributes,
        )  # fmt: skip
        dims = self._dims.get(told)
        if dims is None:
            dims = self._new_dims(told, day)
            if self._over:
                return dims  # and not remembered: on another day there is room
        if len(head.numbers) < _MOST_PLACES:
            head.numbers[place] = dims
        return dims

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

    def _word(self, kind: str, word: Any) -> int:
        if word is None:
            return 0
        if not isinstance(word, str):
            raise TypeError(f"{kind} is no text")
        text = fitting(word)
        if self._words.begin():
            self._brought.clear()  # others have brought some, too
        found = self._words.get((kind, text))
        if found is None:
            if text != OTHER and not self._may_bring(kind):
                self._over = True
                return self._word(kind, OTHER)  # and not remembered: on another day there is room
            found = self._words.add((kind, text), self._bringer)
        return found

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
            self._words.flush()
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
            kept = (OTHER, OTHER) if self._over else (fitting(name), value)
            numbers[number] = self._word(f"attribute:{kept[0]}", kept[1])
            over = over or self._over
        self._over = before or over
        text = ",".join(f"{name}={value}" for name, value in sorted(numbers.items()))
        found = self._sets.get((text,))
        if found is None:
            found = self._sets.add((text,), ())
            self._pairs += [(found, name, value) for name, value in numbers.items()]
        return found

    def _insert(self) -> None:
        """Store the rows that are not yet, but for those that are there already."""
        if self._rows:
            self._new += self._connection.executemany(_INSERT, self._rows).rowcount
        self._connection.executemany("INSERT INTO settled VALUES (?) ON CONFLICT DO NOTHING", self._settled)
        self._rows.clear()
        self._settled.clear()


class _Head:
    """What a line says before its figures, and what that comes to.

    :ivar numbers: those of the combinations that it is part of, by the rest of what tells rows apart.
    :raises ValueError: it is of no row.
    """

    __slots__ = (
        "attributes", "end", "error", "failed", "good", "group", "key", "model", "numbers", "own", "owner", "path",
        "posts", "status", "why_silent",
    )  # fmt: skip

    def __init__(self, row: dict[str, Any]) -> None:
        get = row.get
        status, end = get("status"), row["end"]
        if status is None:
            status = 0
        elif type(status) is not int or not 0 < status < 1000:
            raise ValueError(f"found {status!r}, expected a status")
        attributes = get("attributes")
        self.key, self.owner, self.group = row["key_id"], get("owner"), get("group")
        self.attributes = tuple(attributes.items()) if attributes else ()
        self.path: str | None = get("path")
        self.own = (self.path or "").startswith(_OWN)
        self.model = get("model") or get("model_requested")
        self.status: int = status
        self.error, self.end = get("error_code") or None, end
        self.failed = status >= 400 or end in _FAILED_ENDS
        self.good = 200 <= status < 300
        self.posts = get("method") == "POST"
        self.why_silent = CUT_SHORT if end != "complete" else SILENT_STREAM if get("stream") else None
        self.numbers: dict[_Place, int] = {}


_Place = tuple[str | None, str | None, str | None, bool, str | None]
"""The upstream, the machine, the error, whether usage or price is missing, and why."""

_Parts = tuple[bytearray, int, _Head, dict[str, Any]]
"""The id, when it began, what many rows share, and the rest."""

_MOST_PLACES = 20
"""Of what one line says before its figures; others are looked for among all combinations."""


def fitting(word: str) -> str:
    """A word as it is kept: of bounded length."""
    return without_nul(cut(word, MAX_WORD))


def without_nul(text: str) -> str:
    """A text as the indexes have it: PostgreSQL's can hold no NUL."""
    return text.replace("\0", "\ufffd")


def _request_id(text: str) -> bytearray:
    """The id's 16 bytes, or the text of one that is not ours."""
    if len(text) == 32:
        try:
            return bytearray.fromhex(text)
        except ValueError:
            pass
    return bytearray(b"=" + text.encode())


def _moment(text: str) -> int:
    """Any time of ISO 8601 in microseconds since 1970.

    :raises ValueError: it is none, or before 1970.
    """
    moment = datetime.fromisoformat(text)
    since = ((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    if since < 0:
        raise ValueError("it began before 1970")
    return since


def _no_count(count: object) -> int:
    raise ValueError(f"found {count!r} tokens, expected a whole number from 0 to {MOST}")


def _nano(cost_usd: float | None) -> int:
    """The cost in whole nano-dollars; -1 where none is known."""
    if cost_usd is None:
        return -1
    nano = round(float(cost_usd) * NANO)
    if not 0 <= nano <= MOST_NANO:
        raise ValueError(f"found a cost of {cost_usd} USD, expected from 0 to {MOST_NANO // NANO}")
    return nano
