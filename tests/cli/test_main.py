"""The command as a whole: what holds for every command in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flowstack.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from flowstack.cli.main import main; main()"]
NO_TEXT = os.fsdecode(b"\xff\xfe\x80")
"""How Python hands over an argument whose bytes are no UTF-8."""

SECRETS = [f"fsk-{'0aB' * 18}", "sk-proj-0123456789abcdef"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "before",
    [[], ["check"], ["keys"], ["keys", "add"], ["keys", "list"], ["keys", "remove", "nobody"], ["stand-in"]],
)
def test_a_key_as_an_argument_too_many_is_refused_as_misuse_and_not_repeated(before: list[str], secret: str) -> None:
    for argument in (secret, f"--{secret}", f"--{secret}=x"):
        result = CliRunner().invoke(main, [*before, argument], catch_exceptions=False)
        assert result.exit_code == 2
        assert "sk-..." in result.output
        assert secret not in result.output


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"], catch_exceptions=False)
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout


def leaves(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*words, name))
        else:
            yield (*words, name), command


def calls() -> Iterator[tuple[str, ...]]:
    """Every command with each of its arguments and options in turn as no text, in whole and behind a beginning."""
    for words, command in leaves(main):
        needed = [
            "k7Qm2xW9pLz4"
            for param in command.params
            if isinstance(param, click.Argument) and param.required
        ]  # fmt: skip
        yield (*words, *needed, NO_TEXT)
        yield (*words, f"--{NO_TEXT}")
        for param in command.params:
            for begun in ("", "attribute:", "owner=", "tcp:0:interface="):
                if isinstance(param, click.Argument):
                    yield (*words, begun + NO_TEXT)
                elif not param.is_flag:  # type: ignore[attr-defined]
                    yield (*words, *needed, param.opts[0], begun + NO_TEXT)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a keystore, and a state directory by a name that is no text."""
    monkeypatch.chdir(tmp_path)
    for name in ("keys", f"{NO_TEXT}.keys"):
        (tmp_path / name).write_text(f"k7Qm2xW9pLz4  sha256:{1:064x}\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / NO_TEXT / "ledger").mkdir(parents=True)
    (tmp_path / f"{NO_TEXT}.toml").write_text("[server]\nstate = 'state'\n")
    return tmp_path


@pytest.mark.usefixtures("here")
def test_no_command_fails_in_python_s_words_at_an_argument_that_is_no_text() -> None:
    asked = set(calls())
    assert {words[:2] for words in asked} > {("keys", "add"), ("keys", "import")}
    # Where that is a good answer to it, the stand-in would run on.
    for words in sorted(call for call in asked if call[0] != "stand-in"):
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        assert result.exit_code in (0, 1, 2), words


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "words",
    [
        ("check", "--keys", f"{NO_TEXT}.keys"),
        ("check", "--config", f"{NO_TEXT}.toml"),
        ("keys", "list", "--keys", f"{NO_TEXT}.keys"),
        ("keys", "set", "k7Qm2xW9pLz4", "--rpm", "1", "--keys", f"{NO_TEXT}.keys"),
        ("keys", "add", "--keys", f"{NO_TEXT}.new"),
        ("keys", "rotate", "k7Qm2xW9pLz4", "--keys", f"{NO_TEXT}.keys"),
        ("keys", "list", "--config", f"{NO_TEXT}.toml"),
        ("usage", "--state", NO_TEXT),
        ("usage", "--state", NO_TEXT, "--format", "json"),
    ],
)
def test_a_file_s_name_need_not_be_text(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("option", [("--where", f"owner={NO_TEXT}"), ("--by", f"attribute:{NO_TEXT}")])
def test_a_name_that_no_row_can_have_is_told(option: tuple[str, str]) -> None:
    result = CliRunner().invoke(main, ["usage", "--state", NO_TEXT, *option], catch_exceptions=False)
    assert result.exit_code == 2
    assert "expected UTF-8" in result.stderr


@pytest.mark.parametrize(
    "words", [("keys", "list"), ("keys", "list", "--json"), ("keys", "add"), ("usage", "--state", NO_TEXT)]
)
@pytest.mark.parametrize("output", [">&-", ">/dev/full", "| true"])
def test_an_output_that_takes_nothing_is_told_in_words(here: Path, words: tuple[str, ...], output: str) -> None:
    before = (here / "keys").read_bytes()
    script = f'set -o pipefail; "$@" {output}; echo "status $?" >&2'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *PROGRAM, *words], cwd=here, capture_output=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = done.stderr.decode()
    assert "Traceback" not in told and "Exception ignored" not in told
    if output != "| true":  # which may end before or after it was written
        assert "status 1" in told
        assert (here / "keys").read_bytes() == before


def test_no_command_but_the_stand_in_needs_what_the_stand_in_needs() -> None:
    modules = {where.partition(":")[0] for name, where in COMMANDS.items() if name != "stand-in"}
    program = (
        "import importlib, sys\n"
        f"for module in {sorted(modules)}: importlib.import_module(module)\n"
        "print([name for name in ('h11', 'multipart', 'flowstack.testing') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == "[]\n"


def test_a_group_is_imported_without_the_others() -> None:
    program = (
        "import sys\n"
        "from flowstack.cli.main import main\n"
        "main(['keys', 'list', '--help'], standalone_mode=False)\n"
        "others = ('flowstack.cli.usage', 'flowstack.cli.reconcile', 'flowstack.testing')\n"
        "print([name for name in others if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("module", ["h11", "multipart", "wsproto"])
def test_the_stand_in_says_what_to_install_where_that_is_missing(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from flowstack.cli.main import main; main()"
    arguments = ["stand-in", "--listen", "tcp:0"]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 1
    assert f"the stand-in needs the module {module}" in result.stderr
    assert "pip install 'flowstack[standin]'" in result.stderr
