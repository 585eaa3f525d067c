"""What the API answers from files: reports, budgets, keys, changes to them. In a process of its own, one at a time.

The same functions as the commands', so that no two places tell two sums. A read is bounded in time: SQLite is
interrupted, and Python too. A change is not: it is whole or not at all.
"""

from __future__ import annotations

import csv
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from attrs import evolve, frozen

from flowstack.admin import audit
from flowstack.admin.endpoints import MOST_LINES
from flowstack.admin.refusals import BadParameter, Conflict, NoReports, NotFound, QueryTooLong
from flowstack.admin.time_limit import TimeUp, at_most, is_over, seconds_left, within
from flowstack.config import Settings, node_of
from flowstack.errors import ParseError
from flowstack.keys import ATTRIBUTES, GROUP_ATTRIBUTES, Attribute, Group, Key, KeySet, digest, hide_keys, make_token
from flowstack.keys.editor import (
    add_group,
    add_key,
    change_group,
    change_key,
    remove_group,
    remove_key,
    rotate_key,
)
from flowstack.keys.reading import KeystoreError, read_keys
from flowstack.ledger import search
from flowstack.ledger.database import Database, Unavailable
from flowstack.ledger.files import journal_path
from flowstack.ledger.formats import defused, document
from flowstack.ledger.index import bytes_behind, index_path
from flowstack.ledger.meanings import row_fields
from flowstack.ledger.queries import Condition, Line, Question, report, standing
from flowstack.ledger.questions import answer, question_of, shown
from flowstack.ledger.row import BLANK
from flowstack.ledger.schema import Unusable, open_for_reading
from flowstack.ledger.shared import bytes_missing, open_shared, row_in
from flowstack.limits import budgets
from flowstack.limits.books import Books
from flowstack.limits.counters import CountersError
from flowstack.limits.doubts import begins_anew, budget_of, doubts_of_key, doubts_of_tokens
from flowstack.limits.listing import Used, attributes_as_json, group_as_json, key_as_json, standings_of
from flowstack.limits.remote_books import books_of
from flowstack.notation import DURATION, read_duration
from flowstack.prices.table import load_prices

if TYPE_CHECKING:
    from flowstack.ledger.postgres import Postgres

LAST_USED_DAYS = 30
"""For which it is looked when a key was used last."""

USUAL_GRACE = "24h"

MAIN = (
    "request_id", "started_at", "key_id", "owner", "group", "attributes", "model", "model_requested", "upstream",
    "upstream_request_id", "method", "path", "status", "end", "error_code", "stream", "prompt_tokens", "cached_tokens",
    "completion_tokens", "reasoning_tokens", "total_tokens", "cost_usd", "first_byte_ms", "duration_ms", "overhead_ms",
    "attempts", "requests",
)  # fmt: skip
"""What a list shows of a row."""

_SEARCH_SECONDS, _EXPORT_SECONDS = 4.0, 15.0
"""After which a search gives what it has found. What it may take in all is more: the index is asked first."""

_SIDE_SECONDS = 1.5
"""For what an answer is good without: then nobody knows it."""

_REACH_SECONDS, _AWAY_SECONDS = 3.0, 5.0
"""For a connection to the ledger of all machines; and for how long nobody tries again where there was none."""

_NARROWED, _LOOKED_BACK = 32, 3660
"""Days for which the index is asked where a search need not look, and for which it looks before them."""

_HOUR = 3_600_000_000

_ASKS_TOO_MUCH = "Ask for a shorter time, for fewer fields, or on narrower conditions."
_STEPS = 10_000
"""Of SQLite's machine between two looks at the clock: a fraction of a millisecond."""

_DAY = 86_400


@frozen(slots=True)
class Answer:
    """What is sent.

    :ivar kind: its media type.
    """

    body: bytes
    kind: str = "application/json"


