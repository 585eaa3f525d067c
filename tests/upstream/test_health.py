"""Whether a target is up, on a clock of the test's own."""

from __future__ import annotations

from array import array
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from flowstack.config import Target as TargetSettings
from flowstack.config import Upstream
from flowstack.config.settings import Fallback, Retry
from flowstack.config.settings import Health as Rules
from flowstack.upstream.health import CELLS, PROBE, SECONDS, Health, Recent
from flowstack.upstream.routes import Origin
from flowstack.upstream.targets import Course, Target


def failing(health: Health, now: float, times: int) -> float:
    return max(health.failed(now) for _ in range(times))


def test_failures_in_a_row_take_it_down_for_a_time_that_grows_and_is_bounded() -> None:
    health = Health(Rules(failures=3, eject=1.0, eject_max=5.0, failure_share=1.0))
    assert failing(health, 0, 2) == 0
    assert not health.succeeded(0)
    assert failing(health, 0, 2) == 0
    assert (health.failed(0), health.down) == (1.0, True)
    now = 0.0
    for seconds in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert not health.may_probe(now + seconds - 0.01)
        now += seconds
        assert health.may_probe(now)
        health.probe(now)
        assert not health.may_probe(now)
        assert health.failed(now) == min(5.0, seconds * 2)
    now += 5.0
    health.probe(now)
    assert health.succeeded(now)
    assert not health.down


def test_it_begins_anew_once_it_was_well_for_long_enough() -> None:
    health = Health(Rules(failures=1, eject=1.0, eject_max=5.0))
    assert health.failed(0) == 1.0
    health.probe(1)
    assert health.succeeded(1)
    assert health.failed(3) == 2.0
    health.probe(5)
    health.succeeded(5)
    assert health.failed(11) == 1.0


def test_what_was_sent_before_it_went_down_makes_it_no_worse() -> None:
    health = Health(Rules(failures=1, eject=1.0))
    health.failed(0)
    assert failing(health, 0.5, 10) == 0
    assert health.may_probe(1.0)


def test_nor_does_a_good_end_of_that_bring_it_back() -> None:
    health = Health(Rules(failures=1, eject=1.0))
    health.failed(0)
    assert not health.succeeded(0.5)
    assert health.down and not health.well
    health.probe(1)
    assert health.succeeded(1.5)
    assert health.well


def test_a_probe_that_never_ends_lets_another_one_follow() -> None:
    health = Health(Rules(failures=1, eject=1.0))
    health.failed(0)
    health.probe(1)
    assert not health.may_probe(PROBE + 0.9)
    assert health.may_probe(PROBE + 1)


def test_a_share_of_failures_takes_it_down_once_there_are_enough_requests() -> None:
    health = Health(Rules(failures=1000, failure_share=0.5, failure_share_requests=20))
    for _ in range(9):
        health.requests += 2
        assert health.failed(0) == 0
        health.succeeded(0)
    health.requests += 1
    assert health.failed(0) == 0  # 10 of 19
    health.succeeded(0)
    health.requests += 1
    assert health.failed(0) > 0  # 11 of 20
    old = Health(Rules(failures=1000, failure_share=0.5, failure_share_requests=20))
    for _ in range(18):
        old.requests += 1
        old.failed(0)
    old.note(1)
    for _ in range(3):
        old.requests += 1
        assert old.failed(SECONDS + 1) == 0  # what is old does not count


def test_workers_that_share_cells_know_the_same() -> None:
    cells = array("d", [0.0] * CELLS)
    rules = Rules(failures=4)
    one, other = Health(rules, cells), Health(rules, cells)
    for health in (one, other, one):
        assert health.failed(0) == 0
    assert other.failed(0) > 0
    assert one.down
    other.probe(2)
    assert not one.may_probe(2)
    assert one.succeeded(3)
    assert not other.down


def test_a_target_that_is_back_gets_its_weight_by_and_by() -> None:
    health = Health(Rules(failures=1, slow_start=10.0))
    assert health.share(0) == 1.0
    health.failed(0)
    health.probe(100)
    health.succeeded(100)
    assert [health.share(now) for now in (100, 105, 110)] == [0.1, 0.5, 1.0]


