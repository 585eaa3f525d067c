"""Two machines of two workers, behind HAProxy, with one Redis and one PostgreSQL, while each of these is killed, or cut
off, in the middle of load and streams.

What is counted is counted at the upstream: no limit is exceeded by more than the manual says
(``docs/howto/several-machines.rst``). Each row is in PostgreSQL once afterwards.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from attrs import define

from tests.e2e.crowd import codes, cost, crowd, journal
from tests.e2e.machines import (
    ADMIN,
    AGENT,
    COMPLETION,
    MACHINES,
    OPENAI_KEY,
    PASSWORD,
    PROMPT,
    SHARE,
    UNAVAILABLE,
    WORKERS,
    Held,
    Load,
    Place,
    place,
    told,
)
from tests.e2e.processes import PATIENCE, contents, eventually, invoke, stop_all, that_run
from tests.e2e.raw import Answer, assert_own_error
from tests.e2e.test_metrics import get
from tests.e2e.test_page_api import Browser
from tests.ledger.servers import PASSWORD as POSTGRES_PASSWORD
from tests.ledger.servers import Server, server

pytestmark = pytest.mark.e2e

RPM, PARALLEL, USD = 60, 5, 0.02
EACH = cost(PROMPT, COMPLETION)
"""What each answer costs, and declares that it may cost, but for its prompt."""

LOADS = {"load": f"rpm={RPM} max_parallel={PARALLEL}", "money": f"budget={USD}usd/total max_parallel={PARALLEL}"}
QUIET = {"hold": f"max_parallel={PARALLEL} budget=5usd/total", "free": "rpm=100000"}
TROUBLES = ("killed", "unplugged", "unheard")
KEYS = {
    "anyone": "rpm=100000",
    "at once": f"rpm={RPM} max_parallel={PARALLEL} budget=1usd/total",
    "at once, money": f"rpm={RPM} max_parallel={PARALLEL} budget={USD}usd/total",
    "struck load": f"rpm=100000 max_parallel={PARALLEL}",
    "struck hold": f"max_parallel={PARALLEL}",
    **{f"{name} {trouble}": limits for trouble in TROUBLES for name, limits in (LOADS | QUIET).items()},
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.fixture(scope="module", params=["refuse", "local"])
def machines(
    request: pytest.FixtureRequest, postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """With ``refuse`` by TLS, with ``local`` without."""
    folder, refuses = tmp_path_factory.mktemp(request.param), request.param == "refuse"
    with place(folder, request.param, postgres, KEYS, refuses) as found:
        yield found
        found.provider.end()
        stop_all(found.machines)
        for log in (log for machine in found.machines for log in machine.folder.glob("*.log")):
            text = log.read_text()
            assert "Traceback" not in text and "Unhandled" not in text, log


@pytest.mark.parametrize("name", ["at once", "at once, money"])
def test_of_300_at_once_none_is_let_through_beyond_a_limit(machines: Place, name: str) -> None:
    refusals: list[Answer] = []

    def client(_: int) -> Answer:
        """Ask again where others are in flight, or the machine is so busy that Redis seems away, as an SDK does."""
        ends = time.monotonic() + PATIENCE
        while True:
            answer = machines.ask(name)
            if answer.status != 200:
                refusals.append(answer)
            passing = (b"flowstack_concurrency_exceeded", b"limits_unavailable")
            if answer.one(b"flowstack-error") not in passing or time.monotonic() > ends:
                return answer
            time.sleep(random.uniform(0.1, 0.4))

    before = machines.alone()
    answers = crowd(300, client)
    gauge = machines.provider.of(name)
    passed = Counter(codes(answers))["200"]
    assert len(gauge.arrived) == passed
    assert all(journal(machine, machines.keys[name]) for machine in machines.machines), "both machines served the key"
    why = "flowstack_rate_limit_exceeded" if name == "at once" else "flowstack_budget_exceeded"
    assert set(codes(answers)) == {"200", why}
    said = Counter(codes(refusals))
    unavailable = said.pop(UNAVAILABLE, 0)
    assert set(said) == {"flowstack_concurrency_exceeded", why}
    assert_own_error(next(one for one in answers if one.status != 200), 429, why)
    most, least = RPM, RPM
    if name != "at once":
        most, least = int(USD / EACH), int((USD - PARALLEL * cost(2 * PROMPT, COMPLETION)) / EACH)

    def hold() -> bool:
        """On a busy machine Redis may not answer in time. Then less is let through, or some of each machine's share."""
        alone = machines.alone() - before
        more = alone if machines.on_failure == "local" else 0
        return unavailable <= alone and gauge.most <= PARALLEL + more and least - alone <= passed <= most + more

    eventually(hold, "no limit was exceeded, by what the metrics say as soon as they do")


