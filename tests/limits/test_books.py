from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.config.settings import Limits, Settings, Upstream
from flowstack.errors import BudgetExceeded
from flowstack.limits.books import Books, Standing, open_books
from flowstack.limits.counters import CELL, CountersError, boot_id
from flowstack.limits.money import NANO
from flowstack.limits.plans import slot_name
from flowstack.limits.restore import open_counters

from .lab import Lab, key, reserve, row, usd, used

LIMITED = key("k", rpm=10, tpm=1000, max_parallel=4, budget=usd("5"))


@pytest.fixture(params=[1, 3])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    return Lab(counters=open_counters(tmp_path / "limits", request.param))


def figures(standings: list[Standing]) -> dict[str, tuple[int, int]]:
    return {standing.limit: (standing.most, standing.used) for standing in standings}


def beside(tmp_path: Path, lab: Lab) -> list[Standing]:
    """What the operator sees, of the clocks of the lab."""
    with open_books(tmp_path) as books:
        assert books is not None
        books._wall, books._look._wall = lab.wall, lab.wall
        books._monotonic, books._look._monotonic = lab.monotonic, lab.monotonic
        return books.standings("k", LIMITED, Settings())


def reset(tmp_path: Path, lab: Lab) -> int:
    with open_books(tmp_path) as books:
        assert books is not None
        books._wall, books._look._wall = lab.wall, lab.wall
        budget = next(each for each in books.standings("k", LIMITED, Settings()) if each.limit == "budget")
        return books.reset(budget)


def test_the_standing_of_each_limit_is_what_all_workers_counted(lab: Lab, tmp_path: Path) -> None:
    empty = {"rpm": (10, 0), "tpm": (1000, 0), "max_parallel": (4, 0), "budget": (5 * NANO, 0)}
    assert figures(beside(tmp_path, lab)) == figures(lab.limiters[0].standings(LIMITED)) == empty
    assert lab.counters.count == 0  # who looks makes no slot
    first, last = lab.limiters[0], lab.limiters[-1]
    held = reserve(first, LIMITED, tokens=100, cost=1.0)
    reserve(last, LIMITED, tokens=50, cost=0.5)
    first.settle(held, used(30, 0.25))
    for standings in (beside(tmp_path, lab), first.standings(LIMITED), last.standings(LIMITED)):
        assert figures(standings) == {
            "rpm": (10, 2), "tpm": (1000, 80), "max_parallel": (4, 1), "budget": (5 * NANO, 750_000_000),
        }  # fmt: skip
        resets = {each.limit: each.reset for each in standings}
        assert resets["max_parallel"] is None
        assert 55 <= (resets["rpm"] or 0) <= 62 and 55 <= (resets["tpm"] or 0) <= 62
        assert 0 < (resets["budget"] or 0) <= 31 * 86_400
    lab.go_on(63)
    assert figures(beside(tmp_path, lab))["rpm"] == (10, 0)
    lab.go_on(40 * 86_400)
    assert figures(beside(tmp_path, lab))["budget"] == (5 * NANO, 0)


