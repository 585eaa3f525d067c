"""A keystore file that changes is reloaded, once, when it is whole; and not when a signal was quicker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from flowstack.process.watch import EVERY, Stamp, Watch


class Service:
    """Counts its reloads; each tells the watch what it reads, and is over when the test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.read: list[bytes | None] = []
        self.running: list[Deferred[None]] = []
        self.slow = False
        self.watch = Watch(path, self.reload, self.in_thread, self.clock)
        self.watch.startService()

    def in_thread(self, function: Callable[[], Stamp]) -> Deferred[Stamp]:
        return succeed(function())

    def reload(self) -> Deferred[None]:
        self.watch.taken()
        self.read.append(self.path.read_bytes() if self.path.exists() else None)
        done: Deferred[None] = Deferred()
        if self.slow:
            self.running.append(done)
        else:
            done.callback(None)
        return done

    def looks(self, count: int = 3) -> list[bytes | None]:
        """Let it look; give what was read since the last time."""
        for _ in range(count):
            self.clock.advance(EVERY)
        read, self.read = self.read, []
        return read


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    path = tmp_path / "keys"
    path.write_bytes(b"one")
    service = Service(path)
    yield service
    service.watch.stopService()
    assert service.clock.getDelayedCalls() == []


def test_a_file_that_stays_is_not_read_again(service: Service) -> None:
    assert service.looks(100) == []


def by_rename(path: Path, text: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.replace(path)


@pytest.mark.parametrize("change", [by_rename, Path.write_bytes], ids=["by rename", "in place"])
def test_a_change_is_read_once(service: Service, change: Callable[[Path, bytes], object]) -> None:
    for text in (b"two", b"six", b"longer"):  # of the same size, too
        change(service.path, text)
        assert service.looks() == [text]
        assert service.looks() == []


def test_what_is_written_in_pieces_is_read_when_it_has_stood_still(service: Service) -> None:
    for size in range(4, 9):
        service.path.write_bytes(b"x" * size)
        assert service.looks(1) == []
    assert service.looks(1) == [b"x" * 8]


def test_a_file_of_the_same_size_and_time_is_another_one(service: Service) -> None:
    status = service.path.stat()
    by_rename(service.path, b"two")
    os.utime(service.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert service.looks() == [b"two"]


def test_a_mounted_secret_is_a_link_to_a_link_that_is_switched_over(tmp_path: Path) -> None:
    for name, text in (("..1", b"one"), ("..2", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_bytes(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    service = Service(tmp_path / "keys")
    assert service.looks() == []
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert service.looks() == [b"two"]
    service.watch.stopService()


def test_a_file_that_vanishes_is_missed_once_and_read_when_it_is_back(service: Service) -> None:
    service.path.unlink()
    assert service.looks(10) == [None]
    service.path.write_bytes(b"one")
    assert service.looks(10) == [b"one"]


def test_after_a_signal_nothing_is_read_twice(service: Service) -> None:
    by_rename(service.path, b"two")
    service.reload()
    assert service.looks() == [b"two"]


def test_a_change_during_a_reload_is_read_after_it(service: Service) -> None:
    service.slow = True
    by_rename(service.path, b"two")
    assert service.looks() == [b"two"]
    by_rename(service.path, b"three")
    assert service.looks(5) == [], "one at a time"
    service.running.pop().callback(None)
    assert service.looks() == [b"three"]
    service.running.pop().callback(None)
