"""Two Flowstacks with one ledger in PostgreSQL, while one of them and PostgreSQL are killed: each row is there once,
and what is reported is what both journals say."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from playwright.sync_api import expect, sync_playwright

from flowstack.config.settings import Shared
from tests.e2e.crowd import chat, journal, once
from tests.e2e.live import PROVIDER_KEY
from tests.e2e.pages import VIEWER, House, Pages, chromium
from tests.e2e.processes import PATIENCE, Proxy, StandIn, contents, eventually, invoke, that_run
from tests.e2e.raw import Closed
from tests.e2e.test_page_api import Browser
from tests.ledger.servers import PASSWORD, Server, server

pytestmark = pytest.mark.e2e

SOME = 15
"""Requests between two events."""


class Clients:
    """Ask a node one request after another.

    :ivar answered: the ids of what was answered.
    :ivar failed: how many were not.
    :ivar refused: what was answered instead.
    """

    def __init__(self, node: Proxy) -> None:
        self.answered: list[str] = []
        self.failed = 0
        self.refused: list[bytes] = []
        self._node = node
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        agent = f"canary/1 {PROVIDER_KEY}".encode()
        fields = (b"Authorization: Bearer " + PROVIDER_KEY.encode(), b"User-Agent: " + agent,
                  b"Flowstack-Attribute-Team: " + PROVIDER_KEY.encode())  # fmt: skip
        while not self._ends.is_set():
            try:
                answer = once(self._node.port, chat(self._node.key, *fields))
            except (OSError, Closed):
                self.failed += 1
                self._ends.wait(0.05)
                continue
            if answer.status != 200:
                self.refused.append(answer.body)
                return
            self.answered.append((answer.one(b"flowstack-request-id") or b"").decode())

    def some(self) -> None:
        """Wait until more were answered."""
        least = len(self.answered) + SOME
        eventually(lambda: len(self.answered) >= least or self.refused, "requests are answered")
        assert self.refused == []

    def end(self) -> list[str]:
        self._ends.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.answered


@contextmanager
def asking(node: Proxy) -> Iterator[Clients]:
    clients = Clients(node)
    try:
        yield clients
    finally:
        clients.end()


def node(folder: Path, name: str, upstream: str, shared: Shared) -> Proxy:
    """Start one, or start it again."""
    log = folder / name / "proxy.log"
    if log.exists():
        log.rename(log.with_name("before.log"))
    settings = {"server": {"node": name, "admin": "tcp:0:interface=127.0.0.1"}, "shared": table(shared)}
    return Proxy(folder / name, f"{upstream}/v1", settings=settings)


def table(shared: Shared) -> dict[str, Any]:
    """``[shared]``, for a PostgreSQL."""
    return {"postgres": shared.postgres, "postgres_password_file": str(shared.postgres_password_file),
            "postgres_tls": False}  # fmt: skip


def in_postgresql(postgres: Server, shared: Shared) -> list[dict[str, Any]]:
    """The rows there; none before there are tables."""
    with _connected(postgres, shared) as connection:
        try:
            found = connection.execute('SELECT "row"::text FROM flowstack.ledger').fetchall()
        except psycopg.errors.UndefinedTable:
            return []
    return [orjson.loads(text) for (text,) in found]


def everything_in(postgres: Server, shared: Shared) -> bytes:
    """All that is in the database's tables, as text."""
    found = []
    with _connected(postgres, shared) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'flowstack'").fetchall()
        for (name,) in tables:
            with connection.cursor().copy(f"COPY (SELECT * FROM flowstack.{name}) TO STDOUT") as copy:
                found += [bytes(piece) for piece in copy]
    return b"".join(found)


def _connected(postgres: Server, shared: Shared) -> psycopg.Connection[Any]:
    return postgres.superuser((shared.postgres or "").rpartition("/")[2])


