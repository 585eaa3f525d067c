"""The shipper as the service runs it: killed, without PostgreSQL, with a network that swallows."""

from __future__ import annotations

import math
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.task import Clock

from flowstack.config import Ledger, Server, Settings
from flowstack.config.settings import Shared
from flowstack.ledger.database import Unavailable
from flowstack.ledger.rollup import rolled_up
from flowstack.ledger.shared import ledger_there, open_shared, row_in
from flowstack.process.shipped import Shipped, read_shipped, write_shipped
from flowstack.process.shipper import Shipper
from flowstack.process.spawn import child_environ
from flowstack.process.upkeep import SHIPPER, Upkeep
from tests.ledger.journals import rows, write
from tests.ledger.servers import PASSWORD, cable_to, server
from tests.ledger.servers import Server as PostgresServer
from tests.ledger.test_shipping import has
from tests.small_disk import fill, may_mount, small_disk

ONE, TWO = "2026-11-22.w0.jsonl", "2026-11-23.w0.jsonl"
NOWHERE = Shared(postgres="postgresql://flowstack@127.0.0.1:1/flowstack")
MANY = rows(1500, folded=True, settling=True, sockets=True)


MakeShipper = Callable[[Settings], Shipper]


def settings_of(state: Path, shared: Shared, node: str = "east", **ledger: Any) -> Settings:
    return Settings(server=Server(state=state, node=node), shared=shared, ledger=Ledger(**ledger))


IN_LITTLE = (
    "from flowstack.ledger import folding, intake, rollup, shipping; from flowstack.process.shipper import main; "
    "shipping.BATCH_ROWS, folding.FOLD_ROWS, intake.MANY, intake.MANY_BEHIND, rollup.AT_ONCE = 40, 80, 90, 150, 64; "
    "main()"
)
"""The same in many transactions, and with sums of few rows."""


class Running:
    """Its process, which does all in little."""

    def __init__(self, settings: Settings, command: Sequence[str] = (sys.executable, "-c", IN_LITTLE)) -> None:
        greeting = pickle.dumps(settings)
        self.log = settings.server.state / "shipper.log"  # type: ignore[operator]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=child_environ(os.environ), bufsize=0
            )
        assert self._process.stdin is not None
        self._process.stdin.write(greeting)
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def end(self) -> int:
        """As the service's end ends it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        return self._process.wait(30)


def eventually(check: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.25)


def added_up(shared: Shared) -> int:
    """How many rows are in sums."""
    with open_shared(shared, "test") as database:
        return rolled_up(database)


def arrived(shared: Shared, some: Any) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return has(shared, some)
        except Unavailable:
            return False

    return check


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL that is killed."""
    with server() as one:
        yield one


def test_it_sends_adds_up_tells_how_far_it_is_and_ends_with_the_service(tmp_path: Path, shared: Shared) -> None:
    some = rows(300)
    write(tmp_path / "ledger" / ONE, some)
    running = Running(settings_of(tmp_path, shared), SHIPPER)
    try:
        eventually(arrived(shared, some))
        size = (tmp_path / "ledger" / ONE).stat().st_size
        eventually(lambda: (said := read_shipped(tmp_path)) is not None and said.files == {ONE: size})
        said = read_shipped(tmp_path)
        assert said is not None
        assert (said.rows, said.failures, said.lag_bytes) == (300, 0, 0)
        command = Path(f"/proc/{running.pid}/cmdline").read_bytes() + Path(f"/proc/{running.pid}/environ").read_bytes()
        assert PASSWORD.encode() not in command
    finally:
        assert running.end() == 0
    assert PASSWORD not in running.log.read_text() + (tmp_path / "ledger.shipped.json").read_text()


def test_killed_at_any_moment_it_sends_each_row_once(tmp_path: Path, shared: Shared) -> None:
    chance = random.Random(7)
    settings = settings_of(tmp_path, shared)
    for start in range(0, 1500, 250):
        write(tmp_path / "ledger" / (ONE if start < 750 else TWO), MANY[start : start + 250])
        running = Running(settings)
        time.sleep(chance.uniform(0.2, 1.2))  # not to wait for anything: the moment is what is at random
        running.kill()
    running = Running(settings)
    try:
        eventually(arrived(shared, MANY))
    finally:
        running.end()
    assert has(shared, MANY)
    assert added_up(shared) > 1200


