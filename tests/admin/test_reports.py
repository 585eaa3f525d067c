"""What the API answers from files: the commands' own figures, within their time; changes whole, written down, and no
secret but in the one answer."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowstack.admin import audit
from flowstack.admin import reports as module
from flowstack.admin.refusals import BadParameter, Conflict, NoReports, NotFound, QueryTooLong
from flowstack.admin.reports import Reports
from flowstack.cli.main import main
from flowstack.config import Settings
from flowstack.config.settings import Server as ServerSettings
from flowstack.config.settings import Shared
from flowstack.errors import FlowstackError, ParseError
from flowstack.keys import Key, digest
from flowstack.keys.editor import add_group, add_key
from flowstack.keys.key import Group
from flowstack.keys.reading import KeystoreError, read_keys
from flowstack.ledger.files import journal_path
from flowstack.ledger.index import Index, index_path
from flowstack.ledger.row import BLANK
from flowstack.limits.counters import Counters
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from tests.ledger.conftest import postgres, shared
from tests.ledger.journals import write
from tests.ledger.machines import Machine
from tests.ledger.samples import row
from tests.ledger.servers import PASSWORD, Server, server
from tests.limits.lab import reserve, usd, used

__all__ = ["postgres", "shared"]

ACTOR = {"role": "manager", "address": "192.0.2.7"}
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e' OR 1=1 --"


class House:
    """A state directory with a keystore, counters and a ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(0o700)
        self.keys = folder / "keys"
        add_group(self.keys, Group("search", budget=usd("9")))
        add_key(self.keys, Key("alice1", bytes(32), owner="alice", rpm=600, budget=usd("5"), group="search"))
        add_key(self.keys, Key("bob1", b"\1" * 32, owner=HOSTILE.replace("\x1b[31m\u202e", ""), note="for batches"))
        self.settings = Settings(server=ServerSettings(keys=self.keys, state=self.state))
        self.now = datetime.now(UTC).timestamp()
        self.reports = Reports(self.settings, lambda: self.now)

    def record(self, *rows: dict[str, Any]) -> None:
        begun = datetime.fromtimestamp(self.now - 60, UTC)
        write(journal_path(self.state) / f"{begun:%Y-%m-%d}.w0.jsonl", [
            row(request_id=f"{number:032x}", **{"started_at": begun, "key_id": "alice1", **one})
            for number, one in enumerate(rows)
        ])  # fmt: skip
        with Index(index_path(self.state), journal_path(self.state)) as index:
            index.catch_up()

    def count(self) -> SharedLimiter:
        counters = open_counters(self.state / "limits", 1)
        return SharedLimiter(Counters.attach(counters.fileno(), 0), self.settings)

    def ask(self, what: str, seconds: float = 30.0, **asked: Any) -> Any:
        return json.loads(self.reports.answer(what, asked, seconds).body)

    def change(self, what: str, **asked: Any) -> Any:
        return self.ask(what, actor=ACTOR, **asked)

    def command(self, *arguments: str) -> Any:
        result = CliRunner().invoke(main, [*arguments, "--state", str(self.state)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def audit(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("audit")["entries"]
        return found


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"by": "key"}, []),
        ({"by": "day,model", "sort": "requests"}, ["--by", "day,model", "--sort", "requests"]),
        ({"by": "", "where": ["attribute:team=blue"]}, ["--by", "", "--where", "attribute:team=blue"]),
        ({"by": "attribute:team", "limit": 1}, ["--by", "attribute:team", "--limit", "1"]),
        ({"by": "model", "where": ["owner=", "status=5*,status=429"]},
         ["--by", "model", "--where", "owner=", "--where", "status=5*,status=429"]),
    ],
)  # fmt: skip
def test_a_report_is_the_command_s_own(house: House, asked: dict[str, Any], options: list[str]) -> None:
    house.record(
        {"cost_usd": 0.1}, {"status": 500, "owner": None}, {"status": 429, "owner": None, "model": "o3"},
        {"attributes": {"team": HOSTILE}, "model": HOSTILE}, {"cost_usd": None, "unpriced": "no_price:x"},
    )  # fmt: skip
    assert house.ask("report", **asked) == house.command("usage", "--format", "json", *options)


