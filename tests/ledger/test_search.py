"""Rows looked for in the journal: the latest end first, each once, from where it ended on; beside a plain search."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from flowstack.errors import ParseError
from flowstack.ledger import search
from flowstack.ledger.queries import Condition
from flowstack.ledger.search import Filter, Found, newer, older, row_of
from tests.ledger.journals import write
from tests.ledger.samples import row

DAY = datetime(2026, 11, 20, tzinfo=UTC)
SECONDS = 60.0


def microseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e6)


class Journal:
    """Days of rows of two workers, in the order in which they ended."""

    def __init__(self, folder: Path, count: int = 600, days: int = 4) -> None:
        self.folder = folder / "ledger"
        chance = random.Random(1)
        ends = sorted(DAY + timedelta(days=days) * chance.random() for _ in range(count))
        self.rows = [self._row(number, end, chance) for number, end in enumerate(ends)]
        for number, one in enumerate(self.rows):
            self.append(one, ends[number], chance.randrange(2))

    @staticmethod
    def _row(number: int, end: datetime, chance: random.Random) -> dict[str, Any]:
        took = chance.choice((0.5, 800.25, 30_000.0, 1_500_000.0))
        made: dict[str, Any] = dict(row(
            request_id=f"{number:032x}", started_at=end - timedelta(milliseconds=took), duration_ms=took,
            key_id=chance.choice(("k1", "k2")), owner=chance.choice((None, "alice", "Smith, John", "Zoë 🦊")),
            status=chance.choice((None, 200, 429, 500, 503)), model=chance.choice((None, "gpt-4o-mini", "o3")),
            attributes=chance.choice((None, {"team": "red"}, {"team": "<b>"})),
            cost_usd=chance.choice((None, 0.5, 2.0)),
            end=chance.choice(("complete", "timeout")), upstream_request_id=f"req_{number}",
        ))  # fmt: skip
        return made

    def append(self, one: dict[str, Any], end: datetime, worker: int = 0) -> None:
        write(self.folder / f"{end:%Y-%m-%d}.w{worker}.jsonl", [one])

    def plain(self, wanted: Filter) -> list[str]:
        """What must be found, the plainest way."""
        return [one["request_id"] for one in reversed(self.rows) if wanted.fits(as_read(one))]

    def pages(self, wanted: Filter, limit: int = 7, **more: Any) -> Iterator[Found]:
        cursor: str | None = None
        while True:
            found = older(self.folder, wanted, limit, cursor, SECONDS, **more)
            yield found
            cursor = found.older
            if cursor is None:
                return


def as_read(one: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(orjson.dumps(one, option=orjson.OPT_UTC_Z))
    return read


def ids(*pages: Found) -> list[str]:
    return [one["request_id"] for page in pages for one in page.rows]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    return Journal(tmp_path_factory.mktemp("search"))


def at(days: float) -> int:
    return microseconds(DAY + timedelta(days=days))


FILTERS = [
    Filter(),
    Filter(where=(Condition("key", ("k1",)),)),
    Filter(where=(Condition("owner", ("",)),)),
    Filter(where=(Condition("owner", ("Smith, John", "Zo*")),)),
    Filter(where=(Condition("status", ("5*", "429")), Condition("status", ("50*",)))),
    Filter(where=(Condition("status", ("",)), Condition("end", ("timeout",)))),
    Filter(where=(Condition("model", ("gpt-4o*",)),)),
    Filter(where=(Condition("attribute:team", ("<b>",)),)),
    Filter(where=(Condition("attribute:team", ("",)), Condition("key", ("nobody",)))),
    Filter(ids=(f"{77:032x}",)),
    Filter(ids=("req_78",)),
    Filter(ids=("none",)),
    Filter(cost=(1.0, None)),
    Filter(cost=(None, 1.0), duration=(800.0, 30_000.0)),
    Filter(since=at(1.2)),
    Filter(until=at(2.3)),
    Filter(since=at(1.2), until=at(1.3), where=(Condition("upstream", ("openai",)),)),
    Filter(since=at(9)),
    Filter(until=at(-1)),
]


@pytest.mark.parametrize("block", [2500, 20_000, 256 * 1024])
@pytest.mark.parametrize("wanted", FILTERS)
def test_pages_are_a_plain_search_cut_in_pieces(
    journal: Journal, wanted: Filter, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_BLOCK", block)
    pages = list(journal.pages(wanted))
    assert ids(*pages) == journal.plain(wanted)
    assert all(len(page.rows) == 7 for page in pages[:-1])


@pytest.mark.parametrize("wanted", FILTERS)
def test_hours_that_are_known_to_hold_nothing_leave_nothing_out(journal: Journal, wanted: Filter) -> None:
    began = {microseconds(one["started_at"]) // 3_600_000_000 for one in journal.rows if wanted.fits(as_read(one))}
    found = list(journal.pages(wanted, hours=lambda: began))
    assert ids(*found) == journal.plain(wanted)


def test_what_is_cut_off_by_its_time_goes_on_where_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_BLOCK", 2000)
    ticks = iter(range(10**9))
    pages = 0
    for wanted in FILTERS[:14]:
        found, cursor = [], None
        while True:
            page = older(journal.folder, wanted, 50, cursor, 20.0, clock=lambda: float(next(ticks)))
            found.append(page)
            pages += 1
            if page.older is None:
                break
            assert page.older != cursor, "it came no further"
            cursor = page.older
        assert ids(*found) == journal.plain(wanted)
    assert pages > 100


def test_rows_that_come_meanwhile_move_no_page_and_are_found_by_the_newer_cursor(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 40, 2)
    first = older(journal.folder, Filter(), 10, None, SECONDS)
    later = DAY + timedelta(days=2, hours=5)
    for number in range(5):
        new = Journal._row(1000 + number, later, random.Random(number))
        journal.append(new, later if number % 2 else DAY + timedelta(days=1, hours=23), number % 2)
    rest = []
    cursor = first.older
    while cursor is not None:
        rest.append(older(journal.folder, Filter(), 10, cursor, SECONDS))
        cursor = rest[-1].older
    assert ids(first, *rest) == journal.plain(Filter())
    new = newer(journal.folder, Filter(), 10, first.newer, SECONDS)
    assert sorted(ids(new)) == [f"{1000 + number:032x}" for number in range(5)]
    assert ids(newer(journal.folder, Filter(), 10, new.newer, SECONDS)) == []
    assert len(ids(newer(journal.folder, Filter(), 3, first.newer, SECONDS))) == 3


def test_the_tail_of_an_empty_journal_begins_with_its_first_row(tmp_path: Path) -> None:
    found = older(tmp_path / "ledger", Filter(), 10, None, SECONDS)
    assert (found.rows, found.older) == ([], None)
    write(tmp_path / "ledger" / "2026-11-20.w0.jsonl", [row(1)])
    assert ids(newer(tmp_path / "ledger", Filter(), 10, found.newer, SECONDS)) == ["1"]


def test_lines_that_are_damaged_or_not_whole_yet_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "2026-11-23.w0.jsonl"
    write(path, [row(1)])
    with open(path, "ab") as file:
        file.write(b'\n{}\n[]\nnull\n{"request_id":5}\n' + b"x" * 300_000 + b"\n")
    write(path, [row(2)])
    with open(path, "ab") as file:
        file.write(orjson.dumps(row(3))[:-20])
    found = older(path.parent, Filter(), 10, None, SECONDS)
    assert ids(found) == ["2", "1"]
    with open(path, "ab") as file:
        file.write(orjson.dumps(row(3))[-20:] + b"\n")
    assert ids(newer(path.parent, Filter(), 10, found.newer, SECONDS)) == ["3"]


@pytest.mark.parametrize("cursor", ["", "x", "W10", "e30=", "W1siLi4vZXRjL3Bhc3N3ZCIsMF1d", "é",
                                    "W1siMjAyNi0xMS0yMy53MC5qc29ubCIsLTFdXQ=="])  # fmt: skip
def test_a_cursor_that_is_not_ours_is_refused_and_opens_nothing(journal: Journal, cursor: str) -> None:
    for ask in (lambda: older(journal.folder, Filter(), 1, cursor, SECONDS),
                lambda: newer(journal.folder, Filter(), 1, cursor, SECONDS)):  # fmt: skip
        with pytest.raises(ParseError, match="found no cursor"):
            ask()


def test_one_row_is_found_by_its_id_however_long_it_went_on(journal: Journal, tmp_path: Path) -> None:
    wanted = journal.rows[123]
    for began in (None, microseconds(wanted["started_at"])):
        assert row_of(journal.folder, wanted["request_id"], began, SECONDS) == as_read(wanted)
    assert row_of(journal.folder, "none", None, SECONDS) is None
    long = row(5, started_at=DAY, duration_ms=26 * 3_600_000.0)
    write(tmp_path / "ledger" / "2026-11-21.w0.jsonl", [long])
    found = row_of(tmp_path / "ledger", "5", microseconds(DAY), SECONDS)
    assert found is not None
    assert found["request_id"] == "5"