def test_postgresql_may_be_killed_at_any_moment_and_each_row_is_there_once(
    tmp_path: Path, mortal: PostgresServer
) -> None:
    chance = random.Random(8)
    shared = mortal.database(tmp_path)
    for name in ("east", "west"):
        (tmp_path / name).mkdir()
    running = [Running(settings_of(tmp_path / name, shared, name)) for name in ("east", "west")]
    try:
        for start in range(0, 1500, 300):
            write(tmp_path / "east" / "ledger" / ONE, MANY[start : start + 200])
            write(tmp_path / "west" / "ledger" / ONE, MANY[start + 100 : start + 300])
            time.sleep(chance.uniform(0.5, 2.0))  # the moment is what is at random
            mortal.kill()
            mortal.start()
        eventually(arrived(shared, MANY))
    finally:
        for one in running:
            one.end()
    assert has(shared, MANY)
    assert added_up(shared) > 1200
    said = [read_shipped(tmp_path / name) for name in ("east", "west")]
    assert all(one is not None and one.failures for one in said)
    for name in ("east", "west"):
        text = (tmp_path / name / "shipper.log").read_text()
        assert "Traceback" not in text
        assert PASSWORD not in text


@pytest.fixture
def shipper_of() -> Iterator[MakeShipper]:
    """Makes one whose looks a test has."""
    stop, wake = os.pipe()
    made: list[Shipper] = []

    def make(settings: Settings) -> Shipper:
        made.append(Shipper(settings, stop))
        return made[-1]

    yield make
    for one in made:
        one.close()
    os.close(stop)
    os.close(wake)


