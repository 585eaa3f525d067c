"""``flowstack usage`` on real journals: what it counts, what it prints, what it says of a mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowstack.cli.main import main
from flowstack.files import as_owner
from flowstack.ledger.index import Index
from flowstack.ledger.moments import moment
from tests.files import state_of
from tests.ledger.journals import UNTOLD, figures, rows, write
from tests.ledger.samples import row
from tests.rights import NOBODY, needs_root, public_folder

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
PROGRAM = [sys.executable, "-c", "from flowstack.cli.main import main; main()"]
NOW = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)
ROWS = rows(200)
HOSTILE = {
    "an escape": "\x1b]0;owned\x07\x1b[2Jx",
    "a C1 control": "\x9b31mred",
    "a new line": "a\nb\r\nc",
    "a direction": "abc\u202egpj.exe\u2066",
    "nothing seen": "a\u200bb\x00\x7f",
}
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", ROWS)
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["usage", *arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def asked(state: Path, *arguments: str) -> dict[str, Any]:
    result = run("--state", str(state), "--format", "json", *arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_without_more_it_reports_by_key_the_dearest_first_with_a_total(state: Path) -> None:
    result = run("--state", str(state))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Usage from the beginning to now, ")
    assert lines[2].split()[:3] == ["key", "requests", "errors"]
    assert {line.split()[0] for line in lines[3:6]} == {"k1", "k2", "k3"}
    costs = [float(line.split()[9].rstrip("+")) for line in lines[3:6]]
    assert costs == sorted(costs, reverse=True)
    assert lines[6].split()[:2] == ["total", "200"]
    assert all(len(line) == len(line.rstrip()) for line in lines)
    assert "\x1b" not in result.stdout


def test_the_json_has_each_figure_of_each_group_and_of_the_total(state: Path) -> None:
    found = asked(state, "--by", "owner,model")
    wanted = figures(ROWS)
    assert found["by"] == ["owner", "model"]
    assert sum(group["requests"] for group in found["groups"]) == found["total"]["requests"] == 200
    assert found["total"]["prompt_tokens"] == wanted["prompt_tokens"]
    assert found["total"]["cost_usd"] == wanted["cost_nano_usd"] / 10**9
    assert found["journal_bytes_not_indexed"] == found["damaged_lines"] == found["left_out"] == 0
    assert {group["owner"] for group in found["groups"]} == {"alice", None, "Smith, John"}


def test_a_row_that_stands_for_many_refused_requests_counts_as_many(state: Path) -> None:
    before = asked(state)["total"]
    many = dict(row(request_id=f"{1:032x}", key_id="k1", end="refused", status=429, error_code="too_many", **UNTOLD))
    write(state / "ledger" / "2026-11-23.w1.jsonl", [many | {"requests": 5000}])
    after = asked(state)["total"]
    assert (after["requests"], after["errors"]) == (before["requests"] + 5000, before["errors"] + 5000)
    assert {name: after[name] for name in after if name not in ("requests", "errors")} == {
        name: before[name] for name in before if name not in ("requests", "errors")
    }
    (group,) = asked(state, "--by", "error", "--where", "error=too_many")["groups"]
    assert (group["error"], group["requests"]) == ("too_many", 5000)


def test_a_report_is_never_stale(state: Path) -> None:
    assert asked(state)["total"]["requests"] == 200
    write(state / "ledger" / "2026-11-23.w1.jsonl", rows(30, seed=2))
    assert asked(state)["total"]["requests"] == 230


def test_what_is_unknown_is_null_in_json_empty_in_csv_and_a_dash_in_the_table(tmp_path: Path) -> None:
    unknown = row(prompt_tokens=None, cached_tokens=None, completion_tokens=None, reasoning_tokens=None,
                  total_tokens=None, usage_source="none", cost_usd=None, first_byte_ms=None)  # fmt: skip
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [unknown])
    (group,) = asked(tmp_path)["groups"]
    assert {name for name, value in group.items() if value is None} == {
        "prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens",
        "total_tokens", "cost_usd", "first_byte_p50_ms", "first_byte_p95_ms", "first_byte_p99_ms",
    }  # fmt: skip
    (line,) = csv.DictReader(io.StringIO(run("--state", str(tmp_path), "--format", "csv").stdout))
    assert (line["cost_usd"], line["prompt_tokens"], line["without_usage"]) == ("", "", "1")
    table = run("--state", str(tmp_path)).stdout.splitlines()
    assert table[3].split()[3:9] == ["-"] * 6
    assert table[3].split()[9:11] == ["100.0%", "0%"]
    assert "cache write" not in table[2]  # of which no row knows anything


def test_a_sum_that_lacks_rows_says_so_and_how_many(tmp_path: Path) -> None:
    none = {"requests": 1, **UNTOLD}
    parts = {"total_tokens": None, "prompt_tokens": 110, "completion_tokens": 52, "cached_tokens": None}
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [
        row(1, **parts, cost_usd=0.00002), row(2, total_tokens=12, cost_usd=None, unpriced="no_price:gpt-9"),
        row(3, **none), row(4, usage_source="partial", cost_usd=0.00001, end="client_gone"),
        row(5, **none | {"method": "GET"}), row(6, **none | {"status": 429}),
    ])  # fmt: skip
    total = asked(tmp_path, "--by", "")["total"]
    assert {name: total[name] for name in total if name.startswith("without_")} == {
        "without_usage": 1, "without_price": 1, "without_prompt_tokens": 1, "without_cached_tokens": 2,
        "without_cache_write_tokens": 4, "without_completion_tokens": 1, "without_reasoning_tokens": 1,
        "without_total_tokens": 1, "without_cost": 2,
    }  # fmt: skip
    assert (total["total_tokens"], total["partial_usage"]) == (162 + 12 + 1290, 1)
    (line,) = csv.DictReader(io.StringIO(run("--state", str(tmp_path), "--format", "csv").stdout))
    assert (line["cost_usd"], line["without_cost"], line["partial_usage"]) == ("0.00003", "2", "1")
    text = run("--state", str(tmp_path), "--by", "").stdout
    assert text.splitlines()[3].split()[2:8] == ["2,578+", "2,048+", "164+", "0+", "1,464+", "0.00003+"]
    assert "Rows that do not report it: prompt tokens 1, cached tokens 2, cache write tokens 4, " in text
    assert "Rows that report only what was seen before a cut: 1.\n" in text


def test_sums_that_know_all_their_rows_bear_no_mark(tmp_path: Path) -> None:
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [row(1, cache_write_tokens=0), row(2, method="GET", **UNTOLD)])
    text = run("--state", str(tmp_path), "--by", "").stdout
    assert "+" not in text
    assert text.endswith("percentile.\n")


def test_which_models_have_no_price_or_no_usage_is_said_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [
        row(1, model="gpt-9", cost_usd=None, unpriced="no_price:gpt-9"),
        row(2, model="gpt-9", cost_usd=None, unpriced="no_price:gpt-9"),
        row(3, model=None, model_requested=None, path="/v1/images/edits", cost_usd=None, unpriced="no_model"),
        row(4, **UNTOLD),
    ])  # fmt: skip
    text = run("--state", str(tmp_path)).stdout
    assert text[text.index("No price:") :].splitlines() == [
        "No price:",
        "  gpt-9             2 rows  no price for this model",
        "  /v1/images/edits  1 row   no model is named",
        'Set prices in the configuration: [prices."gpt-9"]. They apply to later requests.',
        "",
        "No usage:",
        "  gpt-4o-2024-08-06  1 row   a stream without usage; with inject_usage Flowstack asks for it",
    ]
    found = asked(tmp_path)
    assert found["no_price"] == [
        {"model": "gpt-9", "endpoint": None, "reason": "no_price:gpt-9", "rows": 2},
        {"model": None, "endpoint": "/v1/images/edits", "reason": "no_model", "rows": 1},
    ]
    assert found["no_usage"] == [{"model": "gpt-4o-2024-08-06", "endpoint": None, "reason": "stream", "rows": 1}]


@pytest.mark.parametrize(
    ("unpriced", "words", "hint"),
    [
        ("no_price:gpt-9", "no price for this model", '[prices."gpt-9"]'),
        ("no_price_for:batch", "no price for batch", '[prices."gpt-9-2027-01-01"]'),
        ("no_price_for:audio_input", "no price for audio input", '[prices."gpt-9-2027-01-01"]'),
        ("figures:total_tokens", "its figures do not add up: total tokens", None),
        ("figures", "its figures do not add up", None),
        ("a word to come", "a word to come", '[prices."gpt-9-2027-01-01"]'),
        (None, "the reason is not recorded", '[prices."gpt-9-2027-01-01"]'),
    ],
)
def test_why_there_is_no_price_is_said_in_words(
    tmp_path: Path, unpriced: str | None, words: str, hint: str | None
) -> None:
    one = row(1, model="gpt-9-2027-01-01", cost_usd=None, unpriced=unpriced)
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [one])
    text = run("--state", str(tmp_path)).stdout
    assert f"  gpt-9-2027-01-01  1 row   {words}\n" in text
    assert (hint in text) if hint else ("[prices" not in text)


def test_a_long_list_of_models_without_a_price_is_cut_in_the_table_alone(tmp_path: Path) -> None:
    some = [row(number, model=f"m{number}", cost_usd=None) for number in range(25)]
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", some)
    text = run("--state", str(tmp_path), "--by", "").stdout
    assert text.count(" 1 row ") == 20
    assert "  (5 more, 5 rows)" in text
    assert len(asked(tmp_path)["no_price"]) == 25


def test_a_share_that_is_not_0_is_never_shown_as_0(tmp_path: Path) -> None:
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [
        row(1, cost_usd=None), row(2, **UNTOLD | {"end": "refused", "status": 429}, requests=100_000),
    ])  # fmt: skip
    assert "  <0.1%  " in run("--state", str(tmp_path), "--by", "").stdout


@pytest.mark.parametrize("where", ["key=fsk-{}", 'key="fsk-{}"', "owner=x,attribute:a=*fsk-{}*", "model=sk-proj-{}"])
def test_a_whole_key_in_a_condition_is_refused_and_not_repeated(state: Path, where: str) -> None:
    key = "k7Qm2xW9pLz4" + "A" * 46
    result = run("--state", str(state), "--where", where.format(key))
    assert result.exit_code == 2
    assert "found a whole key" in result.stderr
    assert key not in result.output
    assert ("here k7Qm2xW9pLz4" in result.stderr) == ("fsk-" in where)


def test_the_csv_can_be_summed_and_its_money_is_exact(state: Path) -> None:
    result = run("--state", str(state), "--by", "day,key", "--format", "csv")
    assert result.stdout_bytes.count(b"\r\n") == result.stdout_bytes.count(b"\n")
    lines = list(csv.DictReader(io.StringIO(result.stdout)))
    assert sum(int(line["requests"]) for line in lines) == 200
    total = sum(Decimal(line["cost_usd"]) for line in lines if line["cost_usd"])
    assert total * 10**9 == figures(ROWS)["cost_nano_usd"]
    assert [line["day"] for line in lines] == sorted(line["day"] for line in lines)


@pytest.mark.parametrize("form", ["table", "csv", "json"])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_of_a_client_drives_a_terminal(tmp_path: Path, form: str, name: str) -> None:
    text = HOSTILE[name]
    one = row(owner=text, model=text, attributes={text: text, "b": text}, cost_usd=None, unpriced=text)
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [one])
    result = run("--state", str(tmp_path), "--by", f"owner,model,attribute:{text},attribute:b", "--format", form,
                 "--where", f"owner={text}")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert all(char.isprintable() or char in "\r\n" for char in result.output)
    if form == "json":
        kept = text.replace("\0", "\ufffd")
        assert json.loads(result.stdout)["groups"][0]["attribute:b"] == kept
    elif form == "table":
        assert len(result.stdout.splitlines()) == 13


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_text_of_a_client_is_a_formula_in_a_spreadsheet(tmp_path: Path, formula: str) -> None:
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", [row(attributes={"team": formula})])
    result = run("--state", str(tmp_path), "--by", "attribute:team", "--format", "csv")
    (line,) = csv.DictReader(io.StringIO(result.stdout, newline=""))
    assert line["attribute:team"].startswith("'")


def test_where_takes_patterns_several_fields_and_commas_in_values(state: Path) -> None:
    def requests(*where: str) -> int:
        return int(asked(state, *(part for one in where for part in ("--where", one)))["total"]["requests"])

    def among(test: Any) -> int:
        return sum(map(bool, map(test, ROWS)))

    assert requests("owner=Smith, John") == among(lambda one: one["owner"] == "Smith, John")
    assert requests("owner=Smith, John,status=4*") == among(
        lambda one: one["owner"] == "Smith, John" and one["status"] == 429
    )
    assert requests("status=4*,status=5*") == among(lambda one: one["status"] and one["status"] >= 400)
    assert requests("owner=") == among(lambda one: one["owner"] is None)
    assert requests("attribute:TEAM=red", "key=k1") == among(
        lambda one: one["attributes"] == {"team": "red"} and one["key_id"] == "k1"
    )


def test_since_and_until_bound_the_time_and_until_is_not_in_it(tmp_path: Path) -> None:
    times = [datetime(2026, 11, day, hour, tzinfo=UTC) for day in (1, 2, 3) for hour in (0, 12)]
    some = [row(number, started_at=time) for number, time in enumerate(times)]
    write(tmp_path / "ledger" / "2026-11-23.w0.jsonl", some)
    found = asked(tmp_path, "--since", "2026-11-01T12:00:00Z", "--until", "2026-11-03", "--by", "day")
    assert [(group["day"], group["requests"]) for group in found["groups"]] == [("2026-11-01", 1), ("2026-11-02", 2)]
    assert (found["since"], found["until"]) == ("2026-11-01T12:00:00Z", "2026-11-03T00:00:00Z")
    hours = asked(tmp_path, "--since", "2026-11-03", "--by", "hour")["groups"]
    assert [group["hour"] for group in hours] == ["2026-11-03T00:00Z", "2026-11-03T12:00Z"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11", "2026-11-01T00:00:00+00:00"),
        ("2026-11-05", "2026-11-05T00:00:00+00:00"),
        ("2026-11-05T10:00:00Z", "2026-11-05T10:00:00+00:00"),
        ("2026-11-05T10:00:00+02:00", "2026-11-05T08:00:00+00:00"),
        ("2026-11-05 10:00", "2026-11-05T10:00:00+00:00"),
        ("90m", "2026-11-23T06:00:00+00:00"),
        ("24h", "2026-11-22T07:30:00+00:00"),
        ("7d", "2026-11-16T07:30:00+00:00"),
        ("2w", "2026-11-09T07:30:00+00:00"),
        ("now", "2026-11-23T07:30:00+00:00"),
        ("today", "2026-11-23T00:00:00+00:00"),
        ("Yesterday", "2026-11-22T00:00:00+00:00"),
        ("month", "2026-11-01T00:00:00+00:00"),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, expected: str) -> None:
    assert moment(text, NOW) == datetime.fromisoformat(expected).timestamp() * 1e6


@pytest.mark.parametrize(
    "text",
    ["", "soon", "7", "7x", "-7d", "2026", "2026-13", "2026-02-30", "999999w", "1969-12-31", "٧d", "0001-01-01",
     "99999999d", "2026-11-05T25:00"],
)  # fmt: skip
def test_what_is_no_moment_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        moment(text, NOW)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "colour"], "found 'colour', expected key, owner, model"),
        (["--by", "attribute:"], "found 'attribute:', expected key"),
        (["--where", "gpt-4o"], "found 'gpt-4o', expected conditions such as model=gpt-4o*"),
        (["--where", "colour=red"], "expected conditions such as"),
        (["--since", "soon"], "found 'soon', expected a month (2026-11)"),
        (["--since", "today", "--until", "yesterday"], "yesterday is not after today"),
        (["--sort", "beauty"], "found 'beauty', expected one of key, requests, errors"),
        (["--limit", "0"], "0 is not in the range"),
        (["--format", "xml"], "'xml' is not one of"),
    ],
)
def test_a_mistake_is_told_with_what_was_expected(state: Path, arguments: list[str], words: str) -> None:
    result = run("--state", str(state), *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_sort_and_limit_leave_the_rest_in_one_line_and_in_the_total(state: Path) -> None:
    found = asked(state, "--by", "model,status", "--sort", "requests", "--limit", "3")
    counts = [group["requests"] for group in found["groups"]]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 3
    assert found["left_out"] > 0
    assert found["total"]["requests"] == 200
    lines = run("--state", str(state), "--by", "model,status", "--sort", "requests", "--limit", "3").stdout.splitlines()
    assert lines[6].startswith(f"({found['left_out']} more)")
    assert sum(int(line.split()[-14]) for line in lines[3:7]) == 200
    by_name = asked(state, "--by", "model", "--sort", "model")["groups"]
    assert [group["model"] for group in by_name] == ["gpt-4o", "gpt-4o-mini", "o3[x]", None]


def test_no_fields_is_the_total_alone(state: Path) -> None:
    assert len(asked(state, "--by", "")["groups"]) == 1
    lines = run("--state", str(state), "--by", "").stdout.splitlines()
    assert [bool(line) for line in lines[:6]] == [True, False, True, True, False, True]
    assert lines[5] == "Times are the 50th/95th/99th percentile."


def test_damaged_lines_are_told_of(state: Path) -> None:
    with open(state / "ledger" / "2026-11-23.w0.jsonl", "ab") as file:
        file.write(b"garbage\n")
    result = run("--state", str(state))
    assert "1 lines of the journal are damaged" in result.stderr
    assert asked(state)["damaged_lines"] == 1


def test_it_finds_the_state_directory_in_the_configuration(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "flowstack.toml"
    config.write_text(f'[server]\nstate = "{state}"\n')
    assert run("--config", str(config)).exit_code == 0
    config.write_text("[server]\n")
    result = run("--config", str(config))
    assert result.exit_code == 1
    assert "[server] state: not set" in result.stderr


def test_no_ledger_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    result = run("--state", str(tmp_path))
    assert result.exit_code == 1
    assert "no ledger in" in result.stderr
    assert list(tmp_path.iterdir()) == []
    result = run()
    assert result.exit_code == 2
    assert "say where the ledger is: --state DIR" in result.stderr


def test_a_key_given_by_mistake_is_not_repeated(state: Path) -> None:
    key = "fsk-" + "A" * 58
    for arguments in (["--by", key], ["--where", key], ["--since", key], ["--sort", key], [f"--state={state / key}"]):
        result = run("--state", str(state), *arguments)
        assert result.exit_code != 0
        assert key not in result.output


@needs_root
@pytest.mark.parametrize("service", ["on", "off"])
def test_who_may_only_read_gets_what_is_there_and_is_told(service: str) -> None:
    # A command is imported when it is called: here before the rights to read the library may be gone.
    program = "import os, flowstack.cli.usage; from flowstack.cli.main import main; "
    program += "os.setgid(65534); os.setuid(65534); main()"

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "usage", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)

    with public_folder() as folder:
        write(folder / "ledger" / "2026-11-23.w0.jsonl", ROWS)
        done = as_nobody("--state", str(folder), "--by", "")
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no index yet, and it cannot be made" in done.stderr
        with Index(folder / "ledger.sqlite", folder / "ledger") as index:
            index.catch_up()
            for path in folder.glob("ledger.sqlite*"):
                path.chmod(0o644)
            write(folder / "ledger" / "2026-11-23.w1.jsonl", rows(5, seed=9))
            if service == "on":
                done = as_nobody("--state", str(folder), "--format", "json")
        if service == "off":
            done = as_nobody("--state", str(folder), "--format", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["total"]["requests"] == 200
        assert "the index cannot be brought up to date (" in done.stderr
        assert json.loads(done.stdout)["journal_bytes_not_indexed"] > 0


@pytest.mark.parametrize(("width", "shown", "hidden"), [("220", "overhead ms", "Not shown"), ("90", "Not shown", "…")])
def test_at_a_terminal_it_is_a_table_that_fits(state: Path, width: str, shown: str, hidden: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "usage", "--state", str(state), "--by", "model"],
        stdout=theirs, stderr=subprocess.DEVNULL, env={**ENVIRONMENT, "COLUMNS": width, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    data = b""
    with suppress(OSError):  # EIO is a terminal's end
        while piece := os.read(ours, 65536):
            data += piece
    os.close(ours)
    assert process.wait(60) == 0
    text = data.decode()
    assert "\u2500" in text
    assert shown in text
    assert hidden not in text
    assert "gpt-4o-mini" in text


def test_the_help_teaches_with_an_example() -> None:
    result = run("--help")
    assert "flowstack usage --state /var/lib/flowstack --since 2026-10 --until 2026-11 --format csv" in result.stdout


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A state directory of another user's, with a journal, as a service leaves it; beside it, a folder of root's."""
    with public_folder() as folder:
        state = folder / "state"
        state.mkdir()
        write(state / "ledger" / "2026-11-23.w0.jsonl", ROWS)
        for path in (state, *state.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        state.chmod(0o750)
        (folder / "roots").mkdir()
        yield state


@needs_root
def test_what_root_s_report_makes_belongs_to_the_service(theirs: Path) -> None:
    done = subprocess.run([*PROGRAM, "usage", "--state", theirs], capture_output=True, text=True, check=False,
                          timeout=60, env=ENVIRONMENT)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "total" in done.stdout
    made = list(theirs.glob("ledger.sqlite*"))
    assert {path.name for path in made} >= {"ledger.sqlite", "ledger.sqlite.lock"}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(NOBODY, NOBODY)}