@given(st.lists(st.tuples(st.floats(0.5, 3), st.integers(0, 9)), max_size=60))
def test_what_grew_lately_is_known_to_the_second(events: list[tuple[float, int]]) -> None:
    recent, seen, now, count = Recent(), list[tuple[float, int]](), 0.0, 0
    for pause, grows in events:
        now += pause
        recent.note(now, count)
        seen.append((now, count))
        count += grows
        before = [noted for then, noted in seen if then <= now - SECONDS]
        assert recent.grown(now, count) == count - (before[-1] if before else 0)


def test_further_attempts_are_a_share_of_the_requests_or_a_few() -> None:
    one = course([1], retry=Retry(budget=0.2, budget_least=3))
    spent = 0
    for _ in range(100):
        one.requests += 1
        while one.may_repeat(0):
            one.repeats()
            spent += 1
    assert spent == 20
    one.note(1)
    assert not one.may_repeat(SECONDS + 0.5)
    assert one.may_repeat(SECONDS + 1)
    assert not course([1], retry=Retry(budget=0.0, budget_least=0)).may_repeat(0)
    assert not course([1]).may_repeat(0)


def course(
    weights: list[int], rules: Rules | None = None, fallback: bool = False, retry: Retry | None = None
) -> Course:
    rules = rules or Rules(failures=1)
    settings = Upstream(
        targets=tuple(TargetSettings(f"t{n}", f"http://t{n}/v1", weight) for n, weight in enumerate(weights)),
        health=rules,
        fallback=Fallback("other") if fallback else None,
        retry=retry,
    )
    origins = Origin.all_of(settings)
    return Course(
        settings, [Target(o, w, None, Health(rules), None) for o, w in zip(origins, weights, strict=True)]
    )  # fmt: skip


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_requests_one_after_the_other_are_shared_out_by_weight(weights: list[int]) -> None:
    one = course(weights)
    asked = [one.choose(0.0) for _ in range(10 * sum(weights))]
    for target, weight in zip(one.targets, weights, strict=True):
        assert abs(asked.count(target) - 10 * weight) <= 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**32))
def test_of_requests_that_overlap_each_goes_to_the_least_busy_target(weights: list[int], seed: int) -> None:
    one, random, running = course(weights), Random(seed), list[Target]()
    for _ in range(100):
        target = one.choose(0.0)
        assert target is not None
        assert target.in_flight / target.weight == min(each.in_flight / each.weight for each in one.targets)
        target.in_flight += 1
        running.append(target)
        while running and random.random() < 0.4:
            running.pop(random.randrange(len(running))).in_flight -= 1


def test_one_that_comes_back_is_not_flooded() -> None:
    one = course([1, 1])
    back, up = one.targets
    back.health.failed(0)
    for _ in range(100):
        assert one.choose(0.5) is up
    back.health.probe(1)
    back.health.succeeded(1)
    assert sum(one.choose(1) is back for _ in range(10)) <= 6


@given(
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.sets(st.integers(0, 4)),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.5, 2.0]),
)
def test_no_target_is_asked_that_was_tried_or_is_down(
    down: list[bool], tried: set[int], panic: float, fallback: bool, again: bool, now: float
) -> None:
    one = course([1] * len(down), Rules(failures=1, panic=panic, eject=1.0), fallback)
    for target, is_down in zip(one.targets, down, strict=True):
        if is_down:
            target.health.failed(0)
    left_out = [target for number, target in enumerate(one.targets) if number in tried]
    ignores = not fallback and 0 < panic < sum(down) / len(down)
    able = [t for t in one.targets if t not in left_out and (ignores or not t.health.down or t.health.may_probe(now))]
    assert one.others(now, left_out) or not able or ignores
    target = one.choose(now, left_out, again)
    assert (target is None) == (not able)
    if target is not None:
        assert target in able
        if not again and not ignores and any(not one.health.down for one in able):
            assert not target.health.down  # who cannot be sent again tries nothing