def test_a_network_that_swallows_is_given_up_and_loses_nothing(
    tmp_path: Path, shared: Shared, shipper_of: MakeShipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowstack.process.shipper.ANSWER_SECONDS", 1.0)
    some = rows(50)
    write(tmp_path / "ledger" / ONE, some[:20])
    with cable_to(shared) as (cable, there):
        shipper = shipper_of(settings_of(tmp_path, there))
        shipper.look()
        write(tmp_path / "ledger" / ONE, some[20:])
        with cable.unplugged():
            for _ in range(2):  # nor does a new connection come to be
                with pytest.raises(Unavailable, match="did not answer within 1 seconds"):
                    shipper.look()
                shipper.failed()
        monkeypatch.setattr("flowstack.process.shipper.ANSWER_SECONDS", 60.0)
        shipper.look()
        assert has(shared, some)
        said = read_shipped(tmp_path)
        assert said is not None
        assert said.failures == 2


@pytest.mark.parametrize("left", [0, 500, 20_000, 600_000])
def test_a_network_that_swallows_in_the_middle_of_rows_is_given_up_in_time(
    tmp_path: Path, shared: Shared, shipper_of: MakeShipper, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    some = rows(800)
    (tmp_path / "ledger").mkdir()
    with cable_to(shared) as (cable, there):
        shipper = shipper_of(settings_of(tmp_path, there))
        shipper.look()
        write(tmp_path / "ledger" / ONE, some)
        monkeypatch.setattr("flowstack.process.shipper.ANSWER_SECONDS", 1.0)
        begun = time.monotonic()
        with cable.unplugged_after(left):
            with pytest.raises(Unavailable, match="did not answer within 1 seconds"):
                shipper.look()
            shipper.failed()
            assert time.monotonic() - begun < 8
        monkeypatch.setattr("flowstack.process.shipper.ANSWER_SECONDS", 60.0)
        eventually(lambda: shipper.look() > 0)
        eventually(lambda: shipper.look() > 0 and has(shared, some))


def test_a_standby_is_told_from_the_primary_and_takes_all_once_it_is_promoted(
    tmp_path: Path, mortal: PostgresServer, shipper_of: MakeShipper
) -> None:
    some = rows(60)
    shared = mortal.database(tmp_path)
    write(tmp_path / "ledger" / ONE, some[:20])
    shipper = shipper_of(settings_of(tmp_path, shared))
    shipper.look()
    with server(of=mortal) as standby:
        assert shared.postgres is not None
        there = evolve(shared, postgres=shared.postgres.replace(f":{mortal.port}/", f":{standby.port}/"))
        eventually(arrived(there, some[:20]))
        with standby.superuser("postgres") as connection:
            connection.execute("SELECT pg_wal_replay_pause()")  # what the primary gets now is lost with it
        write(tmp_path / "ledger" / ONE, some[20:40])
        shipper.look()
        assert has(shared, some[:40])
        shipper.close()
        shipper = shipper_of(settings_of(tmp_path / "other", there))
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "ledger").symlink_to(tmp_path / "ledger")
        said = f"127.0.0.1:{standby.port}: found a standby, expected the primary, which takes rows: name that, or"
        for _ in range(2):
            with pytest.raises(Unavailable, match=said):
                shipper.look()
            shipper.failed()
        with pytest.raises(Unavailable, match=said):
            ledger_there(there)
        with open_shared(there, "test") as database:  # it may be read
            assert row_in(database, some[0]["request_id"]) is not None
        mortal.kill()
        standby.promote()
        write(tmp_path / "ledger" / ONE, some[40:])
        eventually(lambda: shipper.look() > 0 and has(there, some))
        assert ledger_there(there).startswith("PostgreSQL ")


def test_what_it_says_of_itself_is_in_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    write_shipped(tmp_path, Shipped(rows=100, failures=3, lag_bytes=7, succeeded_at=time.time()))
    upkeep = Upkeep(Clock(), tmp_path, settings_of(tmp_path, NOWHERE))
    found: dict[str, Callable[[], float]] = {}
    upkeep.watch(lambda family, read: found.setdefault(family.name, read))

    def shown() -> dict[str, float]:
        values = {name.removeprefix("flowstack_ledger_"): read() for name, read in found.items()}
        return {name: value for name, value in values.items() if name not in ("lag_bytes", "overdue_files")}

    write_shipped(tmp_path, Shipped(rows=150, failures=5, lag_bytes=42, succeeded_at=1234.5))
    now = dict(unshipped_bytes=42, shipped_rows_total=50, shipped_timestamp_seconds=1234.5, ship_failures_total=2)
    assert shown() == now
    for text in ("", "{}", "[1]", '{"rows":-1,"failures":0,"lag_bytes":0,"succeeded_at":0,"files":{}}'):
        (tmp_path / "ledger.shipped.json").write_text(text)
        assert shown() == now  # what cannot be read changes nothing: counters never fall
    write_shipped(tmp_path, Shipped(rows=150, failures=6))
    assert shown()["ship_failures_total"] == 3
    assert math.isnan(shown()["unshipped_bytes"])
    assert math.isnan(shown()["shipped_timestamp_seconds"])


def test_only_one_sends_a_journal(tmp_path: Path, shared: Shared, shipper_of: MakeShipper) -> None:
    write(tmp_path / "ledger" / ONE, rows(10))
    first, second = (shipper_of(settings_of(tmp_path, shared)) for _ in range(2))
    first.look()
    with pytest.raises(BlockingIOError):
        second.look()


# What is kept of the journal


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (None, [ONE, TWO]),
        ({ONE: 4, TWO: 4}, []),
        ({ONE: 4}, [TWO]),
        ({ONE: 4, TWO: 3}, [TWO]),
        ({ONE: 3, TWO: 5}, [ONE, TWO]),
    ],
)
def test_an_old_file_goes_only_when_all_of_it_is_in_postgresql(
    tmp_path: Path, said: dict[str, int] | None, left: list[str]
) -> None:
    upkeep = Upkeep(Clock(), tmp_path, settings_of(tmp_path, NOWHERE, retention_days=2))
    for name in (ONE, TWO):
        (tmp_path / "ledger" / name).write_text("{}\n\n")
    now = datetime(2026, 12, 3, tzinfo=UTC)
    upkeep._prune(now)
    if said is not None:
        write_shipped(tmp_path, Shipped(files=said, lag_bytes=0, succeeded_at=time.time() + 1))
    upkeep._prune(now)
    assert sorted(path.name for path in (tmp_path / "ledger").iterdir()) == left
    found: dict[str, float] = {}
    upkeep.watch(lambda family, read: found.setdefault(family.name, read()))
    assert found["flowstack_ledger_overdue_files"] == len(left)