class Reports:
    """Answers, by an endpoint's name.

    :param settings: of the service.
    :param wall: UTC Unix seconds.
    :param random: for keys' secrets.
    """

    def __init__(
        self,
        settings: Settings,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._settings = settings
        self._keys = settings.server.keys
        self._wall = wall
        self._random = random
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._shared: Postgres | None = None
        self._away, self._away_until = "", 0.0
        self._fault: str | None = None  # of writing the last change down
        self._prices = cache(lambda: load_prices(settings.prices))
        self._reads: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "report": self._report,
            "usage": self._usage,
            "requests": self._requests,
            "requests.export": self._export,
            "requests.one": self._request,
            "budgets": self._budgets,
            "keys": self._list_keys,
            "groups": self._list_groups,
            "audit": lambda asked: {"entries": audit.entries(self._state, asked.get("limit", 100))},
        }
        self._changes: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "keys.add": self._add_key,
            "keys.change": self._change_key,
            "keys.rotate": self._rotate_key,
            "keys.remove": self._remove_key,
            "groups.add": self._add_group,
            "groups.change": self._change_group,
            "groups.remove": self._remove_group,
        }

    def answer(self, what: str, asked: Mapping[str, Any], seconds: float) -> Answer:
        """Answer.

        :param asked: the parameters, checked by the table of endpoints; of a change also ``actor``.
        :param seconds: that a read may take.
        :raises FlowstackError: there is no answer; the text says why.
        """
        try:
            if what in self._changes:
                self._fault = None
                found = self._changes[what](asked)
                found["warnings"] += [self._fault] if self._fault else []
            else:
                found = within(seconds, lambda: self._reads[what](asked))
        except ParseError as error:
            raise BadParameter(error.key, f"{error.message}.") from None
        except KeystoreError as error:
            raise (Conflict if what in self._changes else NoReports)(hide_keys(str(error))) from None
        except CountersError as error:
            raise NoReports(str(error)) from None
        except (TimeUp, MemoryError):
            raise QueryTooLong(
                f"This would take more than the {seconds:g} seconds or the memory that a query may. {_ASKS_TOO_MUCH}"
            ) from None
        return found if isinstance(found, Answer) else Answer(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))

    # The ledger of all machines.

    @contextmanager
    def _ledger(self) -> Iterator[tuple[Database, int]]:
        """What figures are read from, as of now, and how many bytes of rows are not in it: the PostgreSQL of all
        machines where there is one, and this machine's index where there is none.

        :raises NoReports: it cannot be read.
        """
        if self._settings.shared.postgres is None:
            with self._index() as connection:
                yield connection, bytes_behind(connection, journal_path(self._state))
            return
        with self._all_machines() as database:
            yield database, bytes_missing(database, self._settings)

    @contextmanager
    def _all_machines(self) -> Iterator[Postgres]:
        """The PostgreSQL of all machines.

        :raises NoReports: it cannot be used.
        """
        if time.monotonic() < self._away_until:
            raise NoReports(self._away)
        try:
            database = at_most(_REACH_SECONDS, self._reached, NoReports("it did not answer in time"))
        except (Unavailable, NoReports) as error:
            self._leave()
            self._away, self._away_until = _away(error), time.monotonic() + _AWAY_SECONDS
            raise NoReports(self._away) from None
        try:
            # What nobody waits for any more, the server need not finish.
            database.execute(f"SET statement_timeout = {max(round(seconds_left() * 1000), 1)}")
            yield database
        except Unavailable as error:
            self._leave()
            if is_over():
                raise TimeUp from None
            raise NoReports(_away(error)) from None
        except BaseException:
            self._leave()  # it may be in the middle of an answer
            raise

    def _reached(self) -> Postgres:
        """The connection of before, if it is one still, or another.

        :raises Unavailable: there is none.
        """
        if self._shared is not None:
            with suppress(Unavailable):
                self._shared.execute("SELECT")
                return self._shared
            self._leave()
        self._shared = open_shared(self._settings.shared, "flowstack reports")
        return self._shared

    def _leave(self) -> None:
        database, self._shared = self._shared, None
        if database is not None:
            database.close()

    # The index.

    @property
    def _state(self) -> Path:
        state = self._settings.server.state
        if state is None:
            raise NoReports("There is no ledger: [server] state is not set.")
        return state

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        """The index, as of now.

        :raises NoReports: it cannot be read.
        """
        path = index_path(self._state)
        try:
            yield self._opened(path)
        except FileNotFoundError:
            raise NoReports(
                "There is no index of the ledger yet: it is made with the first request of a valid key, where [ledger] "
                "index is on."
            ) from None
        except (sqlite3.Error, OSError, Unusable) as error:
            self._close()
            if is_over():  # it was interrupted
                raise TimeUp from None
            raise NoReports(f"The index {path} cannot be read: {error}.") from None
        except BaseException:
            self._close()  # it may be in the middle of an answer
            raise

    def _opened(self, path: Path) -> sqlite3.Connection:
        status = path.stat()
        file = status.st_dev, status.st_ino
        if self._connection is None or file != self._file:  # it may have been set aside, and built anew
            self._close()
            self._connection, self._file = open_for_reading(path), file
        self._connection.set_progress_handler(is_over, _STEPS)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # What is read.

    def _report(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.fromtimestamp(self._wall(), UTC)
        question = question_of(
            asked.get("by", "key"), asked.get("where", ()), asked.get("since"), asked.get("until"), now, _pattern_of
        )
        return self._answered(question, asked.get("sort"), asked.get("limit", MOST_LINES))

    def _usage(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What one key's holder is told: of its own rows alone."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        question = question_of(asked["by"], (), asked.get("since"), asked.get("until"), now, _pattern_of)
        if any(field not in ("day", "hour", "model") for field in question.by):
            raise BadParameter("by", "expected day, hour, model, or several with commas between.")
        return self._answered(evolve(question, where=(Condition("key", (asked["key"],)),)), None, 1000)

    def _answered(self, question: Question, sort: str | None, limit: int) -> dict[str, Any]:
        with self._ledger() as (database, behind):
            found = answer(database, question, sort)
        return document(question.by, found.entries(limit), found.total, found.gaps, found.about(limit, behind))

    # Rows.

    def _requests(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        wanted, cursor = self._wanted(asked), asked.get("cursor")
        limit, journal = asked.get("limit", 50), journal_path(self._state)
        if asked.get("direction") == "newer":
            if cursor is None:
                raise BadParameter("cursor", "is missing: direction=newer looks on from an answer before.")
            found = search.newer(journal, wanted, limit, cursor, _SEARCH_SECONDS)
        else:
            found = self._older(wanted, limit, cursor, _SEARCH_SECONDS)
        return {
            "requests": [{name: row.get(name) for name in MAIN} for row in found.rows],
            "older": found.older,
            "newer": found.newer,
            "searched_from": shown(found.searched_from),
            "searched_until": None if wanted.until >= search.ALWAYS else shown(wanted.until),
            "complete": found.older is None,
            "node": None if self._settings.shared.postgres is None else node_of(self._settings),
        }

    def _export(self, asked: Mapping[str, Any]) -> Answer | dict[str, Any]:
        found = self._older(self._wanted(asked), MOST_LINES, None, _EXPORT_SECONDS)
        if asked.get("format") == "csv":
            return Answer(_as_csv(found.rows, found.older is not None), "text/csv;charset=utf-8")
        return {"requests": found.rows, "complete": found.older is None}

    def _request(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        request_id = asked["id"]
        row = search.row_of(journal_path(self._state), request_id, self._began(request_id), _SEARCH_SECONDS)
        if row is None and self._settings.shared.postgres is not None:
            with self._all_machines() as database:
                row = row_in(database, request_id)
        if row is None:
            raise NotFound(
                f"There is no row of a request {hide_keys(request_id)}: it has not ended yet, or the journal has it no "
                "more ([ledger] retention_days)."
            )
        meanings = row_fields()
        told = [{"name": name, "type": kind, "meaning": text} for name, kind, text in meanings if name in row]
        return {"request": row, "fields": told}

    def _wanted(self, asked: Mapping[str, Any]) -> search.Filter:
        now = datetime.fromtimestamp(self._wall(), UTC)
        question = question_of("", asked.get("where", ()), asked.get("since"), asked.get("until"), now, _pattern_of)
        where = list(question.where)
        if "status" in asked:
            where.append(Condition("status", tuple(word.replace("xx", "*") for word in asked["status"].split("|"))))
        where += [Condition(field, (_pattern_of(field, asked[field]),)) for field in ("end", "error") if field in asked]
        since, until = question.since or 0, search.ALWAYS if question.until is None else question.until
        ids = (_pattern_of("id", asked["id"].strip()),) if "id" in asked else ()
        if ids and (began := self._began(ids[0])) is not None:
            since, until = max(since, began), min(until, began + 1)
        return search.Filter(
            where=tuple(where),
            since=since,
            until=until,
            ids=ids,
            cost=(asked.get("cost_min"), asked.get("cost_max")),
            duration=(asked.get("duration_min"), asked.get("duration_max")),
        )

    def _older(self, wanted: search.Filter, limit: int, cursor: str | None, seconds: float) -> search.Found:
        return search.older(journal_path(self._state), wanted, limit, cursor, seconds, lambda: self._hours(wanted))

    def _hours(self, wanted: search.Filter) -> list[int] | None:
        """The hours in which rows that fit may have begun: those that the index knows, and all that it does not."""
        if not wanted.where:
            return None
        now = int(self._wall() * 1e6)
        until = min(wanted.until, now + 1)
        since = max(wanted.since, until - _NARROWED * 24 * _HOUR)
        if since >= until:
            return []

        def asked() -> tuple[int | None, list[Line]]:
            with self._index() as connection:
                last = standing(connection).last_row
                return last, [] if last is None else report(
                    connection, Question(("hour",), wanted.where, since, until)
                )

        try:
            last, lines = at_most(_SIDE_SECONDS, asked, NoReports(""))
        except NoReports:
            return None
        if last is None:
            return None
        before = range(max(wanted.since, since - _LOOKED_BACK * 24 * _HOUR) // _HOUR, since // _HOUR)
        return [*(line.group[0] for line in lines), *range(last // _HOUR, now // _HOUR + 1), *before]

    def _began(self, request_id: str) -> int | None:
        """When a request began, as far as the index knows, in microseconds since 1970."""
        try:
            with self._index() as connection:
                return search.began_of(connection, request_id)
        except NoReports:
            return None

    def _budgets(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        keys = self._read()
        with books_of(self._settings, self._state) as books:
            if books is None:
                return {"budgets": []}
            held = budgets.held(books, [*keys.groups.values(), *keys], self._settings)
            return {"budgets": [self._budget(books, line) for line in budgets.lines(held, None)]}

    def _budget(self, books: Books, line: budgets.Line) -> dict[str, Any]:
        standing = line.standing
        told = budgets.as_json(line)
        del told["in_ledger_usd"], told["by_estimate_usd"]
        projected = None
        if standing.period is not None and standing.reset is not None:
            now = self._wall()
            begun = max(standing.period.begins, books.reset_at(standing) / 1e6)
            passed, whole = now - begun, standing.period.ends - begun
            projected = told["spent_usd"] * whole / passed if 0 < passed < whole else told["spent_usd"]
        of = "group" if standing.name.startswith("@") else "key"
        return {**told, "of": of, "id": standing.name.removeprefix("@"), "projected_usd": projected}

    def _list_keys(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        keys, search, limit = self._read(), asked.get("search", "").casefold(), asked.get("limit", 1000)
        found = [key for key in keys if not search or _names(key, search)]
        last = self._last_used()
        now = self._wall()
        with self._used() as used:
            told = [{**key_as_json(key, now, used), "last_used": last.get(key.id)} for key in found[:limit]]
        return {"keys": told, "left_out": max(len(found) - limit, 0)}

    def _list_groups(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        keys, now = self._read(), self._wall()
        with self._used() as used:
            return {
                "groups": [
                    group_as_json(group, keys.members.get(group.name, 0), now, used) for group in keys.groups.values()
                ]
            }

    def _last_used(self) -> dict[str, str]:
        """The day on which each key was used last; none where it was not lately, or nobody knows."""
        since = int(self._wall() - LAST_USED_DAYS * _DAY) // _DAY * _DAY * 1_000_000

        def asked() -> list[Line]:
            with self._ledger() as (database, _):
                return report(database, Question(("key", "day"), (), since))

        try:
            lines = at_most(_SIDE_SECONDS, asked, NoReports(""))
        except NoReports:
            return {}
        found: dict[str, int] = {}
        for line in lines:
            key, hours = line.group
            found[key] = max(hours, found.get(key, 0))
        return {key: (shown(hours * 3_600_000_000) or "")[:10] for key, hours in found.items()}

    @contextmanager
    def _used(self) -> Iterator[Used]:
        """What is used of limits; None where there are no counters."""
        with ExitStack() as stack:
            books = None
            try:
                books = stack.enter_context(books_of(self._settings, self._settings.server.state))
            except CountersError:
                books = None
            yield None if books is None else lambda of: standings_of(books, of, self._settings)

    # Keys.

    def _read(self) -> KeySet:
        reading = read_keys(self._keys)
        if reading.faults:
            raise KeystoreError(reading.faults)
        return reading.key_set

    def _key(self, key_id: str) -> Key:
        for key in self._read():
            if key.id == key_id:
                return key
        raise NotFound(f"There is no key with the id {key_id}.")

    def _group(self, name: str) -> Group:
        group = self._read().groups.get(name)
        if group is None:
            raise NotFound(f"There is no group with the name {name}.")
        return group

    def _add_key(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        fields = self._fields(asked.get("attributes", {}), ATTRIBUTES)
        key_id, token = make_token(self._random)
        key = Key(
            key_id, digest(token.encode()), **{name: value for name, value in fields.items() if value is not None}
        )
        with self._written(asked, "keys.add", key_id) as entry:
            add_key(self._keys, key)
            entry.after = self._told(key)
        return {"key": self._shown_key(key_id), "secret": token, "warnings": self._doubts(None, self._key(key_id))}

    def _change_key(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        key_id, fields = asked["id"], self._fields(asked.get("attributes", {}), ATTRIBUTES)
        if "disabled" in asked:
            fields["disabled"] = asked["disabled"]
        _not_empty(fields, "attributes or disabled")
        self._key(key_id)
        with self._written(asked, "keys.change", key_id) as entry:
            before, after = change_key(self._keys, key_id, lambda key: evolve(key, **fields))
            entry.before, entry.after = self._told(before), self._told(after)
        return {"key": self._shown_key(key_id), "warnings": self._doubts(before, after)}

    def _rotate_key(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        key_id, grace = asked["id"], read_duration(asked.get("grace", USUAL_GRACE))
        if grace is None:
            raise BadParameter("grace", f"expected {DURATION}.")
        self._key(key_id)
        _, token = make_token(self._random, key_id)
        with self._written(asked, "keys.rotate", key_id) as entry:
            before, after = rotate_key(self._keys, key_id, digest(token.encode()), grace, self._wall())
            entry.before, entry.after = self._told(before), self._told(after)
        return {"key": self._shown_key(key_id), "secret": token, "warnings": []}

    def _remove_key(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._key(asked["id"])
        with self._written(asked, "keys.remove", asked["id"]) as entry:
            entry.before = self._told(remove_key(self._keys, asked["id"]))
        return {"warnings": []}

    def _add_group(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name, fields = asked["name"], self._fields(asked.get("attributes", {}), GROUP_ATTRIBUTES)
        group = Group(name, **fields)
        with self._written(asked, "groups.add", name) as entry:
            add_group(self._keys, group)
            entry.after = attributes_as_json(group)
        return {"group": self._shown_group(name), "warnings": self._doubts(None, group)}

    def _change_group(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name, fields = asked["name"], self._fields(asked.get("attributes", {}), GROUP_ATTRIBUTES)
        _not_empty(fields, "attributes")
        self._group(name)
        with self._written(asked, "groups.change", name) as entry:
            before, after = change_group(self._keys, name, lambda group: evolve(group, **fields))
            entry.before, entry.after = attributes_as_json(before), attributes_as_json(after)
        return {"group": self._shown_group(name), "warnings": self._doubts(before, after)}

    def _remove_group(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._group(asked["name"])
        with self._written(asked, "groups.remove", asked["name"]) as entry:
            entry.before = attributes_as_json(remove_group(self._keys, asked["name"]))
        return {"warnings": []}

    @contextmanager
    def _written(self, asked: Mapping[str, Any], action: str, target: str) -> Iterator[audit.Entry]:
        with audit.written(self._state, self._wall(), asked["actor"], action, target) as entry:
            yield entry
        self._fault = entry.fault

    def _fields(self, words: Mapping[str, str | None], known: Mapping[str, Attribute]) -> dict[str, Any]:
        """What is to change, by field.

        :raises BadParameter: a word is not what its attribute takes.
        """
        found: dict[str, Any] = {}
        for name, word in words.items():
            attribute = known[name]
            if word is None:
                found[attribute.field] = () if isinstance(getattr(_BLANK, attribute.field), tuple) else None
                continue
            try:
                found[attribute.field] = attribute.read(word)
            except ParseError as error:
                raise BadParameter(name, f"{error.message}.") from None
            if name == "expires" and found[attribute.field] <= self._wall():
                raise BadParameter(name, "found a time that has passed, expected one to come.")
        return found

    def _shown_key(self, key_id: str) -> dict[str, Any]:
        with self._used() as used:
            return key_as_json(self._key(key_id), self._wall(), used)

    def _shown_group(self, name: str) -> dict[str, Any]:
        keys = self._read()
        with self._used() as used:
            return group_as_json(keys.groups[name], keys.members.get(name, 0), self._wall(), used)

    def _told(self, key: Key) -> dict[str, Any]:
        return {**attributes_as_json(key), "disabled": key.disabled}

    def _doubts(self, before: Key | Group | None, after: Key | Group) -> list[str]:
        """Limits that cannot work as they are meant."""
        if isinstance(after, Group):
            found = [*doubts_of_tokens(f"the group {after.name}", after.tpm, self._settings)]
        else:
            found = [*doubts_of_key(f"the key {after.id}", after, self._settings, self._prices)]
        if before is not None:
            anew = begins_anew(_budget(before, self._settings), _budget(after, self._settings))
            found += [anew] if anew else []
        return [f"{doubt[:1].upper()}{doubt[1:]}." for doubt in found]


def _away(error: Exception) -> str:
    return f"The ledger of all machines cannot be read: {hide_keys(str(error))}."


_BLANK = Key("", b"")


def _as_csv(rows: list[dict[str, Any]], cut: bool) -> bytes:
    """Whole rows, a column each; nested values as JSON. What a spreadsheet would take for a formula is made text."""
    out = StringIO()
    writer = csv.writer(out)
    names = list(BLANK)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    if cut:
        writer.writerow([f"(cut: there are more than these {len(rows)} rows, or it took too long; narrow the search)"])
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list | bool):
        return orjson.dumps(value).decode()
    return defused(value) if isinstance(value, str) else str(value)


def _budget(of: Key | Group, settings: Settings) -> Any:
    return of.budget or (None if isinstance(of, Group) else budget_of(settings.limits))


def _names(key: Key, search: str) -> bool:
    return any(search in word.casefold() for word in (key.id, key.owner, key.group, key.note) if word)


def _not_empty(fields: Mapping[str, Any], what: str) -> None:
    if not fields:
        raise BadParameter("body", f"found nothing to change, expected {what}.")


def _pattern_of(field: str, pattern: str) -> str:
    """A condition's pattern.

    :raises ParseError: it is, or looks like, a whole key.
    """
    if hide_keys(pattern) != pattern or (field == "key" and "fsk-" in pattern):
        raise ParseError("found what looks like a key (not shown), expected a key's id: its 12 characters", key="where")
    return pattern