def test_keys_groups_and_budgets_are_the_commands_own(house: House) -> None:
    limiter = house.count()
    alice = next(key for key in read_keys(house.keys).key_set if key.id == "alice1")
    limiter.settle(reserve(limiter, alice, tokens=100, cost=2.0), used(10, 1.25))
    keys = house.ask("keys")["keys"]
    assert [key.pop("last_used") for key in keys] == [None, None]
    listed = house.command("keys", "list", "--json", "--keys", str(house.keys))
    for key in (*keys, *listed):
        for limit in key["limits"]:
            del limit["resets_at"]
    assert keys == listed
    assert house.ask("groups")["groups"] == house.command("groups", "list", "--json", "--keys", str(house.keys))
    budgets = {(one["of"], one["id"]): one for one in house.ask("budgets")["budgets"]}
    of_command = {one["id"]: one for one in house.command("budgets", "--json", "--keys", str(house.keys))}
    assert {("key", "alice1"), ("group", "search")} == set(budgets)
    for place, told in ((("key", "alice1"), "alice1"), (("group", "search"), "@search")):
        for name in ("amount_usd", "spent_usd", "left_usd", "period", "resets_at", "owner", "upstream"):
            assert budgets[place][name] == of_command[told][name]
        assert budgets[place]["projected_usd"] >= budgets[place]["spent_usd"] == 1.25


def test_keys_are_found_by_a_part_of_their_words_and_say_when_they_were_used_last(house: House) -> None:
    house.record({}, {"key_id": "gone"})
    found = house.ask("keys", search="ALI")
    assert [key["id"] for key in found["keys"]] == ["alice1"]
    assert found["keys"][0]["last_used"] == f"{datetime.fromtimestamp(house.now - 60, UTC):%Y-%m-%d}"
    assert [key["id"] for key in house.ask("keys", search="batch")["keys"]] == ["bob1"]
    assert house.ask("keys", limit=1)["left_out"] == 1
    assert house.ask("keys", search="nobody") == {"keys": [], "left_out": 0}


def test_a_key_s_holder_is_told_of_its_own_rows_alone(house: House) -> None:
    house.record({"cost_usd": 0.1}, {"cost_usd": 7.0, "key_id": "bob1"}, {"cost_usd": 0.2, "model": "o3"})
    told = house.ask("usage", key="alice1", by="model")
    assert {line["model"]: line["cost_usd"] for line in told["groups"]} == {"gpt-4o-2024-08-06": 0.1, "o3": 0.2}
    assert told["total"]["requests"] == 2
    for by in ("key", "owner", "day,owner", "attribute:team"):
        with pytest.raises(BadParameter, match="by: expected day, hour, model"):
            house.ask("usage", key="alice1", by=by)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"status": "5xx|429"}, [2, 1]),
        ({"status": "500"}, [1]),
        ({"where": ["owner=", "status=5*"]}, [1]),
        ({"where": [f"model={HOSTILE}"]}, [3]),
        ({"where": ["attribute:team=<script>*"]}, [3]),
        ({"error": "draining", "end": "refused"}, [4]),
        ({"id": f"{3:032x}"}, [3]),
        ({"id": "req_2"}, [2]),
        ({"cost_min": 0.05}, [0]),
        ({"duration_max": 2000.0}, []),
        ({"since": "0m"}, []),
        ({"until": "0m"}, [4, 3, 2, 1, 0]),
        ({"where": ["key=bob1"]}, []),
    ],
)  # fmt: skip
def test_rows_are_found_by_what_a_page_asks_for(house: House, asked: dict[str, Any], found: list[int]) -> None:
    house.record(*[
        {"upstream_request_id": f"req_{number}", **one}
        for number, one in enumerate((
            {"cost_usd": 0.1}, {"status": 500, "owner": None}, {"status": 429, "owner": None, "model": "o3"},
            {"attributes": {"team": HOSTILE}, "model": HOSTILE}, {"error_code": "draining", "end": "refused"},
        ))
    ])  # fmt: skip
    told = house.ask("requests", **asked)
    assert [int(one["request_id"], 16) for one in told["requests"]] == found
    assert (told["older"], told["complete"]) == (None, True)
    assert set(told["requests"][0] if found else ()) <= {*BLANK, "requests"}
    exported = house.ask("requests.export", **asked)
    assert [one["request_id"] for one in exported["requests"]] == [one["request_id"] for one in told["requests"]]


