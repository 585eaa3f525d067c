"""``flowstack groups``, on real files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowstack.cli.main import main
from flowstack.keys import digest
from flowstack.keys.reading import read_keys
from tests.files import state_of


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keystore of one key, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "keys"
    path.write_text(f"# ours\nalice sha256:{digest(b'alice-token').hex()} owner=alice  # hers\n")
    path.chmod(0o600)
    return path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def ran(*arguments: str) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_a_group_is_added_joined_changed_left_and_removed_by_command(path: Path) -> None:
    ran("groups", "add", "search", "--budget", "500usd/month", "--rpm", "6000")
    told = ran("keys", "set", "alice", "--group", "search")
    assert "systemctl reload flowstack" in told.stderr
    assert "group=search" in ran("keys", "list").stdout
    assert re.search(r"group +search\n", ran("keys", "show", "alice").stdout)
    assert json.loads(ran("keys", "show", "alice", "--json").stdout)["group"] == "search"
    ran("groups", "set", "search", "--rpm", "7000", "--unset", "budget", "--note", "ours")
    assert json.loads(ran("groups", "list", "--json").stdout) == [
        {"name": "search", "keys": 1, "rpm": 7000, "tpm": None, "max_parallel": None, "budget": None, "note": "ours",
         "limits": None}
    ]  # fmt: skip
    assert ran("groups", "list").stdout == "name    keys  limits    note\nsearch  1     rpm=7000  ours\n"
    refused = run("groups", "remove", "search")
    assert refused.exit_code == 1
    assert "found 1 key in the group search, expected none: alice" in refused.stderr
    ran("keys", "set", "alice", "--unset", "group")
    ran("groups", "remove", "search")
    assert path.read_text() == f"# ours\nalice sha256:{digest(b'alice-token').hex()} owner=alice  # hers\n"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["add", "@search"], 2, "found '@search', expected the name of a group without the @"),
        (["add", "a b"], 2, "found 'a b', expected the name of a group"),
        (["add", "fsk-" + "a" * 58], 2, "found a whole key"),
        (["add", "a", "--rpm", "0"], 2, "0 would let nothing pass"),
        (["add", "a", "--owner", "b"], 2, "No such option"),
        (["set", "a"], 2, "found nothing to change"),
        (["set", "a", "--rpm", "5", "--unset", "rpm"], 2, "found rpm both set and unset"),
        (["set", "a", "--rpm", "5"], 1, "found no group with the name 'a'"),
        (["remove", "a"], 1, "found no group with the name 'a'"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    path: Path, arguments: list[str], status: int, says: str
) -> None:
    before = state_of(path)
    result = run("groups", *arguments)
    assert result.exit_code == status
    assert says in " ".join(result.stderr.split())
    assert state_of(path) == before


def test_a_key_is_made_in_a_group(path: Path) -> None:
    ran("groups", "add", "search")
    ran("keys", "add", "--group", "search")
    assert [key.group for key in read_keys(path).keys] == [None, "search"]
    assert run("keys", "add", "--group", "other").exit_code == 1


@pytest.mark.parametrize("command", ["add", "list", "set", "remove"])
def test_each_help_teaches_with_an_example(command: str) -> None:
    told = ran("groups", command, "--help").stdout
    assert re.search(rf"Example.*\n    (.*\n    )*.*flowstack groups {command}", told)


def test_an_empty_keystore_has_no_groups(path: Path) -> None:
    assert ran("groups", "list", "--json").stdout == "[]\n"
    assert ran("groups", "list").stdout == "name  keys  limits  note\n"
