"""A network of its own for one server, and ways to cut it off. It takes root's rights to a network."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attrs import field, frozen

_numbers = itertools.count()


def _ip(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *words], capture_output=True, check=False)


def _may() -> bool:
    name = f"flowstack-{os.getpid()}"
    found = _ip("netns", "add", name).returncode == 0
    _ip("netns", "delete", name)
    return found


needs_network = pytest.mark.skipif(os.geteuid() != 0 or not _may(), reason="only root may make a network")


@frozen
class Apart:
    """A network with one host in it, which a cable joins to this machine.

    :ivar host: its address.
    :ivar here: this machine's at the cable.
    :ivar before: words before a command that is to run there.
    """

    name: str
    host: str
    here: str
    before: tuple[str, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "before", ("ip", "netns", "exec", self.name))

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Nothing arrives, on either side."""
        self._do("link", "set", "there", "down")
        try:
            yield
        finally:
            self._do("link", "set", "there", "up")

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What is sent there arrives, and nothing comes back."""
        self._do("route", "add", "blackhole", f"{self.here}/32")
        try:
            yield
        finally:
            self._do("route", "delete", "blackhole", f"{self.here}/32")

    def _do(self, *words: str) -> None:
        done = _ip("-netns", self.name, *words)
        assert done.returncode == 0, done.stderr


@contextmanager
def apart() -> Iterator[Apart]:
    """Make one, and take it away."""
    number = next(_numbers)
    name, cable = f"flowstack-{os.getpid()}-{number}", f"fs{os.getpid()}-{number}"
    network = 4 * ((os.getpid() * 4 + number) % (1 << 14))  # of 10.251.0.0/16, four addresses each
    here, host = (f"10.251.{network // 256}.{network % 256 + at}" for at in (1, 2))
    made = Apart(name, host, here)
    try:
        for words in (
            ("netns", "add", name),
            ("link", "add", cable, "type", "veth", "peer", "name", "there", "netns", name),
            ("address", "add", f"{here}/30", "dev", cable),
            ("link", "set", cable, "up"),
            ("-netns", name, "address", "add", f"{host}/30", "dev", "there"),
            ("-netns", name, "link", "set", "there", "up"),
        ):
            done = _ip(*words)
            assert done.returncode == 0, (words, done.stderr)
        yield made
    finally:
        _ip("link", "delete", cable)
        _ip("netns", "delete", name)