def test_rows_come_in_pages_and_then_live(house: House) -> None:
    house.record({}, {}, {})
    first = house.ask("requests", limit=2)
    second = house.ask("requests", limit=2, cursor=first["older"])
    assert [len(first["requests"]), len(second["requests"]), second["older"]] == [2, 1, None]
    assert house.ask("requests", direction="newer", cursor=first["newer"])["requests"] == []
    write(journal_path(house.state) / f"{datetime.fromtimestamp(house.now, UTC):%Y-%m-%d}.w9.jsonl", [row(9)])
    new = house.ask("requests", direction="newer", cursor=first["newer"])
    assert [one["request_id"] for one in new["requests"]] == ["9"]
    for asked in ({"cursor": "nonsense"}, {"direction": "newer"}):
        with pytest.raises(BadParameter) as raised:
            house.ask("requests", **asked)
        assert raised.value.param == "cursor"


def test_a_row_that_the_index_does_not_know_yet_is_found(house: House) -> None:
    house.record({"owner": "zoe"})
    write(journal_path(house.state) / f"{datetime.fromtimestamp(house.now, UTC):%Y-%m-%d}.w9.jsonl",
          [row(9, owner="new", started_at=datetime.fromtimestamp(house.now - 5, UTC))])  # fmt: skip
    assert [one["request_id"] for one in house.ask("requests", where=["owner=new"])["requests"]] == ["9"]


def test_what_takes_the_index_too_long_is_left_out_of_an_answer_that_is_good_without(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.record({"owner": "zoe"})
    monkeypatch.setattr("flowstack.admin.reports._SIDE_SECONDS", -1.0)
    monkeypatch.setattr("flowstack.admin.reports._STEPS", 1)
    assert house.ask("keys")["keys"][0]["last_used"] is None
    assert len(house.ask("requests", where=["owner=zoe"])["requests"]) == 1
    assert house.ask("report")["total"]["requests"] == 1


def test_one_row_is_told_whole_with_what_its_fields_mean(house: House) -> None:
    house.record({"owner": HOSTILE})
    told = house.ask("requests.one", id=f"{0:032x}")
    assert told["request"]["owner"] == HOSTILE
    assert told["request"]["usage_details"] is not None
    assert {field["name"] for field in told["fields"]} == set(told["request"])
    assert not [field for field in told["fields"] if "``" in field["meaning"] or ":doc:" in field["meaning"]]
    with pytest.raises(NotFound, match="There is no row"):
        house.ask("requests.one", id="none")


def test_a_file_for_a_spreadsheet_holds_no_formula_and_says_where_it_was_cut(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.record({"owner": '=HYPERLINK("x")'}, {"owner": None}, {"model": HOSTILE})
    answer = house.reports.answer("requests.export", {"format": "csv"}, 30.0)
    assert answer.kind == "text/csv;charset=utf-8"
    last, middle, first = csv.DictReader(answer.body.decode().splitlines())
    assert (first["owner"], middle["owner"]) == ('\'=HYPERLINK("x")', "")
    assert "\x1b" not in last["model"]
    assert json.loads(first["attributes"]) == {"team": "blue"}
    monkeypatch.setattr("flowstack.admin.reports.MOST_LINES", 2)
    cut = house.reports.answer("requests.export", {"format": "csv"}, 30.0).body.decode().splitlines()
    assert len(cut) == 4
    assert cut[-1].startswith('"(cut: there are more') or cut[-1].startswith("(cut: there are more")
    assert house.ask("requests.export")["complete"] is False


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"by": "nonsense"}, "by"),
        ({"where": ["nonsense"]}, "where"),
        ({"where": ["key=fsk-0123456789abcdef"]}, "where"),
        ({"where": ["model=sk-proj-0123456789abcdef0123456789"]}, "where"),
        ({"since": "never"}, "since"),
        ({"since": "today", "until": "yesterday"}, "until"),
        ({"sort": "beauty"}, "sort"),
    ],
)
def test_a_fault_names_the_parameter_and_repeats_no_key(house: House, asked: dict[str, Any], param: str) -> None:
    house.record({})
    with pytest.raises(BadParameter) as raised:
        house.ask("report", **asked)
    assert raised.value.param == param
    assert "0123456789abcdef" not in raised.value.message


