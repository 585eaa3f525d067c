"""The index has each row of the journal once, whatever befalls it."""

from __future__ import annotations

import fcntl
import json
import lzma
import multiprocessing
import os
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.ledger import index as module
from flowstack.ledger import rollup
from flowstack.ledger.index import Index, Progress, bytes_behind
from flowstack.ledger.intake import _request_id
from flowstack.ledger.queries import Condition, Question, gaps, report, standing, total
from flowstack.ledger.schema import VERSION, Unusable, open_for_reading
from tests.ledger.journals import BEGIN, UNTOLD, agree, expected, figures, microseconds, rows, write
from tests.ledger.samples import row, told
from tests.rights import needs_root, public_folder, told_as_nobody

ROWS = rows(300, folded=True, settling=True)
ONE, TWO, THREE = "2026-11-22.w0.jsonl", "2026-11-23.w0.jsonl", "2026-11-23.w1.jsonl"


class Place:
    """A state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "ledger"
        self.path = folder / "ledger.sqlite"

    def write(self, name: str, some: Any, mode: str = "ab") -> None:
        write(self.journal / name, some, mode)

    def index(self) -> Index:
        return Index(self.path, self.journal)

    def catch_up(self) -> Progress:
        with self.index() as index:
            return index.catch_up()

    def has(self, some: Any) -> bool:
        """Whether the index has these rows and no others: in its table and, in the same numbers, in its sums."""
        connection = open_for_reading(self.path)
        try:
            ids = {bytes(row[0]) for row in connection.execute("SELECT request_id FROM rows")}
            question = Question(("key", "model"))
            found = {line.group: line.figures() for line in report(connection, question)}
            wanted = expected(some, question)
            return (
                ids == {bytes(_request_id(one["request_id"])) for one in some}
                and found.keys() == wanted.keys()
                and all(agree(found[group], wanted[group]) for group in wanted)
                and agree(total(report(connection, Question())).figures(), figures(some))
            )
        finally:
            connection.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_all_rows_of_all_files_are_taken_over_once(place: Place) -> None:
    place.write(ONE, ROWS[:100])
    place.write(THREE, ROWS[100:])
    assert place.catch_up() == Progress(300, 0, 0, 0, max(microseconds(one["started_at"]) for one in ROWS))
    assert place.has(ROWS)
    assert place.catch_up() == Progress()
    assert place.has(ROWS)


def test_no_journal_is_an_empty_index(place: Place) -> None:
    assert place.catch_up() == Progress()
    assert place.has([])


def test_a_journal_that_grows_is_taken_over_piece_by_piece(place: Place) -> None:
    with place.index() as index:
        for start in range(0, 300, 30):
            place.write(TWO if start % 60 else THREE, ROWS[start : start + 30])
            assert index.catch_up().rows == 30
    assert place.has(ROWS)


def test_a_limit_stops_it_and_says_how_much_is_left(place: Place) -> None:
    place.write(ONE, ROWS[:200])
    place.write(TWO, ROWS[200:])
    size = sum(path.stat().st_size for path in place.journal.iterdir())
    with place.index() as index:
        progress = index.catch_up(limit_rows=50)
        assert progress.rows == 50
        assert 0 < progress.behind < size
        assert bytes_behind(sqlite3.connect(place.path), place.journal) == progress.behind
        assert index.catch_up(limit_rows=0) == Progress(behind=progress.behind)
        assert index.catch_up().rows == 250
    assert place.has(ROWS)


@pytest.mark.parametrize("kept", range(1, 40, 3))
def test_a_torn_last_line_waits_until_it_is_whole(place: Place, kept: int) -> None:
    place.write(TWO, ROWS[:3])
    whole = (place.journal / TWO).read_bytes()
    end = len(whole) - len(whole.splitlines(keepends=True)[-1])
    (place.journal / TWO).write_bytes(whole[: end + kept])
    with place.index() as index:
        assert index.catch_up() == Progress(2, 0, 1, 0, max(microseconds(one["started_at"]) for one in ROWS[:2]))
        assert index.catch_up() == Progress(torn=1)
        with open(place.journal / TWO, "ab") as file:
            file.write(whole[end + kept :])
        assert index.catch_up().rows == 1
        assert index.catch_up() == Progress()
    assert place.has(ROWS[:3])


def test_a_torn_line_that_was_ended_by_the_next_writer_is_bad_and_those_after_it_count(place: Place) -> None:
    place.write(TWO, ROWS[:2])
    with open(place.journal / TWO, "ab") as file:
        file.write(b'{"v":1,"request_id":"00')
    assert place.catch_up().torn == 1
    with open(place.journal / TWO, "ab") as file:
        file.write(b"\n")
    place.write(TWO, ROWS[2:4])
    progress = place.catch_up()
    assert (progress.rows, progress.bad_lines, progress.torn) == (2, 1, 0)
    assert place.has(ROWS[:4])


BAD: dict[str, dict[str, Any]] = {
    "no id": {"request_id": None},
    "an id that is no text": {"request_id": ["x"] * 32},
    "no time": {"started_at": None},
    "no such time": {"started_at": "2026-13-01T00:00:00Z"},
    "a time before 1970": {"started_at": "1969-12-31T23:59:59Z"},
    "a key that is no text": {"key_id": 5},
    "an owner that is a list": {"owner": ["alice"]},
    "an end that is a list": {"end": []},
    "a status that is text": {"status": "200"},
    "a status beyond all": {"status": 2**63},
    "tokens below 0": {"prompt_tokens": -1},
    "tokens in parts": {"total_tokens": 1.5},
    "tokens that are text": {"cached_tokens": ""},
    "tokens beyond 64 bits": {"completion_tokens": 2**63},
    "more tokens than there are": {"reasoning_tokens": 10**12 + 1},
    "a cost that is text": {"cost_usd": "much"},
    "a negative cost": {"cost_usd": -1},
    "a boundless cost": {"cost_usd": 1e300},
    "a negative duration": {"duration_ms": -5.0},
    "an endless duration": {"duration_ms": 1e300},
    "requests that are none": {"requests": 0},
    "requests that are less than none": {"requests": -1},
    "requests that are text": {"requests": "2"},
    "half a request": {"requests": 1.5},
    "requests that are not known": {"requests": None},
    "more requests than there are": {"requests": 10**12 + 1},
    "attributes in a list": {"attributes": ["a"]},
    "an attribute that is a number": {"attributes": {"a": 1}},
    "an attribute that is a list": {"attributes": {"a": ["b"]}},
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_cannot_be_is_skipped_and_counted(place: Place, name: str) -> None:
    place.write(TWO, [ROWS[0], ROWS[1] | BAD[name], ROWS[2]])
    progress = place.catch_up()
    assert (progress.rows, progress.bad_lines) == (2, 1)
    assert place.has([ROWS[0], ROWS[2]])


@pytest.mark.parametrize(
    "line",
    [b"", b"\0\0\0", b"null", b"[]", b'"x"', b"{}", b'{"request_id":"a"}', b"{" * 5000, b"\xff\xfe", b"x" * 3_000_000],
    ids=["empty", "NUL", "null", "list", "text", "nothing", "an id alone", "nested", "no UTF-8", "three megabytes"],
)
def test_a_line_that_is_no_row_is_skipped_and_counted(place: Place, line: bytes) -> None:
    place.write(TWO, ROWS[:1])
    with open(place.journal / TWO, "ab") as file:
        file.write(line + b"\n")
    place.write(TWO, ROWS[1:2])
    progress = place.catch_up()
    assert (progress.rows, progress.bad_lines) == (2, 1)
    assert place.has(ROWS[:2])
    connection = open_for_reading(place.path)
    assert standing(connection).bad_lines == 1
    connection.close()


def test_a_later_version_s_row_is_taken_for_what_is_known_of_it(place: Place) -> None:
    place.write(TWO, [ROWS[0] | {"v": 2, "mood": "good"}])
    assert place.catch_up().rows == 1
    assert place.has(ROWS[:1])


@pytest.mark.parametrize("more", [{}, {"requests": 7}, {"end": "refused", "status": 503, "error_code": "busy"}])
def test_what_its_holder_asks_flowstack_itself_is_no_use_of_a_key(place: Place, more: dict[str, Any]) -> None:
    own = UNTOLD | {"path": "/flowstack/v1/usage", "method": "GET", "upstream": None, "attempts": 0} | more
    place.write(ONE, [*ROWS[:5], row(1) | own, *ROWS[5:10]])
    assert place.catch_up().rows == 10
    assert place.has(ROWS[:10])


def test_a_row_that_stands_in_two_files_counts_once(place: Place) -> None:
    place.write(ONE, ROWS[:50])
    place.write(TWO, ROWS[25:75])
    place.write(TWO, ROWS[70:80] + ROWS[70:80])
    assert place.catch_up().rows == 80
    assert place.has(ROWS[:80])


def test_rows_of_files_that_were_removed_stay(place: Place) -> None:
    place.write(ONE, ROWS[:100])
    place.write(TWO, ROWS[100:200])
    place.catch_up()
    (place.journal / ONE).unlink()
    place.write(THREE, ROWS[200:])
    assert place.catch_up().rows == 100
    assert place.has(ROWS)


@pytest.mark.parametrize("then", [ROWS[50:55], ROWS[50:100], ROWS[50:200], ROWS[:10], []])
def test_a_file_that_was_replaced_is_read_anew(place: Place, then: Any) -> None:
    place.write(TWO, ROWS[:50])
    place.catch_up()
    place.write(TWO, then, mode="wb")
    place.catch_up()
    assert place.has(ROWS[:50] + [one for one in then if one not in ROWS[:50]])
    place.write(TWO, ROWS[200:210])
    assert place.catch_up().rows == 10


def test_a_file_that_lost_its_end_with_the_machine_and_was_written_on_is_read_anew(place: Place) -> None:
    place.write(TWO, ROWS[:10])
    place.catch_up()
    lines = (place.journal / TWO).read_bytes().splitlines(keepends=True)
    (place.journal / TWO).write_bytes(b"".join(lines[:8]))
    place.write(TWO, ROWS[20:40])
    assert place.catch_up().rows == 20
    assert place.has(ROWS[:10] + ROWS[20:40])


def test_a_deleted_database_is_built_anew_also_under_an_open_index(place: Place) -> None:
    place.write(TWO, ROWS[:100])
    with place.index() as index:
        index.catch_up()
        place.path.unlink()  # and not the files beside it, as one does
        place.write(TWO, ROWS[100:])
        assert index.catch_up().rows == 300
        assert place.has(ROWS)
    for path in place.folder.glob("ledger.sqlite*"):
        path.unlink()
    assert place.catch_up().rows == 300
    assert place.has(ROWS)


@pytest.mark.parametrize("size", [0, 10, 100, 4096, 20_000])
def test_a_damaged_database_is_set_aside_and_built_anew(place: Place, size: int) -> None:
    place.write(TWO, ROWS)
    place.catch_up()
    data = bytearray(place.path.read_bytes())
    data[size : size + 30_000] = b"\x5a" * 30_000
    place.path.write_bytes(data)
    with told() as texts:
        place.write(TWO, rows(5, seed=2))
        place.catch_up()
    assert place.has(ROWS + rows(5, seed=2))
    assert any("is rebuilt" in text for text in texts)
    assert (place.folder / "ledger.sqlite.unusable").exists()


def test_a_file_that_is_no_database_is_set_aside(place: Place) -> None:
    place.path.write_bytes(b"hello\n" * 1000)
    place.write(TWO, ROWS)
    assert place.catch_up().rows == 300
    assert (place.folder / "ledger.sqlite.unusable").read_bytes() == b"hello\n" * 1000


def test_an_index_of_another_version_is_set_aside_whole(place: Place) -> None:
    place.write(TWO, ROWS)
    place.catch_up()
    connection = sqlite3.connect(place.path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(Unusable, match=f"version {VERSION + 1}, this Flowstack's has {VERSION}"):
        open_for_reading(place.path)
    assert place.catch_up().rows == 300
    old = sqlite3.connect(place.folder / "ledger.sqlite.unusable")
    assert old.execute("SELECT count(*) FROM rows").fetchone() == (300,)
    old.close()


EARLIER = Path(__file__).parent / "earlier"
"""What earlier versions of Flowstack wrote: an index of each earlier version, and its journal. In that of version 3 are
rows that settle others, stand for several, and tell a group."""


def written_before(version: int) -> list[dict[str, Any]]:
    """The rows of an earlier version's journal, as they are to be understood now."""
    lines = lzma.decompress((EARLIER / f"journal_{version}.jsonl.xz").read_bytes()).splitlines()
    new = {"group": None, "node": None, "cache_write_tokens": None}
    return [
        new | (one := json.loads(line)) | {"started_at": datetime.fromisoformat(one["started_at"])} for line in lines
    ]


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_a_journal_written_before_is_indexed_and_reported_as_it_was(place: Place, version: int) -> None:
    some = written_before(version)
    place.journal.mkdir()
    (place.journal / ONE).write_bytes(lzma.decompress((EARLIER / f"journal_{version}.jsonl.xz").read_bytes()))
    assert place.catch_up().rows == len(some) == 60
    assert place.has(some)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_an_index_of_an_earlier_version_is_carried_over_also_where_its_journal_is_gone(
    place: Place, version: int
) -> None:
    place.path.write_bytes(lzma.decompress((EARLIER / f"index_{version}.sqlite.xz").read_bytes()))
    some = written_before(version)
    assert any(one["total_tokens"] is None and one["prompt_tokens"] and one["completion_tokens"] for one in some)
    assert place.catch_up().rows == 0
    assert place.has(some)
    connection = open_for_reading(place.path)
    for field in ("group", "node", "day", "hour", "attribute:team"):  # sums of each span, and those of attributes
        assert agree(total(report(connection, Question((field,)))).figures(), figures(some))
    connection.close()
    place.write(TWO, ROWS)
    assert place.catch_up().rows == len(ROWS)
    assert place.has(some + ROWS)