@define
class Struck:
    """A machine that was killed with what was in flight on it.

    :ivar at: when.
    :ivar lost: the streams that were cut with it.
    :ivar cut: how many other requests were.
    """

    at: float
    lost: list[Held]
    cut: int = 0


@pytest.fixture(scope="module")
def struck(machines: Place) -> Struck:
    """The second machine is killed in the middle of load and streams, and the other's shipper; it is started again."""
    late = machines.late()
    streams = machines.hold_some("struck hold", PARALLEL - 1)
    load = Load()
    with load.of(lambda: machines.ask("struck load"), 6):
        eventually(lambda: len(machines.provider.of("struck load").arrived) >= 40, "the load has begun")
        shipper = that_run(machines.machines[0].pid, "flowstack.process.shipper")
        machines.machines[1].kill()
        found = Struck(time.monotonic(), [one for one in streams if one.is_cut()])
        os.kill(shipper[0], signal.SIGKILL)
        # What it had is not free at once.
        machines.hold_some("struck hold", PARALLEL - len(streams))
        assert machines.holds_no_more("struck hold", late)
        eventually(lambda: machines.serves("anyone"), "the other machine serves")
        since = len(load.answers)
        eventually(lambda: "200" in load.codes(since), "it serves that key, too")
        machines.start_again(1)
        eventually(lambda: machines.up() == MACHINES * WORKERS, "it uses Redis")
        before = len(journal(machines.machines[1]))
        eventually(lambda: len(journal(machines.machines[1])) > before, "HAProxy has found it again")
    found.cut = load.cut + load.codes()["502"]
    # HAProxy asks nobody else where a request was sent; what is full says so.
    assert set(load.codes()) <= {"200", "502", "503", "flowstack_concurrency_exceeded", UNAVAILABLE}
    return found


def test_a_killed_machine_takes_its_own_streams_with_it_and_no_limit(machines: Place, struck: Struck) -> None:
    assert len(struck.lost) == 2, "they were spread evenly"
    assert all(held.name == "struck hold" for held in struck.lost)
    more = int(PARALLEL * SHARE) * MACHINES if machines.alone() and machines.on_failure == "local" else 0
    assert machines.provider.of("struck load").most <= PARALLEL + more
    assert machines.provider.of("struck hold").most <= PARALLEL + len(machines.beyond.get("struck hold", ()))


@contextmanager
def killed(machines: Place) -> Iterator[None]:
    """Redis ends by force, and is started again from its file; PostgreSQL is cut off meanwhile."""
    with machines.lines[1].unheard():
        machines.server.kill()
        yield
        machines.server.start(**ADMIN)


@contextmanager
def unplugged(machines: Place) -> Iterator[None]:
    """The cable to Redis is out, and PostgreSQL ends by force."""
    with machines.lines[0].unplugged():
        machines.postgres.kill()
        try:
            yield
        finally:
            machines.postgres.start()


@contextmanager
def unheard(machines: Place) -> Iterator[None]:
    """What is sent to Redis arrives, and nothing comes back; the cable to PostgreSQL is out."""
    with machines.lines[0].unheard(), machines.lines[1].unplugged():
        yield