def test_a_query_is_given_up_after_its_time_and_the_next_one_answers(house: House) -> None:
    house.record({})
    house.reports._reads["budgets"] = lambda asked: _forever()
    with pytest.raises(QueryTooLong, match=r"more than the 0\.2 seconds"):
        house.ask("budgets", seconds=0.2)
    assert house.ask("report", where=["model=gpt*"])["total"]["requests"] == 1


def _forever() -> bool:
    while True:
        pass


def test_sqlite_itself_is_interrupted(house: House) -> None:
    house.record({})
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

    def ask(asked: Any) -> None:
        with house.reports._index() as connection:
            connection.execute(endless).fetchone()

    house.reports._reads["report"] = ask
    with pytest.raises(QueryTooLong):
        house.ask("report", seconds=0.2)


def test_without_a_ledger_it_is_said_what_is_missing(house: House) -> None:
    with pytest.raises(NoReports, match="no index of the ledger yet"):
        house.ask("report")
    with pytest.raises(NoReports, match=r"\[server\] state is not set"):
        Reports(Settings()).answer("report", {}, 5.0)
    assert house.ask("budgets") == {"budgets": []}
    index_path(house.state).write_bytes(b"no database")
    with pytest.raises(NoReports, match="cannot be read: it is damaged"):
        house.ask("report")


def test_an_index_that_was_built_anew_is_opened_anew(house: House) -> None:
    house.record({})
    assert house.ask("report")["total"]["requests"] == 1
    for suffix in ("", "-wal", "-shm"):
        index_path(house.state).with_name(f"ledger.sqlite{suffix}").unlink(missing_ok=True)
    with Index(index_path(house.state), journal_path(house.state)) as index:
        write(journal_path(house.state) / "2026-11-23.w1.jsonl", [row(9)])
        index.catch_up()
    assert house.ask("report")["total"]["requests"] == 2


def test_a_key_is_made_changed_rotated_and_removed_and_each_is_written_down(house: House) -> None:
    made = house.change("keys.add", attributes={"owner": "carol", "models": "gpt-4o*,o3", "budget": "5usd/month"})
    key_id, secret = made["key"]["id"], made["secret"]
    assert (made["key"]["owner"], made["key"]["models"], made["key"]["state"]) == ("carol", ["gpt-4o*", "o3"], "ok")
    found = read_keys(house.keys).key_set.get(digest(secret.encode()))
    assert found is not None
    assert found.id == key_id
    changed = house.change("keys.change", id=key_id, attributes={"rpm": "60", "models": None}, disabled=True)
    assert (changed["key"]["rpm"], changed["key"]["models"], changed["key"]["state"]) == (60, [], "disabled")
    assert house.change("keys.change", id=key_id, disabled=False)["key"]["owner"] == "carol"
    rotated = house.change("keys.rotate", id=key_id, grace="7d")
    assert rotated["secret"] != secret
    assert rotated["key"]["previous_until"] is not None
    with pytest.raises(Conflict, match="rotations may not overlap"):
        house.change("keys.rotate", id=key_id)
    house.change("keys.remove", id=key_id)
    with pytest.raises(NotFound):
        house.change("keys.remove", id=key_id)
    entries = house.audit()
    assert [(entry["action"], entry["target"]) for entry in entries] == [
        ("keys.remove", key_id), ("keys.rotate", key_id), ("keys.change", key_id), ("keys.change", key_id),
        ("keys.add", key_id),
    ]  # fmt: skip
    assert all(entry["actor"] == ACTOR for entry in entries)
    assert (entries[0]["after"], entries[-1]["before"], entries[-1]["after"]["owner"]) == (None, None, "carol")
    assert (entries[3]["before"]["rpm"], entries[3]["after"]["rpm"], entries[3]["after"]["disabled"]) == (
        None,
        60,
        True,
    )
    assert house.ask("audit", limit=2)["entries"] == entries[:2]
    assert audit.audit_path(house.state).stat().st_mode & 0o777 == 0o600


