"""A key on a command line, wherever it stands and whatever is around it: refused, and told from its id without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flowstack.cli.main import main
from flowstack.keys import digest, make_token
from tests.files import state_of

KEY_ID, TOKEN = make_token(lambda size: bytes(range(size)))
SECRET = TOKEN[16:]
PROVIDERS = "AIzaSyD-canary_CANARY"
"""Of a provider whose keys do not begin with ``sk-``."""


@pytest.fixture(autouse=True)
def keystore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "keys"
    path.write_text(f"{KEY_ID} sha256:{digest(TOKEN.encode()).hex()}\nours sha256:{digest(b'of-another-form').hex()}\n")
    path.chmod(0o600)
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    "argument",
    [TOKEN, f"{TOKEN}~sk-proj-canary0123", f"{TOKEN}~{PROVIDERS}", f'"{TOKEN}"', f"Bearer {TOKEN}",
     f"{TOKEN[:-1]}~{PROVIDERS}", TOKEN.replace("-", "%2D")],
    ids=["alone", "with a provider's", "with another provider's", "in quotes", "behind Bearer", "mistyped, with a "
         "provider's", "encoded"],
)  # fmt: skip
@pytest.mark.parametrize(
    "before",
    [
        [], ["check"], ["check", "--config"], ["keys"], ["keys", "show"], ["keys", "set"], ["keys", "remove"],
        ["keys", "rotate"], ["keys", "add", "--owner"], ["keys", "add", "--note"], ["keys", "import"],
        ["usage", "--where"], ["usage", "--where", "model=a", "--by"], ["usage", "--state"], ["stand-in", "--listen"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_whole_key_anywhere_on_a_line_is_refused_and_not_repeated(
    before: list[str], argument: str, keystore: Path
) -> None:
    was = state_of(keystore)
    result = run(*before, argument)
    assert result.exit_code == 2
    assert "found a whole key" in result.stderr
    assert SECRET[:-1] not in result.output and PROVIDERS not in result.output and "canary0123" not in result.output
    assert "take it out" in result.stderr
    assert state_of(keystore) == was
    if "%" not in argument:
        assert f"here {KEY_ID}" in result.stderr


@pytest.mark.parametrize("where", [f"key={TOKEN}", f"owner=alice,key={TOKEN}", f"key={TOKEN}~{PROVIDERS}",
                                   f"key={TOKEN[:-1]}", f"key={TOKEN[:40]}*"])  # fmt: skip
def test_a_report_is_asked_by_a_keys_id_and_never_by_the_key(where: str) -> None:
    result = run("usage", "--state", ".", "--where", where)
    assert result.exit_code == 2
    assert f"the 12 characters after fsk-: here {KEY_ID}" in result.stderr
    assert SECRET[:20] not in result.output and PROVIDERS not in result.output


@pytest.mark.parametrize(
    "words", [["keys", "show", f"fsk-{KEY_ID}"], ["usage", "--state", ".", "--where", f"key=fsk-{KEY_ID}"]]
)
def test_an_id_with_its_prefix_is_told_what_the_id_is(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert f"expected the id alone: {KEY_ID}" in result.stderr


@pytest.mark.parametrize("command", [["show"], ["set", "--rpm", "5"], ["disable"], ["rotate"], ["remove"]])
def test_a_key_of_another_form_in_an_ids_place_is_not_repeated(command: list[str], keystore: Path) -> None:
    was = state_of(keystore)
    result = run("keys", *command, "of-another-form")
    assert result.exit_code == 1
    assert "expected its id, which is ours" in result.stderr
    assert "of-another-form" not in result.output
    assert state_of(keystore) == was