@pytest.mark.parametrize("trouble", [killed, unplugged, unheard], ids=TROUBLES)
def test_while_redis_and_postgresql_are_away_limits_hold_as_the_manual_says_and_streams_go_on(
    machines: Place, struck: Struck, trouble: Callable[[Place], AbstractContextManager[None]]
) -> None:
    name = trouble.__name__
    local = machines.on_failure == "local"
    load, money, free, hold = (f"{kind} {name}" for kind in (*LOADS, "free", "hold"))
    machines.hold_some(hold, 3)
    streams = machines.open()
    assert len(streams) >= 6
    loads = Load(), Load()
    with loads[0].of(lambda: machines.ask(load), 6), loads[1].of(lambda: machines.ask(money), 6):
        eventually(lambda: len(machines.provider.of(load).arrived) >= 20, "the load has begun")
        with trouble(machines):
            begun = time.monotonic()
            answered = [machines.ask(free) for _ in range(40)]
            # One worker after another waits for 100 ms, and then none: with longer waits this would take minutes.
            assert time.monotonic() - begun < 15
            for other in (hold, hold):
                answered.append(machines.ask(other))
            assert set(codes(answered)) == {"200" if local else UNAVAILABLE}
            if not local:
                assert_own_error(answered[0], 503, UNAVAILABLE)
            eventually(lambda: machines.up() == 0, "the metric says so")
            for stream in streams:
                stream.goes_on()
        eventually(lambda: machines.up() == MACHINES * WORKERS, "all use Redis again")
        eventually(lambda: machines.serves(free), "requests pass again")
        since = len(loads[0].answers), len(loads[1].answers)
        eventually(
            lambda: all(len(one.answers) > at + 40 for one, at in zip(loads, since, strict=True)), "load goes on"
        )
    # The upstream had all of it within a minute, the window of rpm.
    more = MACHINES * SHARE if local else 0
    rpm, flights, spent = machines.provider.of(load), machines.provider.of(load).most, machines.provider.of(money)
    assert rpm.arrived[-1] - rpm.arrived[0] < 55, "the machine is too slow for this test"
    assert len(rpm.arrived) <= RPM * (1 + more)
    assert max(flights, spent.most) <= PARALLEL + (MACHINES * int(PARALLEL * SHARE) if local else 0)
    assert len(spent.arrived) * EACH <= USD * (1 + more)
    limited = {"flowstack_rate_limit_exceeded"}, {"flowstack_budget_exceeded"}
    for one, why, at in zip(loads, limited, since, strict=True):
        known = {"200", "flowstack_concurrency_exceeded", *why}
        assert set(one.codes()) <= known | (set() if local else {UNAVAILABLE})
        assert why <= set(one.codes(at)), "it is over, and what was used is known"
        assert one.cut == 0
    # Of what is in flight nothing was lost, and of what was asked in vain nothing is left.
    late = machines.late()
    machines.hold_some(hold, PARALLEL - 3)
    assert machines.holds_no_more(hold, late)
    machines.finish(hold)
    eventually(lambda: machines.in_redis(hold, "p") == {}, "nothing is in flight")
    for key in (hold, money):
        eventually(lambda key=key: assert_charged(machines, key), "Redis has what the rows say")


def assert_charged(machines: Place, name: str) -> bool:
    """Whether a budget is charged exactly what its rows cost."""
    nanos = sum(round(row["cost_usd"] * 1e9) for row in machines.rows(name) if row["cost_usd"] is not None)
    return bool(nanos) and int(machines.in_redis(name, "m").get(b"t", b"0")) == nanos


def test_while_postgresql_is_away_reports_say_so(machines: Place) -> None:
    one = machines.machines[0]
    machines.postgres.kill()
    try:
        done = invoke("flowstack", "usage", "--config", one.config_path, cwd=one.folder)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert "the ledger of all machines cannot be read" in done.stderr
        status, answer, _ = Browser(one).ask("GET", "api/v1/report")
        assert (status, answer["error"]["code"]) == (503, "no_reports")
    finally:
        machines.postgres.start()


def test_a_machine_ends_in_time_while_the_networks_swallow_what_it_asks(machines: Place, struck: Struck) -> None:
    eventually(lambda: machines.asked_postgresql_at("two") > 0, "its shipper has connected again")
    with machines.lines[0].unplugged(), machines.lines[1].unheard():
        assert set(codes([machines.ask("anyone")])) == {"200" if machines.on_failure == "local" else UNAVAILABLE}
        eventually(lambda: time.time() - machines.asked_postgresql_at("two") > 2, "it asks each second, and waits now")
        begun = time.monotonic()
        machines.machines[1].stop()
        assert time.monotonic() - begun < 10
    machines.start_again(1)