def test_groups_likewise_and_one_with_keys_stays(house: House) -> None:
    house.change("groups.add", name="batch", attributes={"rpm": "10"})
    assert house.change("groups.change", name="batch", attributes={"rpm": None, "note": "x"})["group"]["note"] == "x"
    house.change("groups.remove", name="batch")
    with pytest.raises(Conflict, match="found 1 key in the group search"):
        house.change("groups.remove", name="search")
    with pytest.raises(Conflict):
        house.change("groups.add", name="search")
    assert [entry["action"] for entry in house.audit()] == ["groups.remove", "groups.change", "groups.add"]


@pytest.mark.parametrize(
    ("attributes", "param"),
    [
        ({"rpm": "many"}, "rpm"),
        ({"rpm": "0"}, "rpm"),
        ({"expires": "2020-01-01"}, "expires"),
        ({"budget": "lots"}, "budget"),
        ({"owner": HOSTILE}, "owner"),
        ({"owner": "a\nnext sha256:00"}, "owner"),
        ({"owner": "x" * 257}, "owner"),
        ({"models": "a b"}, "models"),
        ({"allow_ip": "everywhere"}, "allow_ip"),
    ],
)
def test_an_attribute_that_no_line_may_have_changes_nothing(
    house: House, attributes: dict[str, str], param: str
) -> None:
    before = house.keys.read_bytes()
    for what, more in (("keys.add", {}), ("keys.change", {"id": "alice1"})):
        with pytest.raises(BadParameter) as raised:
            house.change(what, attributes=attributes, **more)
        assert raised.value.param == param
    assert house.keys.read_bytes() == before
    assert house.audit() == []


def test_words_of_other_people_come_back_as_they_are(house: House) -> None:
    owner = "Zoë 🦊 <b>&amp; ' \" \\ אבג"
    made = house.change("keys.add", attributes={"owner": owner, "note": "x" * 1024})
    assert made["key"]["owner"] == owner
    assert house.ask("keys", search="🦊")["keys"][0]["owner"] == owner


def test_limits_that_cannot_work_are_warned_of(house: House) -> None:
    made = house.change("keys.add", attributes={"tpm": "5"})
    assert len(made["warnings"]) == 1
    assert "less than the" in made["warnings"][0]


def test_what_cannot_be_written_down_is_not_done(house: House) -> None:
    audit.audit_path(house.state).mkdir()
    before = house.keys.read_bytes()
    with pytest.raises(Conflict, match="a change cannot be written down"):
        house.change("keys.remove", id="alice1")
    assert house.keys.read_bytes() == before


def failing(monkeypatch: pytest.MonkeyPatch, *fail: bool) -> None:
    """Have the first writes to the audit's file fail, or not, for want of space."""
    left = list(fail)

    def write(file: int, data: bytes) -> None:
        if left and left.pop(0):
            os.write(file, data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(file, data)

    monkeypatch.setattr(audit, "write", write)


def test_a_disk_that_fills_after_a_key_was_made_takes_its_secret_from_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, False, True)
    made = house.change("keys.add", attributes={"owner": "carol"})
    assert made["secret"]
    assert "The change was made; that it was could not be written" in made["warnings"][-1]
    (entry,) = house.audit()
    assert (entry["action"], entry["target"], entry["outcome"]) == ("keys.add", made["key"]["id"], "unknown")
    assert (entry["actor"], entry["before"], entry["after"]) == (ACTOR, None, None)
    assert house.change("keys.change", id=made["key"]["id"], disabled=True)["warnings"] == []
    assert [entry["outcome"] for entry in house.audit()] == ["made", "unknown"]


def test_a_change_of_which_the_disk_takes_no_word_is_not_made(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, True)
    before = house.keys.read_bytes()
    with pytest.raises(Conflict, match="No space left on device; nothing was changed"):
        house.change("keys.add", attributes={"owner": "carol"})
    assert house.keys.read_bytes() == before
    assert house.audit() == []