NAMES = ("ledger.sqlite", "ledger.sqlite-journal", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.lock",
         "ledger.sqlite.unusable", "ledger/2026-11-23.w1.jsonl")  # fmt: skip


def _link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def _fifo(path: Path, target: Path) -> None:
    os.mkfifo(path, 0o666)


def _socket(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


def _directory(path: Path, target: Path) -> None:
    path.mkdir()


@needs_root
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plant", [_link, _fifo, _socket, _directory])
@pytest.mark.parametrize("target", ["there", "not there"])
def test_root_s_report_touches_nothing_that_the_service_s_user_may_not(
    theirs: Path, name: str, plant: Callable[[Path, Path], None], target: str
) -> None:
    precious = theirs.parent / "roots" / "precious"
    if target == "there":
        precious.write_text("")
    before = state_of(precious) if target == "there" else None
    plant(theirs / name, precious)
    run("--state", str(theirs))  # whether it reports or says what is the matter: it ends, and without a traceback
    assert (state_of(precious) if precious.exists() else None) == before
    assert {path.lstat().st_uid for path in theirs.glob("ledger.sqlite*")} <= {0, NOBODY}
    assert os.geteuid() == 0


@needs_root
@pytest.mark.parametrize("how", ["folder", "link"])
def test_a_directory_that_becomes_another_s_meanwhile_is_not_opened_by_root(
    theirs: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = theirs.with_name("later")

    @contextmanager
    def before(path: Path) -> Iterator[None]:
        with as_owner(path):  # which finds nothing yet
            theirs.rename(state) if how == "folder" else state.symlink_to(theirs)
            os.lchown(state, NOBODY, NOBODY)
            yield

    monkeypatch.setattr("flowstack.cli.ledger.as_owner", before)
    told = run("--state", str(state))
    assert "is a folder or link of user 65534" in told.output
    assert told.exit_code == 1
    assert list(state.glob("ledger.sqlite*")) == []


@needs_root
def test_a_hard_link_to_a_file_of_root_s_is_not_written_by_root_s_report(theirs: Path) -> None:
    precious = theirs.parent / "roots" / "precious"
    for name in ("ledger.sqlite", "ledger.sqlite.lock"):
        precious.write_text("")
        precious.chmod(0o644)
        (theirs / name).unlink(missing_ok=True)
        os.link(precious, theirs / name)
        before = state_of(precious)
        assert run("--state", str(theirs)).exit_code == 1
        assert state_of(precious) == before
        (theirs / name).unlink()


@needs_root
def test_a_state_directory_may_be_named_by_a_link_of_the_operator_s(theirs: Path) -> None:
    (theirs.parent / "link").symlink_to(theirs)
    assert asked(theirs.parent / "link")["total"]["requests"] == 200
    assert (theirs / "ledger.sqlite").stat().st_uid == NOBODY


@needs_root
@pytest.mark.parametrize(("mode", "group"), [(0o770, NOBODY), (0o2770, NOBODY), (0o777, 0), (0o1777, 0)])
def test_root_opens_no_ledger_in_a_folder_of_its_own_in_which_others_may_write(
    state: Path, mode: int, group: int
) -> None:
    os.chown(state, 0, group)
    state.chmod(mode)
    result = run("--state", str(state))
    assert result.exit_code == 1
    assert f"others may write in it (mode {mode:04o}, group {group})" in result.stderr
    assert sorted(path.name for path in state.iterdir()) == ["ledger"]
