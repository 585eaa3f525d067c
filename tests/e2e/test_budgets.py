"""What an operator sees of budgets, and resets, beside a proxy with two workers that serves on."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flowstack.cli.main import main
from flowstack.prices.table import load_prices
from tests.e2e.crowd import MODEL, Gauge, chat, cost, crowd, journal, once
from tests.e2e.processes import Proxy, eventually
from tests.e2e.raw import Client
from tests.e2e.raw_upstream import front
from tests.e2e.test_limits_outlive import begin, hold

pytestmark = [pytest.mark.e2e]

CLIENTS, EACH, RESETS = 6, 15, 4
OUTPUT = 100
COST = cost(0, OUTPUT)
MOST = (20 * 4.25 + 16_384 * 17) / 1e6
"""US dollars that are reserved where neither a most output nor a tier is declared: all that the model gives, and some
of input, at the price of ``priority`` (OpenAI, "Models": gpt-4o; "Pricing")."""


def budgets(proxy: Proxy, *arguments: str) -> list[dict[str, Any]]:
    words = ["budgets", "--config", str(proxy.config_path), "--json", *arguments]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "no service was found" not in result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_a_budget_of_two_workers_is_shown_as_its_rows_say_and_what_is_under_way_by_estimate(tmp_path: Path) -> None:
    with front(tmp_path, base="/v1", server={"workers": 2}) as ends, ExitStack() as stack:
        key = ends.proxy.keystore.add("budget=1.00usd/month max_parallel=50")
        assert ends.proxy.reload()["fault"] is None
        ends.upstream.script = Gauge().script(0, OUTPUT)
        raw = chat(key, max_completion_tokens=OUTPUT)
        assert {answer.status for answer in crowd(8, lambda _: once(ends.proxy.port, raw))} == {200}
        (line,) = budgets(ends.proxy)
        assert line["spent_usd"] == pytest.approx(8 * COST)
        assert (line["in_ledger_usd"], line["by_estimate_usd"]) == (line["spent_usd"], 0.0)
        ends.upstream.script = hold
        held = begin(ends, stack, key)
        assert isinstance(held, Client)
        (line,) = budgets(ends.proxy)
        assert line["in_ledger_usd"] == pytest.approx(8 * COST)
        assert line["by_estimate_usd"] == pytest.approx(MOST, rel=0.01)
        shown = CliRunner().invoke(main, ["keys", "show", key[4:16], "--config", str(ends.proxy.config_path)]).stdout
        assert "  max_parallel   1 of 50 in flight, 49 left\n" in shown
        held.sock.close()
        eventually(lambda: len(journal(ends.proxy, key)) == 9, "the row of the client that left")
        (line,) = budgets(ends.proxy)
        assert line["by_estimate_usd"] == pytest.approx(MOST, rel=0.01)


def test_resets_beside_two_busy_workers_lose_no_charge(tmp_path: Path) -> None:
    with front(tmp_path, base="/v1", server={"workers": 2}) as ends:
        key = ends.proxy.keystore.add("budget=1000usd/month")
        assert ends.proxy.reload()["fault"] is None
        ends.upstream.script = Gauge().script(0, OUTPUT)
        raw = chat(key, max_completion_tokens=OUTPUT)
        taken, ended = [], threading.Event()

        def reset() -> None:
            while not ended.is_set() and len(taken) < RESETS:
                taken.append(budgets(ends.proxy, "--reset", key[4:16])[0]["spent_usd"])

        def ask(number: int) -> None:
            if number == CLIENTS:
                return reset()
            for _ in range(EACH):
                assert once(ends.proxy.port, raw).status == 200
            return None

        try:
            crowd(CLIENTS + 1, ask)
        finally:
            ended.set()
        rows = journal(ends.proxy, key)
        assert len(rows) == CLIENTS * EACH
        (line,) = budgets(ends.proxy)
        charged, used = sum(taken) + line["spent_usd"], len(rows) * COST
        # What was in flight at a reset was taken off by its estimate, and is charged with its cost when it ends. The
        # estimate is a token for each byte of text, in the dearest tier that may serve it.
        estimate = load_prices().estimate(MODEL, len(raw.partition(b"\r\n\r\n")[2]), OUTPUT)
        assert estimate is not None
        most = len(taken) * CLIENTS * estimate
        assert taken and used <= charged + 1e-9 <= used + most + 1e-9
        assert budgets(ends.proxy, "--reset", key[4:16])[0]["spent_usd"] == line["spent_usd"]
        (line,) = budgets(ends.proxy)
        assert (line["spent_usd"], line["left_usd"]) == (0.0, 1000.0)
