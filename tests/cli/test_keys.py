"""``flowstack keys`` on real files: in this process where the output matters, as a process where the terminal does."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowstack.cli.keys import keys
from flowstack.keys import Key, checksum_ok, digest
from flowstack.keys.editor import add_key
from flowstack.keys.reading import read_keys

TOKEN = re.compile(r"fsk-[0-9A-Za-z]{58}")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
PROGRAM = [sys.executable, "-c", "from flowstack.cli.main import main; main(prog_name='flowstack')", "keys"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "keys"


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    result = CliRunner().invoke(keys, arguments, input=stdin, catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def make(*arguments: str) -> str:
    result = run("add", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_add_prints_the_key_alone_on_standard_output_and_writes_its_hash(path: Path) -> None:
    result = run("add", "--owner", "Batch jobs")
    assert result.exit_code == 0
    assert TOKEN.fullmatch(result.stdout.removesuffix("\n"))
    token = result.stdout.strip()
    assert checksum_ok(token)
    assert read_keys(path).keys == (Key(token[4:16], digest(token.encode()), owner="Batch jobs"),)
    assert f"Added the key {token[4:16]} to keys" in result.stderr
    assert "systemctl reload flowstack" in result.stderr
    assert token not in result.stderr
    assert token[16:] not in path.read_text()


def test_add_takes_every_attribute_as_the_file_does(path: Path) -> None:
    attributes = {
        "owner": "alice",
        "expires": "2127-06-30",
        "models": "gpt-4o*,o3",
        "endpoints": "/v1/models*",
        "upstreams": "openai",
        "rpm": "600",
        "tpm": "200000",
        "max-parallel": "20",
        "budget": "50.00usd/month",
        "group": "search",
        "allow-ip": "10.0.0.0/8",
        "note": 'a "quoted" note',
    }
    path.write_text("@search rpm=6000\n")
    make(*(f"--{name}={value}" for name, value in attributes.items()), "--no-inject-usage")
    listed = json.loads(run("list", "--json").stdout)[0]
    del listed["id"], listed["state"]
    assert listed == {
        "owner": "alice",
        "expires": "2127-06-30",
        "models": ["gpt-4o*", "o3"],
        "endpoints": ["/v1/models*"],
        "upstreams": ["openai"],
        "rpm": 600,
        "tpm": 200_000,
        "max_parallel": 20,
        "budget": "50.00usd/month",
        "group": "search",
        "allow_ip": ["10.0.0.0/8"],
        "note": 'a "quoted" note',
        "inject_usage": False,
        "previous_until": None,
        "limits": None,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rpm", "600/min"], "'--rpm': found '600/min', expected a whole number"),
        (["--expires", "tomorrow"], "'--expires': found 'tomorrow'"),
        (["--expires", "2020-01-01"], "'--expires': found a time that has passed"),
        (["--owner", "a\nb"], "'--owner': found U+000A"),
        (["--owner", ""], "'--owner': found nothing"),
        (["--group", "@search"], "'--group': found '@search', expected the name of a group without the @"),
        (["--allow-ip", "10.0.0.1/8"], "expected 10.0.0.0/8 for the network"),
        (["--nonsense"], "No such option"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_add_refuses_a_wrong_option_as_misuse_and_makes_no_file(path: Path, arguments: list[str], says: str) -> None:
    result = run("add", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""
    assert not path.exists()


def test_add_to_a_file_with_faults_names_them_and_shows_no_key(path: Path) -> None:
    path.write_text("nonsense\nmore nonsense\n")
    path.chmod(0o600)
    result = run("add")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.match(r"Error: keys:1:9: hash: found none.*\nkeys:2:6: hash: ", result.stderr)


def test_add_removes_the_key_again_if_it_could_not_be_shown(path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*PROGRAM, "add", "--keys", path],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == ("Error: could not show the new key (No space left on device), so it was removed again\n")
    assert read_keys(path).keys == ()


def test_list_shows_what_keys_may_do_in_aligned_columns_without_hash_or_secret(path: Path) -> None:
    alice = make("--owner", "alice@example.com", "--rpm", "600", "--note", "first")
    add_key(path, Key("p3", digest(b"old"), owner="山田", expires_at=86_400.0))
    add_key(path, Key("off", digest(b"off"), disabled=True, models=("gpt-4o*", "o3")))
    result = run("list")
    assert result.stdout == (
        "id            state     owner              expires     limits             note\n"
        f"{alice[4:16]}  ok        alice@example.com              rpm=600            first\n"
        "p3            expired   山田               1970-01-01\n"
        "off           disabled                                 models=gpt-4o*,o3\n"
    )
    for output in (result.output, run("list", "--json").output):
        assert alice[16:] not in output
        assert not re.search("[0-9a-f]{64}", output)


def test_list_of_an_empty_file_is_an_empty_array_for_programs_and_a_warning_for_people(path: Path) -> None:
    path.write_text("# none\n")
    path.chmod(0o600)
    result = run("list", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "Warning: keys: holds no keys" in result.stderr


def test_list_escapes_joiners_that_an_owners_name_may_hold(path: Path) -> None:
    add_key(path, Key("k", digest(b"k"), owner="a\u200db"))
    assert "a\\u200db" in run("list").stdout
    assert "\u200d" not in run("list", "--json").stdout


def test_a_file_that_is_missing_is_one_clear_line(path: Path) -> None:
    result = run("list")
    assert result.exit_code == 1
    assert result.output == (
        "Error: keys: does not exist; make it with its first key: `flowstack keys add --keys keys`\n"
    )


def test_control_characters_of_a_files_name_reach_no_terminal(path: Path) -> None:
    assert "\x1b" not in run("list", "--keys", "a\x1b[31mb").output


def test_verify_says_what_a_valid_key_may_do(path: Path) -> None:
    token = make("--owner", "alice", "--models", "gpt-4o*")
    result = run("verify", stdin=f"{token}\n")
    assert result.exit_code == 0
    told = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert told[token[4:16]] == "is valid"
    assert (told["owner"], told["models"], told["rpm"], told["expires"]) == ("alice", "gpt-4o*", "no limit", "never")
    assert token[16:] not in result.output


def test_verify_takes_a_key_without_a_line_end_and_with_crlf(path: Path) -> None:
    token = make()
    for stdin in (token, f"{token}\r\n", f"  {token} \nmore\n"):
        assert run("verify", stdin=stdin).exit_code == 0


def test_verify_refuses_what_the_service_would_refuse_and_never_repeats_it(path: Path) -> None:
    token = make()
    add_key(path, Key("old", digest(b"old-token"), expires_at=86_400.0))
    add_key(path, Key("off", digest(b"off-token"), disabled=True))
    for secret, says in (
        (token[:-1], "looks mistyped or cut"),
        ("s3cr3t-stranger", "401 invalid_flowstack_key: The Flowstack key is not known here"),
        ("sk-proj-s3cr3t", "401 misplaced_key"),
        ("two words-s3cr3t", "holds a space"),
        ("old-token", "401 flowstack_key_expired"),
        ("off-token", "401 flowstack_key_disabled"),
        ("s3cr3t" * 1000, "no key has more than 512"),
        ("", "found nothing on standard input"),
        ("\n", "found nothing on standard input"),
    ):
        result = run("verify", stdin=secret)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert says in result.stderr
        assert not secret.strip() or secret not in result.output


def test_a_key_as_an_argument_is_refused_and_not_repeated(path: Path) -> None:
    token = make()
    for arguments in (["verify", token], ["list", token], ["add", token], ["remove", token], ["add", f"--{token}"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert token[16:] not in result.output
        assert "shell's history" in result.stderr
    assert "here " + token[4:16] in run("remove", token).stderr
    assert len(read_keys(path).keys) == 1


@pytest.mark.parametrize("option", ["--keys", "--config"])
@pytest.mark.parametrize("command", [["add"], ["list"], ["verify"], ["remove", "nobody"]])
def test_a_key_in_place_of_a_files_path_is_refused_not_repeated_and_names_no_file(
    path: Path, tmp_path: Path, command: list[str], option: str
) -> None:
    token = make()
    before = sorted(tmp_path.iterdir())
    result = run(*command, option, token)
    assert result.exit_code == 2
    assert "found a whole key" in result.stderr
    assert token[4:] not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("secret", [f"fsk-{'0aB' * 18}", "sk-proj-0123456789abcdef"])
@pytest.mark.parametrize("option", ["--keys", "--config"])
@pytest.mark.parametrize("command", [["list"], ["verify"], ["remove", "nobody"]])
def test_what_looks_like_a_key_is_shortened_in_every_fault_of_a_file(
    path: Path, command: list[str], option: str, secret: str
) -> None:
    result = run(*command, option, secret)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"Error: {secret.partition('-')[0]}-...: " in result.stderr
    assert secret not in result.stderr


def test_what_looks_like_a_key_is_shortened_where_the_file_is_used(path: Path) -> None:
    secret = f"fsk-{'0aB' * 18}"
    token = run("add", "--keys", secret).stdout.strip()
    (path.parent / secret).chmod(0o604)
    removed = token[4:16]
    for command in (["list"], ["verify"], ["remove", "nobody"], ["remove", removed]):
        result = run(*command, "--keys", secret, stdin="unknown")
        assert "fsk-..." in result.stderr
        assert secret not in result.output


def test_remove_takes_the_key_out_and_says_whose_it_was(path: Path) -> None:
    stays, goes = make("--owner", "alice"), make("--owner", "bob")
    result = run("remove", goes[4:16])
    assert result.exit_code == 0
    assert f"Removed the key {goes[4:16]} of bob from keys." in result.stderr
    assert "systemctl reload flowstack" in result.stderr
    assert [key.id for key in read_keys(path).keys] == [stays[4:16]]


def test_remove_of_an_unknown_id_exits_with_1(path: Path) -> None:
    make()
    result = run("remove", "nobody")
    assert result.exit_code == 1
    assert "found no key with the id 'nobody'" in result.stderr


def test_the_keystore_may_be_given_by_path_or_taken_from_the_configuration(path: Path, tmp_path: Path) -> None:
    by_path, by_config = tmp_path / "one", tmp_path / "two"
    config = tmp_path / "flowstack.toml"
    config.write_text(f'[server]\nkeys = "{by_config}"\n')
    run("add", "--keys", str(by_path))
    run("add", "--config", str(config))
    assert (by_path.exists(), by_config.exists(), path.exists()) == (True, True, False)


def test_a_configuration_with_faults_is_told_without_a_traceback(path: Path, tmp_path: Path) -> None:
    config = tmp_path / "flowstack.toml"
    config.write_text("[serve]\n")
    for name in (config, tmp_path / "missing.toml"):
        result = run("list", "--config", str(name))
        assert result.exit_code == 1
        assert str(name) in result.stderr


@pytest.mark.parametrize("command", sorted(keys.commands))
def test_each_help_teaches_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example.*\n    (.*\n    )?.*flowstack keys {command}", result.stdout)


def test_every_command_has_a_help_of_its_own() -> None:
    assert set(keys.commands) == {
        "add", "list", "show", "set", "rotate", "disable", "enable", "remove", "verify", "import",
    }  # fmt: skip
    assert all(command.help for command in keys.commands.values())


def on_terminal(arguments: list[str], typed: bytes, prompt: bytes) -> tuple[int, str]:
    """Run the command on a pseudo-terminal, type after its prompt, and return its exit status and all it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PROGRAM[0], [*PROGRAM, *arguments], {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"})
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux's end of file on a terminal whose other side is closed.
            break
        if not piece:
            break
        shown += piece
        if typed and prompt in shown:
            os.write(terminal, typed)
            typed = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_at_a_terminal_verify_asks_for_the_key_and_does_not_echo_it(path: Path) -> None:
    token = make("--owner", "alice")
    status, shown = on_terminal(["verify", "--keys", str(path)], f"{token}\n".encode(), b"Key: ")
    assert status == 0
    assert f"{token[4:16]} is valid" in shown
    assert token not in shown


def test_at_a_terminal_list_draws_a_table(path: Path) -> None:
    token = make("--owner", "[bold]alice")
    status, shown = on_terminal(["list", "--keys", str(path)], b"", b"")
    assert status == 0
    assert "│" in shown
    assert token[4:16] in shown
    assert "[bold]alice" in shown


def test_an_owner_that_the_terminals_character_set_lacks_is_shown_escaped(path: Path) -> None:
    make("--owner", "山田")
    result = subprocess.run(
        [*PROGRAM, "list", "--keys", path],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "\\u5c71\\u7530" in result.stdout