def test_an_upgrade_that_fails_leaves_the_index_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old = lzma.decompress((EARLIER / "index_2.sqlite.xz").read_bytes())
    place.path.write_bytes(old)

    def full(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("flowstack.ledger.upgrades.roll_up", full)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            place.index()
    place.catch_up()
    assert place.has(written_before(2))


# What is settled later.


def asked_and_settled(**more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A background request that told no usage, and the row that settles it."""
    began = dict(row(request_id=f"{1:032x}", **UNTOLD))
    settles = {"requests": 0, "parent_request_id": began["request_id"], "status": 500, "end": "timeout"}
    return began, dict(row(request_id=f"{2:032x}", **more)) | settles


@pytest.mark.parametrize("first", ["the request", "what settles it"])
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "in two turns"])
def test_what_settles_a_request_adds_usage_and_no_request(place: Place, first: str, apart: bool) -> None:
    some = asked_and_settled(started_at=BEGIN)
    some = some if first == "the request" else some[::-1]
    place.write(ONE, some[:1])
    if apart:
        place.catch_up()
    place.write(TWO, some[1:])
    place.catch_up()
    place.catch_up()
    connection = open_for_reading(place.path)
    found = total(report(connection, Question(("day",)))).figures()
    assert gaps(connection, Question()) == []
    connection.close()
    assert (found["requests"], found["errors"], found["without_usage"], found["without_cost"]) == (1, 0, 0, 0)
    assert (found["total_tokens"], found["cost_nano_usd"]) == (1290, 2365000)
    assert found["duration_p50_ms"] == pytest.approx(2504.25, rel=0.05)
    assert place.has(some)


def test_a_group_that_only_settles_is_in_the_report(place: Place) -> None:
    began, settles = asked_and_settled(model="gpt-5")
    place.write(ONE, [began, settles])
    place.catch_up()
    assert asked(place, "model") == {("gpt-4o-2024-08-06",): 1, ("gpt-5",): 0}


@pytest.mark.parametrize("heard", [False, True])
def test_a_call_that_was_heard_is_not_without_usage_as_its_responses_tell_it(place: Place, heard: bool) -> None:
    call = dict(row(request_id=f"{1:032x}", **UNTOLD)) | {"status": 201}
    spoken = dict(row(request_id=f"{2:032x}")) | {"parent_request_id": call["request_id"]}
    aside = dict(row(request_id=f"{3:032x}", **UNTOLD)) | {
        "parent_request_id": call["request_id"], "status": 101, "method": "GET",
    }  # fmt: skip
    place.write(ONE, [call, spoken, aside] if heard else [call])
    place.catch_up()
    connection = open_for_reading(place.path)
    found = total(report(connection, Question())).figures()
    connection.close()
    assert (found["requests"], found["connections"]) == ((2, 1) if heard else (1, 0))
    assert found["without_usage"] == (0 if heard else 1)


def test_work_that_ends_without_usage_settles_nothing(place: Place) -> None:
    began, settles = asked_and_settled(**UNTOLD)
    place.write(ONE, [began, settles])
    place.catch_up()
    assert place.has([began, settles])
    connection = open_for_reading(place.path)
    assert total(report(connection, Question())).figures()["without_usage"] == 1
    connection.close()


def test_usage_of_a_settled_request_without_a_price_counts_as_a_row_without_one(place: Place) -> None:
    began, settles = asked_and_settled(cost_usd=None, unpriced="no price: gpt-9", model="gpt-9")
    place.write(ONE, [began, settles])
    place.catch_up()
    assert place.has([began, settles])
    connection = open_for_reading(place.path)
    (line,) = gaps(connection, Question())
    connection.close()
    assert line.group == ("gpt-9", None, "no price: gpt-9")
    assert (line.figures()["without_price"], line.figures()["without_cost"]) == (1, 1)


# Rows without a price or without usage.


def gaps_of(place: Place, *where: Condition) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    place.catch_up()
    connection = open_for_reading(place.path)
    lines = gaps(connection, Question((), where))
    connection.close()
    return {line.group: (line.figures()["without_price"], line.figures()["without_usage"]) for line in lines}


GAPS: dict[str, tuple[dict[str, Any], tuple[Any, ...], tuple[int, int]]] = {
    "a model without a price": (
        {"cost_usd": None, "unpriced": "no price: gpt-9", "model": "gpt-9"},
        ("gpt-9", None, "no price: gpt-9"), (1, 0),
    ),
    "no reason told, as before": ({"cost_usd": None}, ("gpt-4o-2024-08-06", None, None), (1, 0)),
    "no model: the endpoint": (
        {"cost_usd": None, "model": None, "model_requested": None, "path": "/v1/images/edits", "unpriced": "no model"},
        (None, "/v1/images/edits", "no model"), (1, 0),
    ),
    "ids in a path are one": (
        {"model": None, "model_requested": None, "path": "/v1/threads/thread_1/runs", **UNTOLD},
        (None, "/v1/threads/*/runs", "stream"), (0, 1),
    ),
    "a stream that told none": (UNTOLD, ("gpt-4o-2024-08-06", None, "stream"), (0, 1)),
    "an answer that told none": (UNTOLD | {"stream": False}, ("gpt-4o-2024-08-06", None, None), (0, 1)),
    "an answer that was cut": (UNTOLD | {"end": "client_gone"}, ("gpt-4o-2024-08-06", None, "cut"), (0, 1)),
    "a cut answer without a price": (
        {"usage_source": "partial", "cost_usd": None, "unpriced": "x", "end": "client_gone"},
        ("gpt-4o-2024-08-06", None, "x"), (1, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GAPS)
def test_which_models_and_endpoints_lack_a_price_or_usage_is_known(place: Place, name: str) -> None:
    more, group, counts = GAPS[name]
    place.write(ONE, [row(1), row(2, **more), row(3, **UNTOLD | {"method": "GET", "status": 200})])
    assert gaps_of(place) == {group: counts}


def test_gaps_are_those_of_the_rows_that_are_asked_for(place: Place) -> None:
    red, blue = ({"attributes": {"team": team}, "group": team, **UNTOLD} for team in ("red", "blue"))
    place.write(ONE, [row(1, **red), row(2, **blue), row(3, **blue, model="m")])
    silent = {("gpt-4o-2024-08-06", None, "stream"): (0, 1), ("m", None, "stream"): (0, 1)}
    assert gaps_of(place, Condition("attribute:team", ("b*",))) == silent
    assert gaps_of(place, Condition("group", ("blue",)), Condition("model", ("m",))) == {("m", None, "stream"): (0, 1)}
    assert gaps_of(place, Condition("group", ("",))) == {}


@pytest.mark.parametrize(
    ("parts", "total_tokens"),
    [
        ((110, 52, None), 162),
        ((110, 52, 12), 12),
        ((0, 0, None), 0),
        ((110, None, None), None),
        ((None, 52, None), None),
    ],
)
def test_a_total_that_no_upstream_gave_is_what_its_parts_come_to(
    place: Place, parts: tuple[int | None, ...], total_tokens: int | None
) -> None:
    prompt, completion, given = parts
    place.write(ONE, [row(prompt_tokens=prompt, completion_tokens=completion, total_tokens=given)])
    place.catch_up()
    connection = open_for_reading(place.path)
    found = total(report(connection, Question())).figures()
    connection.close()
    assert (found["total_tokens"], found["without_total_tokens"]) == (total_tokens, int(total_tokens is None))


# Words are clients', and bounded.


def words(place: Place, kind: str) -> set[str]:
    connection = open_for_reading(place.path)
    found = {word for (word,) in connection.execute("SELECT word FROM words WHERE kind GLOB ?", (kind,))}
    connection.close()
    return found


def asked(place: Place, *by: str) -> dict[tuple[Any, ...], int]:
    connection = open_for_reading(place.path)
    found = {line.group: line.requests for line in report(connection, Question(by))}
    connection.close()
    return found


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowstack.ledger.intake.MOST_NEW", {"model": 3, "attribute": 2, "attribute:": 4})


@pytest.mark.usefixtures("few")
def test_new_models_beyond_a_bound_a_day_and_key_count_as_other(place: Place) -> None:
    some = [one | {"model": f"m{number}", "started_at": BEGIN} for number, one in enumerate(ROWS[:50])]
    some = [one | {"key_id": "k1" if number < 40 else "k2"} for number, one in enumerate(some)]
    place.write(ONE, some)
    place.catch_up()
    requests = [one.get("requests", 1) for one in some]
    assert asked(place, "key", "model") == {
        ("k1", "m0"): requests[0], ("k1", "m1"): requests[1], ("k1", "m2"): requests[2],
        ("k1", "(other)"): sum(requests[3:40]),
        ("k2", "m40"): requests[40], ("k2", "m41"): requests[41], ("k2", "m42"): requests[42],
        ("k2", "(other)"): sum(requests[43:]),
    }  # fmt: skip
    assert sum(asked(place).values()) == sum(requests)


@pytest.mark.usefixtures("few")
def test_another_day_has_room_for_others_and_what_is_known_stays_known(place: Place) -> None:
    days = [BEGIN + timedelta(days=day) for day in range(3)]
    for day, at in enumerate(days):  # by an index that is opened anew each time, and must not forget what was brought
        for number in range(3):
            models = [f"d{day}m{number}", "d0m0", f"d{day}x{number}"]
            place.write(ONE, [
                ROWS[0] | {"request_id": f"{day}-{number}-{model}", "key_id": "k", "model": model, "started_at": at}
                for model in models
            ])  # fmt: skip
            place.catch_up()
    found = words(place, "model")
    assert found == {"d0m0", "d0x0", "d0m1", "d1m0", "d1x0", "d1m1", "d2m0", "d2x0", "d2m1", "(other)"}
    assert asked(place, "model")["d0m0",] == 3 * 3


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kept", [2, 50_000])
def test_attributes_beyond_a_bound_count_as_other_and_each_row_once(
    place: Place, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstack.ledger.intake.KEPT_WORDS", kept)
    some = [
        dict(row(f"{number:032x}", attributes={"team": f"t{number}", f"n{number}": "v", f"o{number}": "v"}))
        for number in range(20)
    ]
    place.write(ONE, [*some, dict(row(f"{99:032x}", attributes={"team": "t0"}))])
    place.catch_up()
    assert words(place, "attribute") == {"team", "n0", "(other)"}
    assert words(place, "attribute:team") == {"t0", "t1", "t2", "(other)"}
    assert asked(place, "attribute:team") == {("t0",): 2, ("t1",): 1, ("t2",): 1, ("(other)",): 17}
    assert asked(place, "attribute:(other)") == {("(other)",): 20, (None,): 1}
    assert asked(place, "attribute:n0") == {("v",): 1, (None,): 20}


def test_words_are_cut_and_say_so(place: Place) -> None:
    name, value = "n" * 1000, "v" * 4000
    place.write(ONE, [dict(row("1", model="m" * 500, attributes={name: value, "short": "v"}))])
    place.catch_up()
    assert asked(place, "model") == {("m" * 255 + "…",): 1}
    assert asked(place, f"attribute:{'n' * 255}…") == {("v" * 255 + "…",): 1}
    assert max(map(len, words(place, "*"))) == 256


def test_what_the_indexer_remembers_of_words_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowstack.ledger.intake.KEPT_WORDS", 50)
    place.write(ONE, [
        dict(row(f"{number}", model=f"m{number}", attributes={f"n{number % 30}": str(number).ljust(200 + number, "x")}))
        for number in range(400)
    ])  # fmt: skip
    with place.index() as index:
        index.catch_up()
        intake = index._intake
        assert len(intake._words) <= 50
        assert len(intake._sets) <= 50
        assert len(intake._dims) <= 50
        assert max(len(word) for _, word in intake._words._known) <= 256
        assert max(sum(map(len, sum(told[-1], ()))) for told in intake._dims) <= 4 * 256


def test_two_indexes_on_one_database_take_turns_and_take_nothing_twice(place: Place) -> None:
    with place.index() as one, place.index() as other:
        for start in range(0, 300, 20):
            place.write(TWO, ROWS[start : start + 20])
            first, second = (one, other) if start % 40 else (other, one)
            assert first.catch_up(limit_rows=7).rows == 7
            assert second.catch_up().rows == 13
            assert first.catch_up().rows == 0
    assert place.has(ROWS)


def _catch_up_often(path: Path, journal: Path, times: int) -> None:
    for _ in range(times):
        with Index(path, journal) as index:
            index.catch_up(limit_rows=11)


def test_several_processes_at_once_take_nothing_twice(place: Place) -> None:
    place.write(ONE, ROWS[:150])
    place.write(TWO, ROWS[150:])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_catch_up_often, args=(place.path, place.journal, 8)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert place.has(ROWS)


def test_a_failure_in_the_middle_leaves_the_index_as_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(TWO, ROWS[:100])
    with place.index() as index:
        index.catch_up()
        place.write(TWO, ROWS[100:])
        with monkeypatch.context() as patch:
            patch.setattr(module, "_KEEP", "INSERT INTO nowhere VALUES (?, ?, ?, ?)")
            with pytest.raises(sqlite3.OperationalError):
                index.catch_up()
        assert place.has(ROWS[:100])
        assert index.catch_up().rows == 200
    assert place.has(ROWS)


def test_a_database_that_another_program_holds_is_waited_for_and_then_told_of(place: Place) -> None:
    place.write(TWO, ROWS[:100])
    with place.index() as index:
        index.catch_up()
        other = sqlite3.connect(place.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        index._connection.execute("PRAGMA busy_timeout = 50")  # type: ignore[union-attr]
        place.write(TWO, ROWS[100:])
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            index.catch_up()
        other.execute("ROLLBACK")
        other.close()
        assert index.catch_up().rows == 200
    assert place.has(ROWS)


def test_rows_are_the_same_however_many_are_stored_and_rolled_up_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"intake.AT_ONCE": 3, "intake.KEPT_WORDS": 2, "combinations.KEPT": 3, "intake.MANY": 90,
                        "intake.MANY_BEHIND": 120, "rollup.AT_ONCE": 17, "rollup.TOGETHER": 2,
                        "index.BATCH_ROWS": 40}.items():  # fmt: skip
        monkeypatch.setattr(f"flowstack.ledger.{name}", value)
    place.write(TWO, ROWS)
    with place.index() as index:
        assert index.catch_up().rows == 300
    assert place.has(ROWS)


@given(st.sets(st.integers(0, 200)))
def test_of_following_spans_a_bounded_number_is_read_at_once_and_none_between_others(numbers: set[int]) -> None:
    runs = [list(run) for run in rollup._runs(sorted(numbers))]
    assert [one for run in runs for one in run] == sorted(numbers)
    for run in runs:
        assert run == list(range(run[0], run[-1] + 1))
        assert len(run) <= rollup.TOGETHER


def test_each_row_that_settles_counts_once_whether_the_request_was_rolled_up_or_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstack.ledger.intake.MANY", 30)
    some = rows(60, seed=3, settling=True, sockets=True)
    with place.index() as index:
        for one in some:
            place.write(TWO, [one])
            index.catch_up()
        assert place.has(some)
        place.write(TWO, some, mode="wb")  # another file of the same name and the same rows
        place.write(ONE, some)
        assert index.catch_up().rows == 0
    assert place.has(some)


def test_to_take_in_a_few_rows_is_as_little_work_in_a_large_index_as_in_a_small_one(place: Place) -> None:
    some = rows(3000, settling=True)
    steps = []
    with place.index() as index:
        for start, end in ((0, 100), (100, 120), (120, 2980), (2980, 3000)):
            place.write(TWO, some[start:end])
            done = [0]
            index._connection.set_progress_handler(lambda done=done: done.__setitem__(0, done[0] + 1), 10)  # type: ignore[union-attr]
            assert index.catch_up().rows == end - start
            steps.append(done[0])
    assert steps[3] <= steps[1]


def test_other_files_in_the_journal_s_directory_are_let_alone(place: Place) -> None:
    place.write(TWO, ROWS[:10])
    place.write("2026-11-23.w0.jsonl.bak", ROWS[10:20])
    place.write("notes.txt", ROWS[10:20])
    assert place.catch_up().rows == 10


def test_the_files_are_for_the_service_s_group_and_nobody_else(place: Place) -> None:
    place.write(TWO, ROWS[:10])
    mask = os.umask(0o022)
    try:
        with place.index() as index:
            index.catch_up()
            modes = {path.name: path.stat().st_mode & 0o777 for path in place.folder.glob("ledger.sqlite*")}
    finally:
        os.umask(mask)
    assert modes == {f"ledger.sqlite{end}": 0o640 for end in ("", "-wal", "-shm", ".lock")}


NAMES = ("ledger.sqlite", "ledger.sqlite-journal", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.lock")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_link_or_fifo_among_the_index_s_files_is_neither_followed_nor_waited_for(
    place: Place, name: str, kind: str
) -> None:
    place.write(TWO, ROWS[:10])
    assert place.catch_up().rows == 10
    target = place.folder / "made"
    (place.folder / name).unlink(missing_ok=True)
    if kind == "link":
        (place.folder / name).symlink_to(target)
    else:
        os.mkfifo(place.folder / name)
    with pytest.raises(OSError, match=rf"a (symbolic )?{kind}, no regular file"):
        place.index()
    assert not target.exists()


def test_a_fifo_in_the_journal_is_passed_over(place: Place) -> None:
    place.write(TWO, ROWS[:10])
    os.mkfifo(place.journal / ONE)
    assert place.catch_up().rows == 10


def test_a_writer_that_stands_still_is_named_and_not_waited_for_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstack.ledger.index.LOCK_SECONDS", 0.1)
    place.write(TWO, ROWS[:10])
    held = os.open(place.folder / "ledger.sqlite.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=rf"its lock is held by process {os.getpid()} .* for 0\.1 s, which"):
            place.index()
    finally:
        os.close(held)
    assert place.catch_up().rows == 10


@needs_root
def test_a_file_that_may_not_be_read_holds_up_no_other() -> None:
    with public_folder() as folder:
        place = Place(folder)
        place.write(ONE, ROWS[:10])
        place.write(TWO, ROWS[10:20])
        (place.journal / ONE).chmod(0)
        os.chown(folder, 65534, 65534)
        found = told_as_nobody(
            "from flowstack.ledger.index import Index",
            """
            with Index(path / "ledger.sqlite", path / "ledger") as index:
                print(index.catch_up().rows, index.catch_up().rows)
                os.umask(0)
            """,
            folder,
        )
        assert found == "10 0\n"
        (place.journal / ONE).chmod(0o644)
        assert place.catch_up().rows == 10
        assert place.has(ROWS[:20])