def test_of_a_killed_machine_the_places_are_free_after_twenty_seconds_and_other_streams_end_whole(
    machines: Place, struck: Struck
) -> None:
    late = machines.late()
    machines.hold_some("struck hold", len(struck.lost))
    assert time.monotonic() - struck.at > 10
    assert machines.holds_no_more("struck hold", late)
    assert machines.provider.of("struck hold").most <= PARALLEL + len(machines.beyond.get("struck hold", ()))
    machines.finish("struck hold")
    ended = [row for row in machines.rows("struck hold") if row["status"] == 200]
    beyond = set(machines.beyond.get("struck hold", ()))
    assert {_id(row) for row in ended if row["end"] == "client_gone"} == beyond
    assert Counter(row["end"] for row in ended if _id(row) not in beyond) == {"complete": 5}


def test_each_row_is_in_postgresql_once_and_either_machine_reports_all(machines: Place, struck: Struck) -> None:
    eventually(lambda: machines.sent() >= len(machines.rows()), "all rows are in PostgreSQL", 4 * PATIENCE)
    rows, found = machines.rows(), machines.in_postgresql()
    assert Counter(map(_id, found)) == Counter(map(_id, rows))
    assert max(Counter(map(_id, found)).values()) == 1
    assert sorted(found, key=_id) == sorted(rows, key=_id)
    assert {*machines.ids} <= {*map(_id, found)}, "what a client saw answered has its row"
    for name in KEYS:
        served = sum(row["status"] == 200 for row in machines.rows(name))
        cut = {"struck load": struck.cut, "struck hold": len(struck.lost)}.get(name, 0)
        assert served <= len(machines.provider.of(name).arrived) <= served + cut, name

    one, two = machines.machines
    eventually(lambda: not told(one)["journal_bytes_not_indexed"], "all is added up")
    for machine in (one, two):
        report = told(machine, "--by", "node")
        assert {group["node"]: group["requests"] for group in report["groups"]} == Counter(row["node"] for row in rows)
        for figure in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert report["total"][figure] == sum(row[figure] or 0 for row in rows)
        assert report["total"]["cost_usd"] == pytest.approx(sum(row["cost_usd"] or 0 for row in rows), abs=1e-8)
        assert Browser(machine).get("report?by=node") == report
        assert told(machine, "--by", "node", "--local")["total"]["requests"] == len(journal(machine))
    assert Browser(one).get(f"requests/{_id(journal(two)[0])}")["request"]["node"] == "two"


def test_no_credential_is_in_a_store_or_in_a_log_or_a_metric(machines: Place) -> None:
    hidden = {PASSWORD, POSTGRES_PASSWORD, OPENAI_KEY[8:], *(token[16:] for token in machines.keys.values())}

    def assert_none(data: bytes, where: object) -> None:
        assert not any(secret.encode() in data for secret in hidden), where

    held = machines.everything_in_redis()
    assert all(machines.keys[name][4:16].encode() in held for name, limits in KEYS.items() if "budget" in limits)
    assert_none(held, "Redis")
    rows = machines.everything_in_postgresql()
    assert AGENT.partition(" ")[0].encode() in rows
    assert_none(rows, "PostgreSQL")
    fcalls = [words for words in machines.heard if words.startswith(b"FCALL")]
    assert len(fcalls) > 100
    assert any(words.startswith(b"SELECT") for words in machines.heard), "what it is told to begin with is heard, too"
    assert_none(b"\n".join(machines.heard), "MONITOR")
    for path, data in contents(machines.server.directory):
        if path.name != "redis.conf":
            assert_none(data, path)
    for machine in machines.machines:
        for path, data in contents(machine.folder):
            assert_none(data, path)
        for page in ("/metrics", "/readyz"):
            assert_none(get(machine, page).body, page)


def _id(row: dict[str, Any]) -> str:
    return str(row["request_id"])