def told(proxy: Proxy, *words: str) -> dict[str, Any]:
    """What ``flowstack usage`` says."""
    done = invoke("flowstack", "usage", "--config", proxy.config_path, "--format", "json", *words, cwd=proxy.folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_each_row_is_in_postgresql_once_whoever_is_killed_and_reports_are_of_both(
    stand_in: StandIn, tmp_path: Path
) -> None:
    with ExitStack() as stack, server() as postgres:
        shared = postgres.database(tmp_path)
        east, west = (node(tmp_path, name, stand_in.url, shared) for name in ("east", "west"))
        stack.callback(west.stop)
        with asking(west) as of_west:
            with asking(east) as of_east:
                of_east.some()
                of_west.some()
                eventually(lambda: in_postgresql(postgres, shared), "rows are sent")
                postgres.kill()
                of_east.some()  # nobody waits for it
                of_west.some()
                assert of_west.failed == of_east.failed == 0
                east.kill()
            of_west.some()
            postgres.start()
            of_west.some()
            shipper = eventually(lambda: that_run(west.pid, "flowstack.process.shipper"), "it runs")
            os.kill(shipper[0], signal.SIGKILL)
            first_key = east.key
            east = node(tmp_path, "east", stand_in.url, shared)
            east.keystore.tokens.add(first_key)
            stack.callback(east.stop)
            with asking(east) as again:
                again.some()
        assert of_west.failed == 0
        answered = [*of_east.answered, *of_west.answered, *again.answered]

        def arrived() -> bool:
            return len(in_postgresql(postgres, shared)) >= len(journal(east)) + len(journal(west))

        rows = [*journal(east), *journal(west)]
        eventually(arrived, "all rows are in PostgreSQL", 4 * PATIENCE)
        found = in_postgresql(postgres, shared)
        assert sorted(found, key=_id) == sorted(rows, key=_id)
        assert max(Counter(map(_id, found)).values()) == 1
        assert {*answered} <= {*map(_id, found)}

        eventually(lambda: not told(west)["journal_bytes_not_indexed"], "all is added up")
        for proxy in (east, west):
            report = told(proxy, "--by", "node")
            assert {group["node"]: group["requests"] for group in report["groups"]} == Counter(
                row["node"] for row in rows
            )
            for figure in ("prompt_tokens", "completion_tokens", "total_tokens"):
                assert report["total"][figure] == sum(row[figure] or 0 for row in rows)
            assert report["total"]["cost_usd"] == pytest.approx(sum(row["cost_usd"] or 0 for row in rows), abs=1e-8)
            assert Browser(proxy).get("report?by=node") == report
            alone = told(proxy, "--by", "node", "--local")
            assert alone["total"]["requests"] == len(journal(proxy))
        assert Browser(east).get(f"requests/{_id(journal(west)[0])}")["request"]["node"] == "west"

        postgres.kill()
        done = invoke("flowstack", "usage", "--config", east.config_path, cwd=east.folder)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert "the ledger of all machines cannot be read" in done.stderr
        status, answer, _ = Browser(east).ask("GET", "api/v1/report")
        assert (status, answer["error"]["code"]) == (503, "no_reports")
        postgres.start()

        secrets = [PASSWORD, PROVIDER_KEY, *(token[16:] for token in east.keystore.tokens | west.keystore.tokens)]
        held = everything_in(postgres, shared)
        assert b"canary/1" in held
        assert not [secret for secret in secrets if secret.encode() in held]
        for proxy in (east, west):
            proxy.assert_no_secrets(secrets)
            assert "Traceback" not in proxy.log_text()
            for path, data in contents(proxy.folder):
                assert PASSWORD.encode() not in data, path
            for log in proxy.folder.glob("*.log"):
                assert not [secret for secret in secrets if secret in log.read_text()], log


def test_the_page_says_whose_requests_it_lists_beside_the_figures_of_all(stand_in: StandIn, tmp_path: Path) -> None:
    with ExitStack() as stack, server() as postgres:
        shared = postgres.database(tmp_path)
        west = node(tmp_path, "west", stand_in.url, shared)
        stack.callback(west.stop)
        house = House(tmp_path / "east", f"{stand_in.url}/v1", shared=table(shared))
        stack.callback(house.proxy.stop)
        with asking(west) as clients:
            clients.some()
        eventually(lambda: house.get("report?by=&where=node=west")["total"]["requests"] >= SOME, "they are reported")
        with sync_playwright() as playwright, chromium(playwright) as browser:
            pages = Pages(browser, house.url)
            page = pages.open("#/requests?since=30d", VIEWER)
            foot = page.locator(".foot")
            expect(foot).to_contain_text(f"These are the requests of this machine, {house.get('requests')['node']}.")
            pages.close()
            assert pages.faults == []


def _id(row: dict[str, Any]) -> str:
    return str(row["request_id"])
