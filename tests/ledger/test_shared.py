"""The ledger of all machines, as the manual says that it is read, copied and restored."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psycopg
import pytest
from attrs import evolve

from flowstack.config.settings import Shared
from flowstack.ledger.database import Unavailable
from flowstack.ledger.queries import Question, report, total
from flowstack.ledger.shared import bytes_missing, open_shared, shared_ledger
from tests.ledger.journals import figures, rows
from tests.ledger.machines import Machine
from tests.ledger.servers import Server, program
from tests.ledger.test_shipping import has

ROWS = [{**one, "node": "east"} for one in rows(120, folded=True, settling=True, sockets=True)]
PAGE = (Path(__file__).parents[2] / "docs/howto/postgres.rst").read_text()


def name_of(shared: Shared) -> str:
    return (shared.postgres or "").rpartition("/")[2]


@pytest.fixture
def east(tmp_path: Path, shared: Shared) -> Machine:
    return Machine.of(tmp_path, "east", shared)


def test_a_role_that_the_manual_lets_read_gets_reports_and_can_change_nothing(
    east: Machine, postgres: Server, tmp_path: Path
) -> None:
    east.record(ROWS[:60])
    east.ship()
    name, reader = name_of(east.shared), f"reader_{name_of(east.shared)}"
    (commands,) = re.findall(r"(?s)(   CREATE ROLE analyst .+?)\n\n", PAGE)
    commands = commands.replace("ROLE flowstack", f"ROLE {name}").replace("analyst", reader)
    with postgres.superuser(name) as connection:
        for command in commands.split(";"):
            if command.strip():
                connection.execute(command)
    east.record([{**one, "started_at": one["started_at"].replace(year=2027)} for one in ROWS[60:]])  # new partitions
    east.ship()
    secret = tmp_path / "reader.secret"
    secret.write_text("another one")
    secret.chmod(0o600)
    url = f"postgresql://{reader}@127.0.0.1:{postgres.port}/{name}"
    with shared_ledger(evolve(east.shared, postgres=url, postgres_password_file=secret), "test") as database:
        assert total(report(database, Question(("key",)))).requests == figures(ROWS)["requests"]
        assert bytes_missing(database, east.settings) == 0
    with (
        psycopg.connect(host="127.0.0.1", port=postgres.port, user=reader, password="another one", dbname=name) as own,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        own.execute("DELETE FROM flowstack.ledger")


def test_a_dump_is_restored_and_what_it_lacks_comes_from_the_journal(
    east: Machine, postgres: Server, tmp_path: Path
) -> None:
    east.record(ROWS[:60])
    east.ship()
    name = name_of(east.shared)
    (dump,) = re.findall(r"(?m)^    (pg_dump .+)$", PAGE)
    (restore,) = re.findall(r"(?m)^    (pg_restore .+)$", PAGE)

    def run(command: str) -> None:
        first, *words = re.sub(r" flowstack$", f" {name}", command).split()
        words = [str(tmp_path / word) if word.endswith(".dump") else word for word in words]
        place = ["--host", "127.0.0.1", "--port", str(postgres.port), "--username", "postgres"]
        words = [name if before == "--dbname" else word for before, word in zip(["", *words], words, strict=False)]
        subprocess.run([program(first), *place, *words], check=True, env={**os.environ, "PGPASSWORD": "postgres"})

    run(dump)
    east.record(ROWS[60:])
    east.ship()
    with postgres.superuser("postgres") as connection:
        connection.execute(f"DROP DATABASE {name}")
        connection.execute(f"CREATE DATABASE {name}")
    run(restore)
    assert has(east.shared, ROWS[:60])
    east.ship()
    assert has(east.shared, ROWS)


def test_a_database_without_tables_is_told_to_wait_for_a_service(shared: Shared) -> None:
    with pytest.raises(Unavailable, match="found tables of version 0, expected"), shared_ledger(shared, "test"):
        pass


def test_without_a_password_file_nothing_is_said_beside_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = Shared(postgres="postgresql://flowstack@127.0.0.1:1/flowstack", postgres_tls=False)
    with pytest.raises(Unavailable):
        open_shared(nowhere, "a test")
    assert capfd.readouterr() == ("", "")