def test_a_limit_of_an_upstream_stands_beside_those_of_all_requests() -> None:
    settings = Settings(
        upstreams=(
            Upstream("a", "https://a.test/v1", limits=Limits(rpm=7)),
            Upstream("b", "https://b.test/v1", limits=Limits(budget="2.00usd/day")),
        ),
        limits=Limits(rpm=9, tpm=500),
    )
    lab = Lab(2, settings)
    limited = key("k")
    reserve(lab.limiters[0], limited, "a"), reserve(lab.limiters[1], limited, "b", tokens=10, cost=0.5)
    standings = lab.limiters[0].standings(limited)
    assert {(each.limit, each.scope): (each.most, each.used) for each in standings} == {
        ("rpm", "a"): (7, 1), ("rpm", ""): (9, 1), ("tpm", ""): (500, 10), ("budget", "b"): (2 * NANO, NANO // 2),
    }  # fmt: skip


def test_a_budget_that_is_reset_begins_anew_while_the_service_runs(lab: Lab, tmp_path: Path) -> None:
    first, last = lab.limiters[0], lab.limiters[-1]
    for limiter in (first, last):
        limiter.settle(reserve(limiter, LIMITED, tokens=10, cost=2.5), row(started_at=None))
    with pytest.raises(BudgetExceeded):
        reserve(first, LIMITED, tokens=10, cost=0.25)
    lab.go_on(5)
    assert reset(tmp_path, lab) == 5 * NANO
    assert figures(beside(tmp_path, lab))["budget"] == (5 * NANO, 0)
    reserve(first, LIMITED, tokens=10, cost=3.0)
    with pytest.raises(BudgetExceeded):
        reserve(last, LIMITED, tokens=10, cost=2.25)
    reserve(last, LIMITED, tokens=10, cost=2.0)
    lab.go_on(5)
    assert reset(tmp_path, lab) == 5 * NANO
    assert reset(tmp_path, lab) == 0


def test_what_was_under_way_at_a_reset_is_charged_with_what_it_costs_in_the_end(lab: Lab, tmp_path: Path) -> None:
    limiter, started = lab.limiters[0], datetime.fromtimestamp(lab.wall(), UTC)
    held = reserve(limiter, LIMITED, tokens=10, cost=4.0)
    kept = reserve(lab.limiters[-1], LIMITED, tokens=10, cost=1.0).kept()
    lab.go_on(0.001)
    assert reset(tmp_path, lab) == 5 * NANO
    limiter.settle(held, {**used(10, 0.5), "started_at": started})  # type: ignore[typeddict-item]
    assert figures(beside(tmp_path, lab))["budget"][1] == NANO // 2
    assert kept is not None
    limiter.settle_later(kept, used(10, 0.125))
    assert figures(beside(tmp_path, lab))["budget"][1] == NANO * 5 // 8


def test_what_begins_in_the_same_second_after_a_reset_is_charged_once(lab: Lab, tmp_path: Path) -> None:
    limiter = lab.limiters[0]
    reserve(limiter, LIMITED, tokens=10, cost=4.0)
    reset(tmp_path, lab)
    lab.go_on(0.001)
    held = reserve(limiter, LIMITED, tokens=10, cost=3.0)
    kept = reserve(lab.limiters[-1], LIMITED, tokens=10, cost=1.0).kept()
    started = datetime.fromtimestamp(lab.wall(), UTC)
    limiter.settle(held, {**used(10, 0.5), "started_at": started})  # type: ignore[typeddict-item]
    assert kept is not None
    limiter.settle_later(kept, used(10, 0.125))
    assert figures(beside(tmp_path, lab))["budget"][1] == NANO * 5 // 8


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_reset_survives_a_restart(tmp_path: Path, workers: int) -> None:
    lab = Lab(counters=open_counters(tmp_path / "limits", 2, boot=7))
    reserve(lab.limiters[1], LIMITED, tokens=10, cost=4.0)
    lab.go_on(5)
    reset(tmp_path, lab)
    kept = reserve(lab.limiters[1], LIMITED, tokens=10, cost=1.0).kept()
    (tmp_path / "limits" / "lock").unlink()
    again = Lab(counters=open_counters(tmp_path / "limits", workers, lab.wall, lab.monotonic, boot=7))
    again.wall.now, again.monotonic.now = lab.wall.now, lab.monotonic.now
    assert figures(beside(tmp_path, again))["budget"][1] == NANO
    assert kept is not None
    again.limiters[0].settle_later(kept, used(10, 0.5))
    assert figures(beside(tmp_path, again))["budget"][1] == NANO // 2
    assert not list((tmp_path / "limits").glob("*damaged*"))


def test_a_service_that_never_counted_has_no_books_and_other_files_are_named(tmp_path: Path) -> None:
    with open_books(tmp_path) as books:
        assert books is None
    (tmp_path / "limits").mkdir()
    lab = Lab(counters=open_counters(tmp_path / "whole", 2))
    for number in range(100):
        reserve(lab.limiters[0], key(f"k{number}", rpm=1))
    whole = (tmp_path / "whole" / "counters").read_bytes()
    for content in (b"", b"x" * 10_000, whole[: len(whole) // 2], whole[:4096] + b"\xff" * 8):
        (tmp_path / "limits" / "counters").write_bytes(content)
        with pytest.raises(CountersError, match="are damaged, or another version's"), open_books(tmp_path):
            pass


@pytest.mark.parametrize(("boot", "ahead"), [(7, 0.0), (7, -4000.0), (boot_id(), -4000.0)])
def test_windows_of_another_boot_or_of_the_future_count_nothing_and_are_not_waited_for(
    tmp_path: Path, boot: int, ahead: float
) -> None:
    lab = Lab(counters=open_counters(tmp_path / "limits", 2, boot=boot))
    reserve(lab.limiters[1], LIMITED, tokens=10, cost=1.0)
    lab.go_on(ahead)
    found = figures(beside(tmp_path, lab))
    assert (found["rpm"], found["tpm"], found["budget"]) == ((10, 0), (1000, 0), (5 * NANO, NANO))


def test_a_budget_by_another_period_is_known_with_what_was_spent_of_it(lab: Lab, tmp_path: Path) -> None:
    by_day = key("k", budget=usd("5", "day"))

    def before() -> tuple[str, int] | None:
        with open_books(tmp_path) as books:
            assert books is not None
            books._wall, books._look._wall = lab.wall, lab.wall
            (budget,) = books.standings("k", by_day, Settings())
            assert budget.used == 0 or found
            return books.spent_before(budget)

    found = False
    assert before() is None
    reserve(lab.limiters[-1], LIMITED, tokens=10, cost=1.5)
    assert before() == ("month", 1_500_000_000)
    lab.go_on(40 * 86_400)
    assert before() is None
    lab.go_on(-40 * 86_400)
    reserve(lab.limiters[0], by_day, tokens=10, cost=0.5)
    found = True
    assert before() is None


def test_when_a_budget_was_reset_is_known(lab: Lab, tmp_path: Path) -> None:
    reserve(lab.limiters[0], LIMITED, tokens=10, cost=1.5)
    with open_books(tmp_path) as books:
        assert books is not None
        budget = books.standings("k", LIMITED, Settings())[-1]
        assert books.reset_at(budget) == 0
    reset(tmp_path, lab)
    with open_books(tmp_path) as books:
        assert books is not None
        assert books.reset_at(budget) == int(lab.wall() * 1e6)


@given(st.binary(min_size=8, max_size=200), st.integers(0, 1200))
def test_whatever_stands_in_a_slot_is_read_without_harm_and_is_never_less_than_nothing(
    harmed: Lab, garbage: bytes, place: int
) -> None:
    counters = harmed.counters
    octets = counters.cells.cast("B")
    at = counters.slot(slot_name("k", "")) * CELL
    tag, size = 2 * CELL, counters.layout.cells * CELL
    whole = bytes(octets[at : at + size])
    begin = min(tag + place, size - len(garbage))
    try:
        octets[at + begin : at + begin + len(garbage)] = garbage
        for standing in Books(counters, harmed.wall, harmed.monotonic).standings("k", LIMITED, Settings()):
            assert standing.used >= 0 and standing.left >= 0
            assert standing.reset is None or standing.reset >= 0
    finally:
        octets[at : at + size] = whole


@pytest.fixture(scope="module")
def harmed() -> Lab:
    lab = Lab(2)
    reserve(lab.limiters[0], LIMITED, tokens=10, cost=1.0)
    return lab
