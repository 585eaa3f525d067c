"""What commands say of used limits: over counters that a service's limiters wrote, and rows beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner, Result

from flowstack.cli.main import main
from flowstack.config import Settings, load
from flowstack.keys import Group, Key
from flowstack.keys.editor import add_group, add_key
from flowstack.limits.books import Standing
from flowstack.limits.counters import Counters
from flowstack.limits.money import NANO, Period
from flowstack.limits.restore import LOCK, open_counters
from flowstack.limits.shared import SharedLimiter
from flowstack.limits.uses import as_json, in_short, in_words
from tests.ledger.journals import write
from tests.ledger.samples import row as ledger_row
from tests.limits.lab import reserve, usd, used
from tests.rights import NOBODY, needs_root, public_folder, told_as_nobody

ALICE = Key("alice1", bytes(32), owner="alice", rpm=600, tpm=100_000, max_parallel=20, budget=usd("5"))
BOB = Key("bob1", b"\1" * 32, budget=usd("2", "total"))
FREE = Key("free1", b"\2" * 32)
NEW_YEAR = Period(0, 0.0, 1_798_761_600.0)  # 2027-01-01


def standing(limit: Any, most: int, used: int, reset: float | None, scope: str = "", **more: Any) -> Standing:
    return Standing(limit, "k", scope, most, used, reset, **more)


MONTH = {"budget": usd("5"), "period": NEW_YEAR}


@pytest.mark.parametrize(
    ("standing", "words", "short", "told"),
    [
        (standing("rpm", 600, 0, 0.0), "0 of 600 used, 600 left", "rpm 0, 600 left",
         {"limit": "rpm", "upstream": None, "most": 600, "used": 0, "left": 600, "resets_at": "2026-12-01T21:00:00Z"}),
        (standing("rpm", 600, 12, 52.0), "12 of 600 used, 588 left, all free in 52 s", "rpm 12, 588 left for 52 s",
         {"limit": "rpm", "upstream": None, "most": 600, "used": 12, "left": 588, "resets_at": "2026-12-01T21:00:52Z"}),
        (standing("tpm", 10, 25, 61.0, "azure"), "25 of 10 used, 0 left, all free in 61 s",
         "tpm to azure 25, 0 left for 61 s",
         {"limit": "tpm", "upstream": "azure", "most": 10, "used": 25, "left": 0,
          "resets_at": "2026-12-01T21:01:01Z"}),
        (standing("max_parallel", 20, 3, None), "3 of 20 in flight, 17 left", "max_parallel 3, 17 left",
         {"limit": "max_parallel", "upstream": None, "most": 20, "used": 3, "left": 17, "resets_at": None}),
        (standing("budget", 5 * NANO, 2_000_010_000, 9.0, **MONTH),
         "2.0000 of 5.0000 USD spent, 3.0000 left, renewed at 2027-01-01T00:00:00Z",
         "budget 2.0000, 3.0000 left until 2027-01-01",
         {"limit": "budget", "upstream": None, "amount_usd": 5.0, "spent_usd": 2.00001, "left_usd": 2.99999,
          "period": "month", "resets_at": "2027-01-01T00:00:00Z"}),
        (standing("budget", 5 * NANO, 12_000, None, budget=usd("5", "total"), period=NEW_YEAR),
         "0.000012 of 5.0000 USD spent, 5.0000 left", "budget 0.000012, 5.0000 left",
         {"limit": "budget", "upstream": None, "amount_usd": 5.0, "spent_usd": 0.000012, "left_usd": 4.999988,
          "period": "total", "resets_at": None}),
    ],
)  # fmt: skip
def test_each_limit_says_what_is_used_and_left_and_when_it_resets(
    standing: Standing, words: str, short: str, told: dict[str, Any]
) -> None:
    assert (in_words(standing), in_short(standing)) == (words, short)
    assert as_json(standing, 1_796_158_800.0) == {**told, "group": None}
    of_group = evolve(standing, name="@search")
    assert as_json(of_group, 0.0)["group"] == "search"
    assert in_short(of_group).startswith(f"{standing.limit} of @search ")


class Service:
    """A state directory, and the limiters of two workers that count in it."""

    def __init__(self, folder: Path, *keys: Key) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(0o700)
        for key in keys:
            add_key(folder / "keys", key)
        self.settings = Settings()

    def start(self) -> None:
        counters = open_counters(self.state / "limits", 2)
        self.limiters = [SharedLimiter(Counters.attach(counters.fileno(), worker), self.settings) for worker in (0, 1)]

    def spend(self, key: Key, estimate: float, cost: float | None = None, worker: int = 0, **row: Any) -> None:
        """Have a key charged; without a cost the request stays under way. A request with one has a row."""
        limiter, now = self.limiters[worker], datetime.now(UTC)
        held = reserve(limiter, key, tokens=100, cost=estimate)
        if cost is not None:
            limiter.settle(held, {**used(10, cost), "started_at": now})  # type: ignore[typeddict-item]
            self.row(key, cost, now, **row)

    def row(self, key: Key, cost: float | None, when: datetime, **more: Any) -> None:
        write(
            self.state / "ledger" / f"{when:%Y-%m-%d}.w0.jsonl",
            [ledger_row(key_id=key.id, owner=key.owner, cost_usd=cost, started_at=when, upstream="openai",
                        request_id=os.urandom(16).hex(), **more)],
        )  # fmt: skip

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(
            main, [*arguments, "--keys", str(self.folder / "keys"), "--state", str(self.state)], catch_exceptions=False
        )
        assert "Traceback" not in result.output
        return result

    def budgets(self) -> dict[str, dict[str, Any]]:
        result = self.run("budgets", "--json")
        assert result.exit_code == 0, result.output
        return {line["id"]: line for line in json.loads(result.stdout)}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, ALICE, BOB, FREE)
    service.start()
    yield service


def test_what_keys_used_is_listed_beside_what_they_may(service: Service) -> None:
    service.spend(ALICE, 1.0, 0.25)
    service.spend(ALICE, 0.5, worker=1)
    listed = {key["id"]: key["limits"] for key in json.loads(service.run("keys", "list", "--json").stdout)}
    assert listed["free1"] == []
    figures = {each["limit"]: each.get("used", each.get("spent_usd")) for each in listed["alice1"]}
    assert figures == {"rpm": 2, "tpm": 110, "max_parallel": 1, "budget": 0.75}
    table = service.run("keys", "list").stdout.splitlines()
    assert table[0].split() == ["id", "state", "owner", "expires", "limits", "used", "note"]
    assert "rpm 2, 598 left for" in table[1] and "max_parallel 1, 19 left; budget 0.7500, 4.2500 left until" in table[1]
    assert "budget 0.00, 2.0000 left" in table[2]
    shown = service.run("keys", "show", "alice1").stdout
    assert "  budget         0.7500 of 5.0000 USD spent, 4.2500 left, renewed at " in shown
    assert "  max_parallel   1 of 20 in flight, 19 left\n" in shown


def test_limits_of_the_configuration_are_told_too_with_what_is_used_of_them(tmp_path: Path) -> None:
    service = Service(tmp_path, FREE)
    config = tmp_path / "f.toml"
    config.write_text(
        "[server]\nkeys = 'keys'\nstate = 'state'\n[limits]\nrpm = 9\n[upstreams.openai]\nbase_url = 'https://a/v1'\n"
        "[upstreams.openai.limits]\nbudget = '3usd/day'\n"
    )
    service.settings = load(config)
    service.start()
    service.spend(FREE, 1.0, 0.5)
    shown = CliRunner().invoke(main, ["keys", "show", "free1", "--config", str(config)]).stdout
    assert "  rpm            none of its own: 9 as for all keys\n" in shown
    assert "  budget         none of its own: 3usd/day to openai\n" in shown
    assert "  rpm              1 of 9 used, 8 left, all free in" in shown
    assert "  budget to openai 0.5000 of 3.0000 USD spent" in shown
    (line,) = json.loads(CliRunner().invoke(main, ["budgets", "--json", "--config", str(config)]).stdout)
    assert (line["upstream"], line["spent_usd"], line["in_ledger_usd"]) == ("openai", 0.5, 0.5)
    reset = CliRunner().invoke(main, ["budgets", "--reset", "free1", "--config", str(config)])
    verified = CliRunner().invoke(main, ["keys", "verify", "--config", str(config)], input="x")
    assert "Note" not in verified.stderr
    assert reset.stdout == "The budget of the key free1 to openai was reset: 0.5000 of 3.0000 USD had been charged.\n"
    assert "--config" in service.run("budgets").stderr and service.run("budgets").stdout == ""


def test_what_is_charged_by_estimate_is_a_figure_of_its_own(service: Service) -> None:
    service.spend(ALICE, 1.0, 0.25)
    service.spend(ALICE, 0.5)  # under way
    service.spend(BOB, 0.125, 0.125, worker=1)
    service.row(ALICE, None, datetime.now(UTC))  # ended without its usage, so that its estimate stays
    service.row(ALICE, 7.0, datetime.now(UTC) - timedelta(days=62))
    service.row(FREE, 9.0, datetime.now(UTC))
    found = service.budgets()
    alice = found["alice1"]
    assert (alice["amount_usd"], alice["spent_usd"], alice["left_usd"]) == (5.0, 0.75, 4.25)
    assert (alice["in_ledger_usd"], alice["by_estimate_usd"], alice["period"]) == (0.25, 0.5, "month")
    assert alice["resets_at"].endswith("-01T00:00:00Z")
    assert (found["bob1"]["by_estimate_usd"], found["bob1"]["resets_at"]) == (0.0, None)
    assert set(found) == {"alice1", "bob1"}
    lines = service.run("budgets").stdout.splitlines()
    assert lines[0].split() == ["id", "owner", "to", "amount", "USD", "spent", "left", "in", "ledger", "by", "estimate",
                                "period", "renewed", "at"]  # fmt: skip
    assert lines[1].split()[:7] == ["alice1", "alice", "5.0000", "0.7500", "4.2500", "0.2500", "0.5000"]
    assert lines[2].split() == ["bob1", "2.0000", "0.1250", "1.8750", "0.1250", "0.00", "total", "never"]


def test_a_groups_budget_is_listed_and_reset_like_a_keys_and_neither_with_the_other(tmp_path: Path) -> None:
    service = Service(tmp_path)
    group = Group("search", rpm=50, budget=usd("3"))
    add_group(tmp_path / "keys", group)
    members = [evolve(ALICE, group="search"), evolve(BOB, group="search")]
    for key in members:
        add_key(tmp_path / "keys", key)
    service.start()
    alice, bob = (evolve(key, shared=group) for key in members)
    service.spend(alice, 1.0, 0.5, group="search")
    service.spend(bob, 0.25, 0.25, worker=1, group="search")
    service.spend(alice, 0.125)
    service.row(ALICE, 1.0, datetime.now(UTC) - timedelta(days=62), group="search")
    found = service.budgets()
    assert list(found) == ["@search", "alice1", "bob1"]
    of_group = found["@search"]
    assert (of_group["owner"], of_group["amount_usd"], of_group["left_usd"]) == (None, 3.0, 2.125)
    assert (of_group["spent_usd"], of_group["in_ledger_usd"], of_group["by_estimate_usd"]) == (0.875, 0.75, 0.125)
    assert (found["alice1"]["spent_usd"], found["bob1"]["spent_usd"]) == (0.625, 0.25)
    shown = service.run("keys", "show", "bob1").stdout
    assert "  budget of @search 0.8750 of 3.0000 USD spent, 2.1250 left" in shown
    assert "  rpm of @search    3 of 50 used, 47 left" in shown
    listed = service.run("groups", "list").stdout
    assert "rpm of @search 3, 47 left for" in listed and "budget of @search 0.8750, 2.1250 left until" in listed
    (told,) = json.loads(service.run("groups", "list", "--json").stdout)
    assert [each["limit"] for each in told["limits"]] == ["rpm", "budget"]
    reset = service.run("budgets", "--reset", "@search")
    assert reset.stdout == "The budget of the group search was reset: 0.8750 of 3.0000 USD had been charged.\n"
    found = service.budgets()
    assert [found[name]["spent_usd"] for name in ("@search", "alice1", "bob1")] == [0.0, 0.625, 0.25]
    without_at = service.run("budgets", "--reset", "search")
    assert without_at.exit_code == 2 and "expected a key's id, or @search" in without_at.stderr
    assert service.run("budgets", "--reset", "alice1").exit_code == 0
    service.spend(alice, 0.5)
    assert service.budgets()["@search"]["spent_usd"] == 0.5


def test_rows_that_are_older_than_the_budget_make_the_estimate_unknown_and_not_less(service: Service) -> None:
    service.row(BOB, 1.5, datetime.now(UTC))
    service.spend(BOB, 0.25)
    line = service.budgets()["bob1"]
    assert (line["spent_usd"], line["in_ledger_usd"], line["by_estimate_usd"]) == (0.25, 1.5, None)
    result = service.run("budgets")
    assert "  -  total" in result.stdout
    assert "older than the budget" in result.stderr


def test_a_reset_says_what_was_charged_and_the_workers_count_on_from_nothing(service: Service) -> None:
    service.row(ALICE, 1.0, datetime.now(UTC) - timedelta(seconds=2))
    service.spend(ALICE, 3.0, worker=0)
    service.spend(ALICE, 1.5, worker=1)
    result = service.run("budgets", "--reset", "alice1")
    assert (result.exit_code, result.stdout) == (
        0, "The budget of the key alice1 was reset: 4.5000 of 5.0000 USD had been charged.\n",
    )  # fmt: skip
    assert service.budgets()["alice1"]["spent_usd"] == 0.0
    service.spend(ALICE, 4.0, worker=1)
    line = service.budgets()["alice1"]
    assert (line["spent_usd"], line["in_ledger_usd"], line["by_estimate_usd"]) == (4.0, 0.0, 4.0)
    told = json.loads(service.run("budgets", "--reset", "alice1", "--json").stdout)
    assert told == [{"id": "alice1", "upstream": None, "spent_usd": 4.0}]
    assert service.budgets()["bob1"]["spent_usd"] == 0.0


@pytest.mark.parametrize(
    ("reset", "says", "status"),
    [
        ("nobody", "found no key with the id 'nobody'; `flowstack keys list` shows the ids", 1),
        ("free1", "the key free1 has no budget, so that there is nothing to reset; with --config", 1),
        (f"fsk-{'0aB' * 18}", "found a whole key", 2),
        ("fsk-k7Qm2xW9pLz4", "expected the id alone: k7Qm2xW9pLz4", 2),
        ("", "found no key with the id ''", 1),
        ("@nobody", "found no group with the name 'nobody'; `flowstack groups list` shows the names", 1),
        ("@", "found no group with the name ''", 1),
    ],
)
def test_a_reset_of_what_has_no_budget_is_a_clear_error(service: Service, reset: str, says: str, status: int) -> None:
    service.spend(ALICE, 1.0)
    result = service.run("budgets", "--reset", reset)
    assert (result.exit_code, result.stdout) == (status, "")
    assert says in result.stderr
    assert service.budgets()["alice1"]["spent_usd"] == 1.0


def _no_state(service: Service) -> None:
    (service.state / "limits" / "counters").unlink()
    (service.state / "limits" / LOCK).unlink()
    (service.state / "limits").rmdir()
    service.state.rmdir()


def _damaged(service: Service) -> None:
    path = service.state / "limits" / "counters"
    path.write_bytes(b"\xff" * 10_001)


def _a_folder(service: Service) -> None:
    (service.state / "limits" / "counters").unlink()
    (service.state / "limits" / "counters").mkdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_no_state, "no service has run with this state directory"),
        (_damaged, "are damaged, or another version's"),
        (_a_folder, "a directory, no regular file"),
    ],
)
def test_without_good_counters_limits_are_shown_alone_and_budgets_say_why_not(
    service: Service, harm: Callable[[Service], None], says: str
) -> None:
    harm(service)
    for words in (("keys", "list"), ("keys", "show", "alice1")):
        result = service.run(*words)
        assert result.exit_code == 0
        assert says in result.stderr and "only the limits are shown" in result.stderr
        assert "600" in result.stdout and "left" not in result.stdout
    assert [key["limits"] for key in json.loads(service.run("keys", "list", "--json").stdout)] == [None] * 3
    for words in (("budgets",), ("budgets", "--json"), ("budgets", "--reset", "alice1")):
        result = service.run(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert says in result.stderr


def test_without_a_state_directory_that_is_said_and_keys_without_limits_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_key(tmp_path / "keys", FREE)
    assert CliRunner().invoke(main, ["keys", "list"]).stderr == ""
    add_key(tmp_path / "keys", ALICE)
    assert "no state directory is known" in CliRunner().invoke(main, ["keys", "list"]).stderr
    result = CliRunner().invoke(main, ["budgets"])
    assert (result.exit_code, "--state DIR, or --config FILE" in result.stderr) == (2, True)


def test_without_a_ledger_budgets_are_listed_and_what_is_by_estimate_is_unknown(service: Service) -> None:
    service.spend(ALICE, 1.0)
    result = service.run("budgets", "--json")
    assert result.exit_code == 0
    assert {(line["in_ledger_usd"], line["by_estimate_usd"]) for line in json.loads(result.stdout)} == {(None, None)}
    assert "no ledger in" in result.stderr


def test_that_no_service_runs_is_said_beside_what_the_last_one_left(service: Service) -> None:
    service.spend(ALICE, 1.0)
    for words in (("budgets",), ("keys", "list"), ("keys", "show", "alice1")):
        assert "no running service was found for" in service.run(*words).stderr


@needs_root
def test_a_user_without_rights_is_told_so_in_words() -> None:
    with public_folder() as folder:
        service = Service(folder, ALICE)
        service.start()
        for path in (folder / "keys", service.state):
            path.chmod(path.stat().st_mode | 0o055)
        (service.state / "limits").chmod(0o755)
        told = told_as_nobody(
            "from click.testing import CliRunner\n"
            "from flowstack.cli import budgets, keys\n"  # while this user may still read them
            "from flowstack.cli.main import main",
            """
            for words in (["budgets"], ["budgets", "--reset", "alice1"], ["keys", "show", "alice1"]):
                where = ["--keys", str(path / "keys"), "--state", str(path / "state")]
                result = CliRunner().invoke(main, [*words, *where])
                print(result.exit_code, result.exception is None or isinstance(result.exception, SystemExit))
                print("Permission denied" in result.stderr, "600" in result.stdout)
            """,
            folder,
        )
        assert told.split() == ["1", "True", "True", "False"] * 2 + ["0", "True", "True", "True"]


@needs_root
def test_root_reads_another_users_counters_with_that_users_rights() -> None:
    with public_folder() as folder:
        service = Service(folder, ALICE)
        service.start()
        service.spend(ALICE, 1.0, 0.5)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        assert service.budgets()["alice1"]["in_ledger_usd"] == 0.5
        assert service.run("budgets", "--reset", "alice1").exit_code == 0
        assert {path.stat().st_uid for path in folder.rglob("*")} == {NOBODY}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--budget", "4usd/day"], "was month and is day now: it begins at zero, and the whole of 4.0000 USD may be "
                                   "spent; 1.5000 of 5.0000 USD were spent of it before"),
        (["--budget", "4usd/total"], "was month and is total now"),
        (["--budget", "4usd/month"], None),
        (["--unset", "budget"], None),
        (["--rpm", "5"], None),
    ],
)  # fmt: skip
def test_a_period_that_is_changed_is_warned_of_with_what_was_spent(
    service: Service, changes: list[str], says: str | None
) -> None:
    service.spend(ALICE, 1.5)
    result = service.run("keys", "set", "alice1", *changes)
    assert result.exit_code == 0
    assert (says in result.stderr) if says else ("Warning" not in result.stderr), result.stderr


def test_a_period_that_is_changed_before_anything_was_spent_says_so(service: Service) -> None:
    assert "nothing was spent of it before" in service.run("keys", "set", "bob1", "--budget", "1usd/day").stderr
    (service.state / "limits" / "counters").unlink()
    assert "nothing was spent of it before" in service.run("keys", "set", "bob1", "--budget", "1usd/month").stderr
    (service.state / "limits" / "counters").write_bytes(b"x")
    assert "is unknown: the limits' counters" in service.run("keys", "set", "bob1", "--budget", "1usd/day").stderr


def test_check_tells_of_a_period_that_was_changed_in_the_file(service: Service) -> None:
    service.spend(ALICE, 1.5)
    (service.folder / "f.toml").write_text("[server]\nkeys = 'keys'\nstate = 'state'\n")

    def told() -> str:
        return CliRunner().invoke(main, ["check", "--config", str(service.folder / "f.toml")]).stderr

    assert told() == ""
    keys = service.folder / "keys"
    keys.write_text(keys.read_text().replace("budget=5usd/month", "budget=5usd/day"))
    assert "the key alice1 had a budget by month, of which 1.5000 USD are spent; by day it begins at zero" in told()
    service.spend(evolve(ALICE, budget=usd("5", "day")), 0.5)
    assert told() == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (["--tpm", "4000"], "has tpm=4000, less than the 4112 tokens"),
        (["--models", "gpt-4o", "--budget", "0.01usd/day"], "has budget=0.01usd/day, less than the 0.0697 USD"),
        (["--models", "in-house", "--budget", "1usd/day"], "names the model in-house, which has no price"),
        (["--tpm", "5000", "--models", "gpt-4o", "--budget", "1usd/day"], None),
    ],
)
def test_a_limit_that_cannot_work_is_warned_of_when_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: list[str], says: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["add"], ["set", "k"]):
        if words == ["set", "k"]:
            add_key(tmp_path / "keys", Key("k", b"\3" * 32))
        result = CliRunner().invoke(main, ["keys", *words, *fields])
        assert result.exit_code == 0
        assert (
            (says in result.stderr and "without --config" in result.stderr) if says else "Warning" not in result.stderr
        )
    noted = CliRunner().invoke(main, ["keys", "set", "k", "--note", "x"])
    assert "Warning" not in noted.stderr
