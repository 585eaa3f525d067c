"""The operator's provider keys, on real files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from flowstack.errors import ParseError
from flowstack.keys.provider import KeyRing, ProviderKeys
from tests.rights import needs_root, public_folder, told_as_nobody

FIRST, SECOND = "sk-the-first-key", "sk-the-second-key"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "openai.secret"
    put(path, FIRST + "\n")
    return path


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(f"{event['log_level'].name} {formatEvent(event)}")

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def put(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


@pytest.mark.parametrize("text", [FIRST, f"{FIRST}\n", f"{FIRST}\r\n", f"  {FIRST}\t\n\n"])
def test_the_key_is_the_file_s_text_without_the_space_around_it(path: Path, text: str) -> None:
    put(path, text)
    assert ProviderKeys({"openai": path}).keys == {"openai": FIRST.encode()}


def test_a_key_need_not_be_openai_s(path: Path) -> None:
    put(path, "0123456789abcdef0123456789abcdef")
    assert ProviderKeys({"azure": path}).keys == {"azure": b"0123456789abcdef0123456789abcdef"}


def test_several_keys_stand_one_on_each_line(path: Path) -> None:
    put(path, f"{FIRST}\r\n\n  {SECOND}")
    keys = ProviderKeys({"openai": path})
    assert keys.rings["openai"].keys == (FIRST.encode(), SECOND.encode())
    assert keys.keys == {"openai": FIRST.encode()}


def test_keys_are_used_in_turn_but_for_those_that_rest() -> None:
    ring = KeyRing((b"a", b"b", b"c"))
    assert [ring.take(0) for _ in range(4)] == [b"b", b"c", b"a", b"b"]
    ring.rest(b"c", 10)
    assert [ring.take(0) for _ in range(3)] == [b"a", b"b", b"a"]
    assert [ring.take(10) for _ in range(3)] == [b"b", b"c", b"a"]
    ring.rest(b"a", 30)
    ring.rest(b"b", 40)
    assert not ring.resting(10)
    ring.rest(b"c", 20)
    assert ring.resting(19) and not ring.resting(20)
    assert ring.take(15) == b"c"  # none may be used: the one that may be again the soonest
    ring.put((b"d",))
    ring.rest(b"a", 99)
    assert not ring.resting(50)
    assert ring.take(50) == b"d"


BAD = {
    "empty": ("", "nothing else"),
    "blank": (" \n", "nothing else"),
    "one key twice": (f"{FIRST}\n{SECOND}\n{FIRST}\n", "one key twice"),
    "two words": (f"Bearer {FIRST}", "nothing else"),
    "a control": (f"{FIRST}\x00", "nothing else"),
    "a line end within": (f"{FIRST}\rx", "nothing else"),
    "no ASCII": ("sk-ключ", "nothing else"),
    "a variable's name": (f"OPENAI_API_KEY = {FIRST}", "nothing else"),
    "too long": ("x" * 5000, "nothing else"),
    "far too long": ("x" * 100_000, "nothing else"),
    "a Flowstack key": ("fsk-" + "0" * 58, "Flowstack key"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_provider_s_key_is_refused_and_not_repeated(path: Path, name: str) -> None:
    text, says = BAD[name]
    put(path, text)
    with pytest.raises(ParseError) as caught:
        ProviderKeys({"openai": path})
    told = str(caught.value)
    assert told.startswith("[upstreams.openai] api_key_file: found ")
    assert f"'{path}'" in told
    assert says in told
    assert FIRST not in told and "0" * 58 not in told and "xxx" not in told


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o606, 0o644, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(match=rf"mode {mode:04o}\), which every user .* chmod o= "):
        ProviderKeys({"openai": path})


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_one_that_owner_and_group_alone_can_read_is_taken(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert ProviderKeys({"openai": path}).keys == {"openai": FIRST.encode()}


def test_what_is_not_there_or_no_file_is_named_and_not_waited_for(path: Path) -> None:
    path.unlink()
    with pytest.raises(match=r"cannot be read \(No such file or directory\)"):
        ProviderKeys({"openai": path})
    path.mkdir(mode=0o700)
    with pytest.raises(match="api_key_file"):
        ProviderKeys({"openai": path})
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(match="nothing else"):
        ProviderKeys({"openai": path})


@needs_root
def test_a_file_that_the_service_s_user_cannot_read_is_named() -> None:
    with public_folder() as folder:
        secret = folder / "openai.secret"
        put(secret, FIRST)
        body = """
            try:
                ProviderKeys({"openai": path})
            except ParseError as error:
                print(error)
        """
        imports = "from flowstack.errors import ParseError; from flowstack.keys.provider import KeyRing, ProviderKeys"
        told = told_as_nobody(imports, body, secret)
        assert "cannot be read (Permission denied), expected a file with the secret that this user can read" in told


def test_a_reload_takes_each_good_file_over_and_leaves_the_old_key_where_one_is_bad(
    path: Path, tmp_path: Path, logged: list[str]
) -> None:
    other = tmp_path / "other.secret"
    put(other, FIRST)
    found = ProviderKeys({"openai": path, "other": other})
    keys = found.keys
    put(path, f"{SECOND}\n{SECOND}\n")
    put(other, SECOND)
    found.reload()
    assert found.keys is keys, "whoever looks them up holds this object"
    assert keys == {"openai": FIRST.encode(), "other": SECOND.encode()}
    (line,) = [line for line in logged if "provider key" in line]
    assert line.startswith("error a provider key was not reloaded, the old one stays in force: [upstreams.openai]")
    put(path, SECOND)
    found.reload()
    assert keys == {"openai": SECOND.encode(), "other": SECOND.encode()}
    path.unlink()
    found.reload()
    assert keys["openai"] == SECOND.encode()
    assert not any("sk-" in line for line in logged)


def test_neither_the_object_nor_a_fault_shows_a_key(path: Path) -> None:
    assert FIRST not in repr(ProviderKeys({"openai": path}))
    assert repr(ProviderKeys({})) == "<ProviderKeys of no upstream>"