def test_what_is_to_be_done_is_on_disk_before_it_is(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def killed(path: Path, key_id: str) -> Key:
        seen.extend(house.audit())
        raise KeystoreError((ParseError("no"),))

    monkeypatch.setattr(module, "remove_key", killed)
    with pytest.raises(Conflict):
        house.change("keys.remove", id="bob1")
    assert [(entry["action"], entry["target"], entry["outcome"]) for entry in seen] == [
        ("keys.remove", "bob1", "unknown"),
    ]  # fmt: skip
    assert house.audit() == []  # it was refused in the end


def test_a_file_that_somebody_damaged_is_left_alone_and_said(house: House) -> None:
    house.keys.write_text("nonsense\n")
    with pytest.raises(Conflict, match="hash: found none"):
        house.change("keys.add", attributes={})
    with pytest.raises(NoReports):
        house.ask("keys")
    assert house.keys.read_text() == "nonsense\n"


def test_secrets_and_hashes_are_nowhere_but_in_the_one_answer(house: House) -> None:
    made = house.change("keys.add", attributes={"owner": "carol"})
    rotated = house.change("keys.rotate", id=made["key"]["id"])
    secrets = [made["secret"], rotated["secret"]]
    hashes = [digest(secret.encode()).hex() for secret in secrets]
    seen = json.dumps([house.ask(what) for what in ("keys", "groups", "audit", "budgets")])
    seen += json.dumps([made["key"], rotated["key"]]) + audit.audit_path(house.state).read_text()
    seen += json.dumps(house.change("keys.change", id=made["key"]["id"], attributes={"note": "x"}))
    for word in (*secrets, *hashes, *(secret[20:] for secret in secrets)):
        assert word not in seen


def test_a_line_that_a_crash_cut_is_passed_over(house: House) -> None:
    house.change("keys.remove", id="bob1")
    with open(audit.audit_path(house.state), "ab") as file:
        file.write(orjson.dumps({"at": "x"})[:-2])
    assert [entry["target"] for entry in house.audit()] == ["bob1"]


WORDS = st.one_of(
    st.text(max_size=64),
    st.sampled_from([
        HOSTILE, "day", "model,day", "key=", "attribute:=", "attribute:a=b,c", "9999-12-31", "0m", "2026-13",
        "status=5*", "%00", "*" * 60, "fsk-", "W10=", "key=*,owner=*", "999999w",
    ]),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["report", "requests", "requests.export", "requests.one", "usage", "keys"]), st.data())
def test_whatever_is_asked_is_answered_or_refused_in_words(house: House, what: str, data: st.DataObject) -> None:
    if not index_path(house.state).exists():
        house.record({}, {"owner": HOSTILE})
    texts = ("by", "since", "until", "sort", "status", "end", "error", "id", "cursor", "search")
    asked: dict[str, Any] = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(texts, WORDS)))
    asked |= data.draw(st.fixed_dictionaries({}, optional={"where": st.lists(WORDS, max_size=3)}))
    asked |= {"id": asked.get("id", "x"), "by": asked.get("by", ""), "key": "alice1"}
    with suppress(FlowstackError):
        house.ask(what, seconds=20.0, **asked)


# With other machines


class Two:
    """Two machines that share a PostgreSQL, and what the first one's page answers."""

    def __init__(self, folder: Path, shared: Shared) -> None:
        self.machines = [Machine.of(folder, name, shared) for name in ("east", "west")]
        self.east, self.west = self.machines
        self.now = datetime.now(UTC)
        for number, machine in enumerate(self.machines):
            machine.record([
                row(f"{number:031x}{one}", started_at=self.now - timedelta(minutes=one), key_id="alice1",
                    owner=("alice", "bob")[one % 2], cost_usd=0.1 * one)
                for one in range(5 + number)
            ])  # fmt: skip
            machine.index()
            machine.ship()
            add_key(machine.folder / "keys", Key("alice1", bytes(32), owner="alice"))
        self.wall = self.now.timestamp()
        self.reports = Reports(self.east.settings, lambda: self.wall)

    def ask(self, what: str, seconds: float = 30.0, **asked: Any) -> Any:
        return json.loads(self.reports.answer(what, asked, seconds).body)


@pytest.fixture
def two(tmp_path: Path, shared: Shared) -> Iterator[Two]:
    found = Two(tmp_path, shared)
    yield found
    found.reports._leave()


