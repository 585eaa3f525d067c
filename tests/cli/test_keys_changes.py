"""The commands that change keys and bring in many, on real files; ``--reload`` against a real process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowstack.cli.keys import keys
from flowstack.keys import Key, digest, make_token
from flowstack.keys.reading import read_keys
from tests.files import state_of

TOKEN = re.compile(r"fsk-[0-9A-Za-z]{58}")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
PROGRAM = [sys.executable, "-c", "from flowstack.cli.main import main; main(prog_name='flowstack')", "keys"]
KEY_ID = "k7Qm2xW9pLz4"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keystore of two keys, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "keys"
    path.write_text(
        f"# ours\n{KEY_ID} sha256:{digest(b'alice-token').hex()} owner=alice rpm=5  # hers\n"
        f"bob sha256:{digest(b'bob-token').hex()}\n"
    )
    path.chmod(0o600)
    return path


def run(*arguments: str, stdin: str | bytes = "") -> Result:
    result = CliRunner().invoke(keys, arguments, input=stdin, catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def ran(*arguments: str, stdin: str | bytes = "") -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def shown(key_id: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(ran("show", key_id, "--json").stdout)
    return value


def verified(token: str) -> Result:
    return run("verify", stdin=token)


def test_show_tells_what_one_key_may_do_and_never_its_hash(path: Path) -> None:
    text = ran("show", KEY_ID).stdout
    assert text.startswith(f"{KEY_ID} is valid\n")
    assert re.search(r"^  rpm +5$", text, re.MULTILINE)
    assert re.search(r"^  models +all$", text, re.MULTILINE)
    assert (shown(KEY_ID)["owner"], shown(KEY_ID)["state"]) == ("alice", "ok")
    ran("rotate", KEY_ID)
    for output in (ran("show", KEY_ID).output, ran("show", KEY_ID, "--json").output, ran("list", "--json").output):
        assert not re.search("[0-9a-f]{64}", output)
        assert "previous_until" in output


@pytest.mark.parametrize("command", ["show", "set", "rotate", "disable", "enable", "remove"])
def test_an_id_that_is_not_there_exits_with_1_and_changes_nothing(path: Path, command: str) -> None:
    before = state_of(path)
    result = run(command, "nobody", *(["--rpm", "5"] if command == "set" else []))
    assert result.exit_code == 1
    assert "found no key with the id 'nobody'" in result.stderr
    assert result.stdout == ""
    assert state_of(path) == before


@pytest.mark.parametrize("command", ["show", "set", "rotate", "disable", "enable", "remove"])
def test_a_whole_key_in_an_ids_place_is_refused_and_not_repeated(path: Path, command: str) -> None:
    key_id, token = make_token(os.urandom)
    result = run(command, token)
    assert result.exit_code == 2
    assert f"here {key_id}" in result.stderr
    assert token[16:] not in result.output


def test_set_changes_what_is_named_and_leaves_the_rest_comment_and_order_as_they_are(path: Path) -> None:
    ran("set", KEY_ID, "--tpm", "700", "--models", "gpt-4o*,o3", "--inject-usage", "--unset", "rpm")
    assert path.read_text() == (
        f"# ours\n{KEY_ID} sha256:{digest(b'alice-token').hex()} owner=alice models=gpt-4o*,o3 tpm=700 "
        f"inject_usage=on  # hers\nbob sha256:{digest(b'bob-token').hex()}\n"
    )
    ran("set", KEY_ID, "--unset", "models", "--unset", "inject-usage", "--unset", "tpm", "--unset", "owner")
    assert read_keys(path).keys[0] == Key(KEY_ID, digest(b"alice-token"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "found nothing to change"),
        (["--rpm", "5", "--unset", "rpm"], "found rpm both set and unset"),
        (["--rpm", "0"], "0 would let nothing pass"),
        (["--max-parallel", "2000000"], "expected at most 1000000 requests at once"),
        (["--budget", "0usd/day"], "expected an amount above 0"),
        (["--expires", "2020-01-01"], "found a time that has passed"),
        (["--unset", "hash"], "Invalid value for '--unset'"),
    ],
)
def test_set_refuses_what_makes_no_sense_and_writes_nothing(path: Path, arguments: list[str], says: str) -> None:
    before = state_of(path)
    result = run("set", KEY_ID, *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert state_of(path) == before


def test_disable_and_enable_turn_a_key_off_and_on_again(path: Path) -> None:
    ran("disable", KEY_ID)
    assert shown(KEY_ID)["state"] == "disabled"
    assert "flowstack_key_disabled" in verified("alice-token").stderr
    ran("disable", KEY_ID)
    ran("enable", KEY_ID)
    assert verified("alice-token").exit_code == 0
    assert path.read_text().count("# hers") == 1


def test_rotate_prints_a_new_key_alone_and_the_old_one_stays_valid_for_the_grace(path: Path) -> None:
    result = ran("rotate", KEY_ID, "--grace", "2h")
    token = result.stdout.removesuffix("\n")
    assert TOKEN.fullmatch(token)
    assert token[4:16] == KEY_ID
    assert token not in result.stderr
    new, old = verified(token), verified("alice-token")
    assert (new.exit_code, old.exit_code) == (0, 0)
    assert f"{KEY_ID} is valid" in new.stdout
    assert f"{KEY_ID} is valid" in old.stdout
    assert "was replaced by a rotation" in old.stderr
    key = read_keys(path).keys[0]
    assert key.previous_until is not None
    assert abs(key.previous_until - time.time() - 7200) < 120
    assert (key.owner, key.rpm) == ("alice", 5)
    assert path.read_text().count("# hers") == 1


def test_a_replaced_key_is_refused_when_the_grace_is_over(path: Path) -> None:
    token = ran("rotate", KEY_ID).stdout.strip()
    path.write_text(re.sub("previous_until=[^ ]+", "previous_until=2020-01-01", path.read_text()))
    assert verified(token).exit_code == 0
    assert "401 flowstack_key_expired: The secret of the Flowstack key" in verified("alice-token").stderr


def test_rotations_do_not_overlap_unless_all_old_secrets_end_at_once(path: Path) -> None:
    first = ran("rotate", KEY_ID).stdout.strip()
    before = path.read_bytes()
    refused = run("rotate", KEY_ID)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert "rotations may not overlap" in refused.stderr
    assert path.read_bytes() == before
    second = ran("rotate", KEY_ID, "--grace", "0").stdout.strip()
    assert [verified(token).exit_code for token in ("alice-token", first, second)] == [1, 1, 0]


def test_a_rotation_may_follow_when_the_grace_of_the_one_before_is_over_or_was_ended(path: Path) -> None:
    ran("rotate", KEY_ID)
    path.write_text(re.sub("previous_until=[^ ]+", "previous_until=2020-01-01", path.read_text()))
    second = ran("rotate", KEY_ID).stdout.strip()
    ran("set", KEY_ID, "--unset", "previous")
    third = ran("rotate", KEY_ID).stdout.strip()
    assert [verified(token).exit_code for token in ("alice-token", second, third)] == [1, 0, 0]


@pytest.mark.parametrize("grace", ["1", "h", "-1h", "1w", "367d", "1.5h", ""])
def test_a_grace_that_is_no_duration_is_misuse(path: Path, grace: str) -> None:
    result = run("rotate", KEY_ID, "--grace", grace)
    assert result.exit_code == 2
    assert "expected a duration such as 30m, 24h or 7d" in result.stderr


def test_a_rotated_key_that_could_not_be_shown_is_put_back(path: Path) -> None:
    before = path.read_bytes()
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*PROGRAM, "rotate", KEY_ID],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert "so the old one was put back" in result.stderr
    assert path.read_bytes() == before


def test_import_adds_thousands_of_whole_keys_in_one_write_and_stores_their_hashes_only(path: Path) -> None:
    tokens = [make_token(os.urandom)[1] for _ in range(3000)]
    result = ran("import", "--owner", "Batch jobs", "--rpm", "7", stdin="\n".join(tokens))
    assert "Added 3000 keys to keys." in result.stderr
    text = path.read_text()
    assert text.startswith("# ours\n")
    assert not TOKEN.search(text)
    found = read_keys(path)
    assert len(found.key_set) == 3002
    for token in (tokens[0], tokens[-1]):
        assert found.key_set.get(digest(token.encode())) == Key(
            token[4:16], digest(token.encode()), owner="Batch jobs", rpm=7
        )


def test_import_takes_lines_of_another_keystore_from_a_file(path: Path, tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"carol-token").hexdigest()
    (tmp_path / "other").write_text(f"# theirs\ncarol sha256:{hashed} rpm=9 # x\n")
    ran("import", "other")
    assert read_keys(path).keys[2] == Key("carol", bytes.fromhex(hashed), rpm=9)


def test_import_makes_a_keystore_that_is_not_there_yet(path: Path) -> None:
    path.unlink()
    ran("import", stdin=make_token(os.urandom)[1])
    assert len(read_keys(path).keys) == 1


def test_import_names_every_bad_line_and_takes_all_or_nothing(path: Path) -> None:
    before = path.read_bytes()
    token = make_token(os.urandom)[1]
    stdin = f"{token}\n{token[:-1]}{chr(ord(token[-1]) ^ 1)}\nshort\n{token}\nbob sha256:{'ab' * 32} rpm=x\n"
    result = run("import", stdin=stdin)
    assert result.exit_code == 1
    places = re.findall(r"standard input:(\d+)", result.stderr)
    assert places == ["2", "3", "4", "4", "5"]
    assert token[16:] not in result.output
    assert path.read_bytes() == before
    result = run("import", stdin=f"bob sha256:{'ab' * 32}\nbeth sha256:{digest(b'alice-token').hex()}\n")
    assert result.exit_code == 1
    assert "standard input:1: found the id of a key that is in keys already" in result.stderr
    assert "standard input:2: found the hash of a key that is in keys already" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("stdin", ["", "\n# nothing\n"])
def test_import_of_nothing_is_an_error(path: Path, stdin: str) -> None:
    result = run("import", stdin=stdin)
    assert result.exit_code == 1
    assert "found no keys in standard input" in result.stderr


def test_commands_keep_up_with_30_000_keys(path: Path) -> None:
    lines = (f"k{n} sha256:{hashlib.sha256(b'%d' % n).hexdigest()} owner=u{n} rpm=600\n" for n in range(30_000))
    path.write_text("".join(lines))
    began = time.process_time()
    assert len(ran("list").stdout.splitlines()) == 30_001
    assert len(json.loads(ran("list", "--json").stdout)) == 30_000
    ran("set", "k29999", "--rpm", "7")
    ran("add")
    assert verified("29999").stdout.startswith("k29999 is valid")
    assert time.process_time() - began < 60  # about 3; a command whose time grows with the square takes far longer


SERVICE = textwrap.dedent("""\
    import signal, sys, time
    from pathlib import Path
    from flowstack.keys.store import FileKeystore
    store = FileKeystore(Path(sys.argv[1]), Path(sys.argv[2]), time.time)
    signal.signal(signal.SIGHUP, lambda *_: store.reload())
    store.load()
    while True: signal.pause()