def test_what_was_said_before_the_start_lets_no_file_go(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / ONE).write_text("{}\n\n")
    write_shipped(tmp_path, Shipped(files={ONE: 4}, lag_bytes=0, succeeded_at=time.time() - timedelta(hours=1).seconds))
    upkeep = Upkeep(Clock(), tmp_path, settings_of(tmp_path, NOWHERE, retention_days=2))
    for _ in range(2):
        upkeep._prune(datetime(2026, 12, 3, tzinfo=UTC))
    assert (tmp_path / "ledger" / ONE).exists()


def test_after_days_without_postgresql_nothing_was_removed_and_each_row_is_sent_once(
    tmp_path: Path, mortal: PostgresServer, shipper_of: MakeShipper, logged: list[str]
) -> None:
    shared = mortal.database(tmp_path)
    settings = settings_of(tmp_path, shared, retention_days=2)
    days = [f"2026-11-{day:02}.w{worker}.jsonl" for day in range(20, 30) for worker in range(2)]
    parts = dict(zip(days, (MANY[at : at + 75] for at in range(0, 1500, 75)), strict=True))
    upkeep, shipper = Upkeep(Clock(), tmp_path, settings), shipper_of(settings)
    shown: dict[str, Callable[[], float]] = {}
    upkeep.watch(lambda family, read: shown.setdefault(family.name, read))
    journal = tmp_path / "ledger"

    def midnight(day: int) -> None:
        upkeep._prune(datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=day))

    for day in range(20, 30):
        for name in days[2 * (day - 20) : 2 * (day - 20) + 2]:
            write(journal / name, parts[name])
        if day < 22:
            eventually(lambda: shipper.look() > 0)
            assert shown["flowstack_ledger_unshipped_bytes"]() == 0
        else:
            if day == 22:
                mortal.kill()
            for _ in range(3):
                with pytest.raises(Unavailable):
                    shipper.look()
                shipper.failed()
        midnight(day)
    # Of what PostgreSQL has the old goes, and of all the rest nothing, though most of it is older.
    assert sorted(path.name for path in journal.iterdir()) == days[4:]
    assert shown["flowstack_ledger_overdue_files"]() == 2 * 6
    assert shown["flowstack_ledger_unshipped_bytes"]() == sum((journal / name).stat().st_size for name in days[4:])
    assert shown["flowstack_ledger_ship_failures_total"]() == 3 * 8
    assert any("older than retention_days and stay" in text for text in logged)
    mortal.start()
    eventually(lambda: shipper.look() > 0 and has(shared, MANY))
    midnight(29)
    assert sorted(path.name for path in journal.iterdir()) == days[16:]
    assert shown["flowstack_ledger_overdue_files"]() == 0
    assert shown["flowstack_ledger_unshipped_bytes"]() == 0


@may_mount
def test_a_disk_that_ran_full_without_postgresql_has_room_again_once_that_is_back(
    tmp_path: Path, mortal: PostgresServer, shipper_of: MakeShipper
) -> None:
    some = rows(200)
    with small_disk(tmp_path / "state") as state:
        settings = settings_of(state, mortal.database(tmp_path), retention_days=2)
        shared = settings.shared
        upkeep, shipper = Upkeep(Clock(), state, settings), shipper_of(settings)
        write(state / "ledger" / ONE, some[:100])
        shipper.look()
        mortal.kill()
        write(state / "ledger" / TWO, some[100:])
        filler = fill(state)
        with pytest.raises(Unavailable):
            shipper.look()
        shipper.failed()
        mortal.start()
        eventually(lambda: shipper.look() > 0 and has(shared, some))
        upkeep._prune(datetime(2026, 12, 3, tzinfo=UTC))
        assert [path.name for path in (state / "ledger").iterdir()] == []
        assert filler.stat().st_size < 1 << 20
        (state / "new").write_bytes(bytes(4096))
        shipper.close()