@pytest.mark.parametrize("by", ["key", "node", "owner,node", ""])
def test_figures_of_all_machines_are_the_command_s_own(two: Two, by: str) -> None:
    words = ["usage", "--config", str(two.east.config), "--by", by, "--format", "json"]
    found = two.ask("report", by=by)
    assert found == json.loads(CliRunner().invoke(main, words, catch_exceptions=False).stdout)
    assert found["total"]["requests"] == 11
    assert two.ask("usage", key="alice1", by="model")["total"]["requests"] == 11
    assert two.ask("keys")["keys"][0]["last_used"] == f"{two.now:%Y-%m-%d}"


def test_requests_are_listed_from_this_machine_and_it_says_so_and_one_is_found_from_any(two: Two) -> None:
    listed = two.ask("requests")
    assert (listed["node"], {one["request_id"][30] for one in listed["requests"]}) == ("east", {"0"})
    alone = Reports(Settings(server=two.east.settings.server), lambda: two.wall)
    assert json.loads(alone.answer("requests", {}, 30.0).body)["node"] is None
    of_west = f"{1:031x}3"
    assert two.ask("requests.one", id=of_west)["request"]["node"] == "west"
    with pytest.raises(NotFound):
        two.ask("requests.one", id="none")


def test_a_postgresql_that_is_away_is_said_at_once_and_what_needs_none_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as mortal:
        two = Two(tmp_path, mortal.database(tmp_path))
        assert two.ask("report")["total"]["requests"] == 11
        mortal.kill()
        for _ in range(2):
            with pytest.raises(NoReports, match="The ledger of all machines cannot be read: PostgreSQL at ") as raised:
                two.ask("report")
            assert (raised.value.status, PASSWORD in raised.value.message) == (503, False)
        assert two.ask("keys")["keys"][0]["last_used"] is None
        assert len(two.ask("requests", where=["owner=alice"])["requests"]) == 3
        assert two.ask("budgets") == {"budgets": []}
        mortal.start()
        with pytest.raises(NoReports):
            two.ask("report")  # nobody tries again at each question
        two.reports._away_until = 0.0  # some seconds later
        assert two.ask("report")["total"]["requests"] == 11
        two.reports._leave()


def test_a_connection_that_was_ended_while_nobody_asked_is_made_anew(two: Two, postgres: Server) -> None:
    assert two.ask("report")["total"]["requests"] == 11
    with postgres.superuser("postgres") as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                           ("flowstack reports",))  # fmt: skip
    assert two.ask("report")["total"]["requests"] == 11


def test_a_postgresql_that_says_nothing_holds_up_one_question_and_not_for_long(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REACH_SECONDS", 0.5)
    with two.east.cabled() as cable:
        two.reports = Reports(two.east.settings, lambda: two.wall)
        assert two.ask("report")["total"]["requests"] == 11
        with cable.unplugged():
            began = time.monotonic()
            with pytest.raises(NoReports, match="it did not answer in time"):
                two.ask("report")
            assert 0.5 <= time.monotonic() - began < 5
            began = time.monotonic()
            for _ in range(100):
                with pytest.raises(NoReports, match="it did not answer in time"):
                    two.ask("report")
            assert two.ask("keys")["keys"][0]["last_used"] is None
            assert time.monotonic() - began < 5
        two.reports._away_until = 0.0  # some seconds later
        assert two.ask("report")["total"]["requests"] == 11
        two.reports._leave()


def test_postgresql_does_not_go_on_with_what_was_given_up(two: Two, postgres: Server) -> None:
    def ask(asked: Any) -> None:
        with two.reports._ledger() as (database, _):
            database.execute("SELECT pg_sleep(60)")

    two.reports._reads["budgets"] = ask
    with pytest.raises(QueryTooLong):
        two.ask("budgets", seconds=0.5)
    with postgres.superuser("postgres") as connection:
        end = time.monotonic() + 20
        while connection.execute("SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60%%'").fetchone():
            assert time.monotonic() < end
            time.sleep(0.05)
    assert two.ask("report")["total"]["requests"] == 11


def test_without_what_reaches_it_it_is_said_what_to_install(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flowstack.ledger.postgres", None)
    with pytest.raises(NoReports, match=r"pip install 'flowstack\[postgres\]'"):
        two.ask("report")
