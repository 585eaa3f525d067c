"""Commands over the ledger of all machines: what they say is what one machine with all rows would say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from attrs import evolve
from click.testing import CliRunner, Result

from flowstack.cli.main import main
from flowstack.config.settings import Shared
from flowstack.keys import Key
from flowstack.keys.editor import add_key
from flowstack.ledger.database import Unavailable
from flowstack.ledger.postgres import Postgres
from flowstack.ledger.shared import shared_ledger
from tests.ledger.conftest import postgres, shared
from tests.ledger.journals import rows, write
from tests.ledger.machines import FILE, Machine
from tests.ledger.samples import row
from tests.ledger.servers import PASSWORD
from tests.limits.lab import usd
from tests.redis_server import RedisServer
from tests.testing.wire import Client, Process

__all__ = ["postgres", "shared"]

PROGRAM = [sys.executable, "-c", "from flowstack.cli.main import main; main()"]
ROWS = rows(200, folded=True, settling=True, sockets=True)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert PASSWORD not in result.output
    assert "Traceback" not in result.output
    return result


def usage(*arguments: object) -> Result:
    return run("usage", *arguments)


@pytest.fixture
def both(tmp_path: Path, shared: Shared) -> Iterator[tuple[Machine, Machine]]:
    """Two machines; ``one`` beside them is a single one with the journals of both."""
    east, west = (Machine.of(tmp_path, name, shared) for name in ("east", "west"))
    east.record(ROWS[:120])
    west.record(ROWS[120:])
    for number, machine in enumerate((east, west)):
        machine.ship()
        target = tmp_path / "one" / "ledger" / f"2026-11-23.w{number}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((machine.state / "ledger" / FILE).read_bytes())
    yield east, west


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--by", "node", "--sort", "node"],
        ["--by", "node,model", "--where", "node=e*,status=200", "--limit", "2"],
        ["--by", "day,key", "--since", "2026-10-01", "--until", "2026-11-20"],
        ["--by", "hour,attribute:team", "--where", "node=west,owner=alice,owner="],
        ["--by", ""],
    ],
)
def test_usage_of_all_machines_is_that_of_one_with_all_their_rows(
    both: tuple[Machine, Machine], tmp_path: Path, arguments: list[str]
) -> None:
    for form in ("table", "csv", "json"):
        more = ["--format", form, *arguments]
        wanted = usage("--state", tmp_path / "one", *more)
        assert (wanted.exit_code, len(wanted.stdout) > 100) == (0, True)
        for machine in both:
            found = usage("--config", machine.config, *more)
            assert (found.exit_code, found.stderr) == (0, "")
            assert _now(found.stdout) == _now(wanted.stdout)


def _now(text: str) -> str:
    return re.sub(r"to now, [0-9: -]+ UTC", "to now", text)


@pytest.mark.parametrize("how", ["--local", "--state"])
def test_of_one_machine_it_is_asked_by_local_or_by_its_state_directory(
    both: tuple[Machine, Machine], how: str
) -> None:
    for machine in both:
        more = ["--local"] if how == "--local" else ["--state", machine.state]
        found = json.loads(usage("--config", machine.config, "--by", "node", "--format", "json", *more).stdout)
        assert [group["node"] for group in found["groups"]] == [machine.name]


def test_rows_that_are_still_on_their_way_are_told_of(both: tuple[Machine, Machine]) -> None:
    east, west = both
    before = json.loads(usage("--config", east.config, "--format", "json").stdout)
    assert before["journal_bytes_not_indexed"] == 0
    more = rows(10, seed=2)
    size = (east.state / "ledger" / FILE).stat().st_size
    east.record(more)
    waiting = (east.state / "ledger" / FILE).stat().st_size - size
    for step in (lambda: None, lambda: east.ship(fold=False)):
        step()
        result = usage("--config", east.config, "--format", "json")
        found = json.loads(result.stdout)
        assert found["total"] == before["total"]
        # Of a row that was sent its line's end is not counted.
        assert waiting - len(more) <= found["journal_bytes_not_indexed"] <= waiting
        assert re.fullmatch(r"Note: [0-9,]+ bytes of rows, known here, are still on their way .+\.\n", result.stderr)
    west.ship()
    found = json.loads(usage("--config", east.config, "--format", "json").stdout)
    assert (found["total"]["requests"], found["journal_bytes_not_indexed"]) == (before["total"]["requests"] + 10, 0)


def _stopped(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    machine.config.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", machine.config.read_text()))
    return r"PostgreSQL at 127\.0\.0\.1:1: .*[Cc]onnection refused"


def _locked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    assert machine.shared.postgres_password_file is not None
    machine.shared.postgres_password_file.write_text("wrong")
    return "password authentication failed"


def _newer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    with Postgres(machine.shared, "test") as database:
        database.execute("INSERT INTO migrations (number, name) VALUES (9999, 'x')")
    return "found tables of version 9999, expected at most .*Upgrade Flowstack here"


def _missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "flowstack.ledger.postgres", None)
    return r"pip install 'flowstack\[postgres\]'"


@pytest.mark.parametrize("fault", [_stopped, _locked, _newer, _missing])
@pytest.mark.parametrize("command", [["usage"], ["reconcile", "--admin-key-file"]])
def test_that_it_cannot_be_read_is_one_line_and_status_1(
    both: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, command: list[str]
) -> None:
    east, _ = both
    if command[1:]:
        (tmp_path / "admin.key").write_text("sk-admin-x\n")
        (tmp_path / "admin.key").chmod(0o600)
        command = [*command, str(tmp_path / "admin.key")]
    words = fault(east, monkeypatch)
    result = run(*command, "--config", east.config)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(f"Error: the ledger of all machines cannot be read: .*{words}.*\n", result.stderr)
    local = usage("--config", east.config, "--local", "--by", "", "--format", "json")
    assert json.loads(local.stdout)["total"]["requests"]


def test_a_server_that_says_nothing_is_given_up(
    both: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    east, _ = both
    monkeypatch.setattr("flowstack.ledger.shared.READ_SECONDS", 1.0)
    with east.cabled() as cable, ExitStack() as stack:
        with (
            pytest.raises(Unavailable, match="did not answer within 1 seconds"),
            shared_ledger(evolve(east.shared, postgres=east.settings.shared.postgres), "test") as database,
        ):
            stack.enter_context(cable.unplugged())  # in the middle of it
            database.execute("SELECT 1")
        began = time.monotonic()
        result = usage("--config", east.config)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "PostgreSQL did not answer within 1 seconds" in result.stderr
        assert time.monotonic() - began < 10


def test_the_ledger_of_all_machines_is_held_against_the_provider(tmp_path: Path, shared: Shared) -> None:
    (tmp_path / "admin.key").write_text("sk-admin-CanaryCanaryCanary0123456789\n")
    (tmp_path / "admin.key").chmod(0o600)
    east, west = (Machine.of(tmp_path, name, shared) for name in ("east", "west"))
    served = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": None, "cost_usd": 3.75e-05,
              "started_at": datetime.now(UTC)}  # fmt: skip
    for number, machine in enumerate((east, west)):
        machine.record([row(f"{number:032x}", **served)])
        machine.ship()
    with Process("--listen", "tcp:0") as standin:
        client = Client(standin.port)
        assert client.chat().status == client.chat().status == 200
        asked: list[object] = [
            "reconcile", "--config", east.config, "--url", f"http://127.0.0.1:{standin.port}/v1", "--json",
            "--admin-key-file", tmp_path / "admin.key", "--until", "now", "--since", "2d",
        ]  # fmt: skip
        for more, captured in (([], 1.0), (["--local"], 0.5)):
            done = subprocess.run([*PROGRAM, *map(str, asked), *more], capture_output=True, check=False, timeout=120)
            assert json.loads(done.stdout)["captured"] == captured


def test_budgets_that_all_machines_count_are_explained_by_the_rows_of_all(
    tmp_path: Path, shared: Shared, redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    at = {"started_at": datetime.now(UTC), "key_id": "alice1", "upstream": "openai"}
    for more, in_ledger in ((f'redis = "{redis_server.url}"\n', 0.75), ("", 0.25)):
        folder = tmp_path / ("all" if more else "alone")
        east, west = (Machine.of(folder, name, shared, more) for name in ("east", "west"))
        if more:
            for number, machine in enumerate((east, west)):
                machine.record([row(f"{number:032x}", **at, cost_usd=0.25 * (number + 1))])
                machine.ship()
        else:
            write(east.state / "ledger" / FILE, [row("1", **at, cost_usd=0.25)])
            _count(east)
        add_key(east.folder / "keys", Key("alice1", bytes(32), budget=usd("5")))
        result = run("budgets", "--config", east.config, "--keys", east.folder / "keys", "--json")
        assert result.exit_code == 0, result.output
        assert [line["in_ledger_usd"] for line in json.loads(result.stdout)] == [in_ledger]


def _count(machine: Machine) -> None:
    from flowstack.limits.restore import open_counters

    open_counters(machine.state / "limits", 1)