""")


@pytest.fixture
def service(path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves the keystore, with its state directory ``state``."""
    state = tmp_path / "state"
    state.mkdir()
    process = subprocess.Popen([sys.executable, "-c", SERVICE, path, state], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (state / "reload.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


CHANGES = [
    ["add"],
    ["set", KEY_ID, "--rpm", "9"],
    ["rotate", KEY_ID],
    ["disable", KEY_ID],
    ["enable", KEY_ID],
    ["remove", KEY_ID],
    ["import"],
]


@pytest.mark.parametrize("arguments", CHANGES, ids=lambda arguments: arguments[0])
def test_every_change_can_have_the_service_reload_and_says_what_it_made_of_it(
    service: subprocess.Popen[bytes], tmp_path: Path, arguments: list[str]
) -> None:
    result = ran(*arguments, "--reload", "--state", "state", stdin=make_token(os.urandom)[1])
    count = len(read_keys(tmp_path / "keys").keys)
    assert f"The service, process {service.pid}, has loaded it: {count} keys, generation 2." in result.stderr
    assert json.loads((tmp_path / "state" / "reload.json").read_text())["generation"] == 2


def test_the_state_directory_may_come_from_the_configuration(service: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('[server]\nkeys = "keys"\nstate = "state"\n')
    assert "has loaded it: 2 keys" in ran("disable", "bob", "--reload", "--config", "f.toml").stderr


def test_a_reload_that_the_service_refused_is_told_with_its_reason_and_exit_status_1(
    service: subprocess.Popen[bytes], path: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_text(path.read_text())
    (tmp_path / "elsewhere").chmod(0o600)
    path.write_text("nonsense\n")
    result = run("disable", "bob", "--keys", "elsewhere", "--reload", "--state", "state")
    assert result.exit_code == 1
    assert "did not load it; its 2 keys of before stay in force:" in result.stderr
    assert f"{path}:1:9: hash: found none" in result.stderr


def test_a_service_that_says_nothing_is_exit_status_1(service: subprocess.Popen[bytes]) -> None:
    service.send_signal(signal.SIGSTOP)
    result = run("disable", "bob", "--reload", "--state", "state", "--wait", "0.3")
    assert result.exit_code == 1
    assert "did not report on the reload within 0.3 s" in result.stderr


def test_where_no_service_is_found_nothing_is_written(path: Path, tmp_path: Path) -> None:
    before = state_of(path)
    (tmp_path / "state").mkdir()
    result = run("disable", "bob", "--reload", "--state", "state")
    assert result.exit_code == 1
    assert "no service runs with this state directory" in result.stderr
    result = run("disable", "bob", "--reload")
    assert result.exit_code == 2
    assert "add --state DIR" in result.stderr
    assert state_of(path) == before
