"""How files are opened: what is taken and what is not, as whom, and what stays where somebody meddles."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowstack.files import (
    Foreign,
    NotRegular,
    as_owner,
    folder_at,
    holder,
    open_regular,
    read_regular,
    replace,
    replacing,
    way_to,
    write,
)
from tests.rights import NOBODY, needs_root, public_folder
from tests.short import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """Another user's folder, where this is root."""
    with public_folder() as made:
        theirs = made / "theirs"
        theirs.mkdir()
        if os.geteuid() == 0:
            os.chown(theirs, NOBODY, NOBODY)
        yield theirs


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD: dict[str, Callable[[Path], None]] = {
    "a FIFO": _fifo,
    "a directory": Path.mkdir,
    "a socket": _socket,
    "a device": _device,
}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT], ids=["read", "write", "make"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_named_and_not_waited_for(kind: str, flags: int) -> None:
    with short_folder() as folder:
        ODD[kind](folder / "x")
        with pytest.raises(NotRegular) as caught:
            open_regular(folder / "x", flags)
    assert caught.value.strerror == f"{kind}, no regular file"


def test_a_link_is_followed_only_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("gone")
    assert read_regular(tmp_path / "link", 9)[0] == b"x"
    for name in ("link", "nowhere"):
        with pytest.raises(NotRegular, match="a symbolic link, no regular file"):
            open_regular(tmp_path / name, os.O_RDWR | os.O_CREAT, follow=False)
    assert not (tmp_path / "gone").exists()


def test_of_a_file_that_is_too_large_no_more_is_read_than_shows_that(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)
    assert len(read_regular(tmp_path / "huge", 1000)[0]) == 1001


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path, 0o640) as new:
        write(new, b"half")
        _ = 1 // 0
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])
    replace(path, b"new" * 100_000, 0o640)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new" * 100_000, ["file"])


@pytest.mark.parametrize(("mask", "mode"), [(0, 0o640), (0o022, 0o640), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_file_has_the_mode_that_is_asked_for_less_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        replace(tmp_path / "file", b"", 0o640)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_links_at_either_name_are_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "file").symlink_to("precious")
    (tmp_path / f".file.{os.getpid()}").symlink_to("precious")
    replace(tmp_path / "file", b"new", 0o600)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()


def test_what_is_begun_in_a_folder_ends_in_it_though_another_gets_its_name(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    with replacing(there / "file", 0o600) as new:
        write(new, b"x")
        there.rename(tmp_path / "moved")
        there.symlink_to(elsewhere)
    assert (tmp_path / "moved" / "file").read_bytes() == b"x"
    assert not list(elsewhere.iterdir())


def test_a_way_leads_where_the_kernel_would_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "up").symlink_to("a/b/..")
    (tmp_path / "far").symlink_to(tmp_path / "up" / "b" / "file")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "a")
    ways = {
        "b/file": "a/b/file", "../far": "a/b/file", "../up/b/none": "a/b/none", "b/../../a/b": "a/b",
        "..": ".", ".": "a", "b/..": "a", str(tmp_path / "up"): "a",
    }  # fmt: skip
    for given, meant in ways.items():
        with way_to(Path(given)) as (at, name):
            assert os.path.realpath(f"/proc/self/fd/{at}/{name}") == str((tmp_path / meant).resolve()), given
    for given, code in {"../loop": errno.ELOOP, "none/file": errno.ENOENT, "b/file/x": errno.ENOTDIR}.items():
        with pytest.raises(OSError) as caught, way_to(Path(given)):
            pass
        assert caught.value.errno == code, given


def test_no_descriptor_is_left_open_on_any_way(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("link/link/x", "loop", "none/x", "link/..", "."):
        try:
            with folder_at(tmp_path / name):
                pass
        except OSError:
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@needs_root
def test_in_a_folder_of_root_s_root_stays_root_whosever_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    (tmp_path / "link").symlink_to(path)
    for given in (path, tmp_path / "link", tmp_path / "none"):
        with as_owner(given):
            assert (os.geteuid(), os.getegid()) == (0, 0)


@needs_root
@pytest.mark.parametrize("given", ["theirs", "theirs/file", "theirs/none", "theirs/deep/er/file", "to_theirs/file",
                                   "their_link", "theirs/to_root"])  # fmt: skip
def test_on_a_way_by_another_user_s_folder_or_link_root_is_that_user(folder: Path, given: str) -> None:
    (folder / "to_root").symlink_to("/root")
    (folder.parent / "to_theirs").symlink_to(folder)
    (folder.parent / "their_link").symlink_to("/etc")
    os.chown(folder.parent / "their_link", NOBODY, NOBODY, follow_symlinks=False)
    path = folder.parent / given
    with pytest.raises(Foreign), way_to(path):
        pass
    with as_owner(path):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (NOBODY, NOBODY, [NOBODY])
        with pytest.raises(PermissionError):
            os.listdir("/root")
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, os.getgroups())
    assert os.listdir("/root") is not None


@needs_root
def test_a_user_without_a_name_gets_no_group_of_the_folder_s(folder: Path) -> None:
    os.chown(folder, 4_000_000, 42)
    with as_owner(folder):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (4_000_000, NOBODY, [NOBODY])


@needs_root
def test_root_is_root_again_after_what_failed(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), as_owner(folder):
        _ = 1 // 0
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_who_holds_a_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    program = (
        "import fcntl, sys\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ninput()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with open(path) as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert holder(file.fileno()).startswith(f"process {other.pid} (python")
    finally:
        other.communicate("\n")
    with open(path) as file:
        assert holder(file.fileno()) == "another process"
