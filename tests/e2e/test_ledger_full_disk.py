"""A state directory on a small file system of its own that runs full, with two workers: what is served, and what is
in the journal when there is room again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flowstack.ledger.files import files
from flowstack.ledger.reader import read
from tests.e2e.processes import Proxy, StandIn, eventually
from tests.e2e.raw import Answer, Client, request
from tests.e2e.test_metrics import running, scrape
from tests.e2e.test_workers import fails
from tests.ledger.servers import rows_in, server
from tests.small_disk import fill, may_mount, small_disk

pytestmark = [pytest.mark.e2e, may_mount]


class Asker:
    """Asks again and again, each time on a new connection, so that both workers come by.

    :ivar given: the status of each request that was answered, by its number.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.given: dict[int, int] = {}

    def ask(self, times: int = 1) -> Answer:
        """So many requests, one after the other; give the last one's answer."""
        for _ in range(times):
            number = len(self.given)
            tag, auth = b"Flowstack-Attribute-Number: %d" % number, b"Authorization: Bearer sk-test-of-a-full-disk"
            with Client(self._proxy.port) as client:
                answer = client.ask(request(self._proxy.key, b"GET /v1/models HTTP/1.1", tag, auth))
            self.given[number] = answer.status
        return answer

    def until(self, status: int) -> Answer:
        """Ask until that comes."""
        return eventually(lambda: found if (found := self.ask()).status == status else None, f"an answer {status}")


def rows_by_file(state: Path) -> list[list[dict[str, Any]]]:
    """The rows of each file; none may be damaged."""
    found = [[row for _, row in read(path)] for path in files(state / "ledger")]
    assert not any(None in rows for rows in found)
    return [[row for row in rows if row is not None] for rows in found]


def number_of(row: dict[str, Any]) -> int:
    return int(row["attributes"]["number"])


def assert_all_there(state: Path, asker: Asker) -> None:
    """Each request has its one row, with the status that was given, in order within a worker's files."""
    by_file = rows_by_file(state)
    assert {number_of(row): row["status"] for rows in by_file for row in rows} == asker.given
    assert sum(map(len, by_file)) == len(asker.given), "a row is there twice"
    for rows in by_file:
        assert [number_of(row) for row in rows] == sorted(map(number_of, rows))
    assert len(by_file) == 2, "one file for each worker: none had to be left for another"


def all_written(state: Path, asker: Asker) -> bool:
    return sum(map(len, rows_by_file(state))) == len(asker.given)


@pytest.mark.parametrize("policy", ["serve", "refuse"])
def test_when_there_is_room_again_the_rows_that_waited_come_in_order_and_nothing_twice(
    policy: str, stand_in: StandIn, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "state") as state:
        settings: dict[str, Any] = {
            "server": {"workers": 2, "admin": "tcp:0:interface=127.0.0.1", "state": str(state)},
            "ledger": {"on_ledger_failure": policy},
        }
        with running(tmp_path / "proxy", stand_in, **settings) as proxy:
            asker = Asker(proxy)
            asker.ask(20)
            for _ in range(2):  # and once more, when it has recovered
                filler = fill(state)
                if policy == "serve":
                    # A page that a file has already takes some more rows, so both workers need some to run out.
                    asker.ask(60)
                    assert set(asker.given.values()) == {200}
                else:
                    refusal = asker.until(503)
                    assert refusal.one(b"flowstack-error") == b"ledger_unavailable"
                    assert refusal.one(b"retry-after") is not None
                    asker.ask(20)
                eventually(lambda: scrape(proxy).sum("flowstack_ledger_queued_bytes") > 0, "it shows that rows wait")
                assert "the journal cannot be written, and rows wait" in proxy.log_text()
                assert "No space left on device" in proxy.log_text()
                assert not all_written(state, asker)
                filler.unlink()
                eventually(lambda: all_written(state, asker), "all rows are in the journal")
                eventually(lambda: not scrape(proxy).sum("flowstack_ledger_queued_bytes"), "none waits any more")
                asker.until(200)
                assert_all_there(state, asker)
            found = scrape(proxy)
            assert found.sum("flowstack_ledger_lost_rows_total") == 0
            assert found.sum("flowstack_worker_restarts_total") == 0
        waited = re.findall(r"written again: (\d+) rows that waited are in it, (\d+) were lost", proxy.log_text())
        assert waited and {lost for _, lost in waited} == {"0"}
        asker_statuses = set(asker.given.values())
        assert asker_statuses == ({200} if policy == "serve" else {200, 503})


def test_rows_beyond_the_queue_are_lost_counted_and_shouted_about_and_requests_are_served_on(
    stand_in: StandIn, tmp_path: Path
) -> None:
    """PostgreSQL is away meanwhile: it gets each row that is in the journal, once."""
    with small_disk(tmp_path / "state") as state, server() as postgres:
        shared = postgres.database(tmp_path)
        settings: dict[str, Any] = {
            "server": {"workers": 2, "admin": "tcp:0:interface=127.0.0.1", "state": str(state)},
            "ledger": {"queue_bytes": 4096},
            "shared": {"postgres": shared.postgres, "postgres_password_file": str(shared.postgres_password_file),
                       "postgres_tls": False},
        }  # fmt: skip
        with running(tmp_path / "proxy", stand_in, **settings) as proxy:
            asker = Asker(proxy)
            asker.ask(10)
            eventually(lambda: scrape(proxy).sum("flowstack_ledger_shipped_rows_total") == 10, "they are sent")
            postgres.kill()
            filler = fill(state)
            asker.ask(100)
            assert set(asker.given.values()) == {200}
            eventually(lambda: proxy.log_text().count("ROWS ARE LOST") == 2, "both workers shout")
            eventually(lambda: scrape(proxy).sum("flowstack_ledger_ship_failures_total") > 0, "so does the shipper")
            postgres.start()
            before = numbers_in(rows_by_file(state))
            eventually(lambda: numbers_in([rows_in(postgres, shared)]) == before, "what was written is sent")
            filler.unlink()
            eventually(lambda: proxy.log_text().count("the journal is written again") == 2, "both write again")
            asker.ask(10)
            numbers = numbers_in(rows_by_file(state))
            assert len(numbers) == len(set(numbers))
            lost = len(asker.given) - len(numbers)
            assert lost > 0
            eventually(lambda: scrape(proxy).sum("flowstack_ledger_lost_rows_total") == lost, "all that are lost count")
            assert {*range(10), *range(110, 120)} <= set(numbers)
            eventually(lambda: numbers_in([rows_in(postgres, shared)]) == numbers, "the others are sent, each once")


def numbers_in(some: list[list[dict[str, Any]]]) -> list[int]:
    """Those of the requests."""
    return sorted(number_of(row) for rows in some for row in rows)


def test_a_state_directory_that_is_read_only_ends_the_start_and_says_why(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state") as state:
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        told = fails(tmp_path, listen=["tcp:0:interface=127.0.0.1"], state=str(state))
        assert "read-only file system" in told
        assert str(state) in told
        assert "listening on" not in told
