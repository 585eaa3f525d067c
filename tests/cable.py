"""A cable to a server of the tests' own, which can be pulled out: a relay in a process of its own.

It takes no right to make a network. What a cut keeps back, on either way, arrives when the cable is in again, as what
TCP sends again does, and whoever connects meanwhile gets no answer, not even a refusal.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LIMIT = 30.0
FULL = 0.05
"""Seconds after which nobody takes a connection any more, on this machine."""


class Cable:
    """One to a port of 127.0.0.1. A context.

    :param late: seconds for which each piece that comes back is on its way.
    :ivar port: this machine's end.
    """

    def __init__(self, to: int, late: float = 0.0) -> None:
        command = [sys.executable, "-S", __file__, str(to), str(late)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.port = int(self._answer())

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it away, with all connections."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Nothing arrives, on either side."""
        with self._as("unplugged"):
            yield

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What is sent there arrives, and nothing comes back."""
        with self._as("unheard"):
            yield

    @contextmanager
    def unplugged_after(self, bytes_there: int) -> Iterator[None]:
        """Nothing arrives any more once so many further bytes went there."""
        with self._as(f"unplugged_after {bytes_there}"):
            yield

    @contextmanager
    def _as(self, state: str) -> Iterator[None]:
        self._tell(state)
        try:
            yield
        finally:
            self._tell("plugged")

    def _tell(self, state: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{state}\n".encode())
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


class _Relay:
    """What the process is."""

    def __init__(self, to: int, late: float) -> None:
        self._to, self._late = to, late
        self._there, self._back = threading.Event(), threading.Event()
        self._left: int | None = None
        self._fillers: list[socket.socket] = []
        self._ours: set[int] = set()  # ports of fillers that are still to be taken
        self._lock = threading.Lock()  # of who takes a connection
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.plugged()
        threading.Thread(target=self._accept, daemon=True).start()

    def plugged(self) -> None:
        self._left = None
        while self._fillers:
            self._fillers.pop().close()
        self._listener.listen(128)
        self._there.set()
        self._back.set()

    def unplugged(self) -> None:
        self._there.clear()
        self.unheard()

    def unplugged_after(self, left: str) -> None:
        self._left = int(left)

    def unheard(self) -> None:
        """And who connects gets no answer: the kernel gives none where too many connections wait to be taken."""
        with self._lock:
            self._back.clear()
        self._listener.listen(0)
        while True:
            filler = socket.socket()
            filler.settimeout(FULL)
            filler.bind(("127.0.0.1", 0))
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                filler.close()
                return
            self._ours.add(filler.getsockname()[1])
            self._fillers.append(filler)

    def _accept(self) -> None:
        while True:
            self._back.wait()
            select.select([self._listener], [], [])
            with self._lock:
                if not self._back.is_set():
                    continue
                ours, (_, number) = self._listener.accept()
            if number in self._ours:
                self._ours.remove(number)
                ours.close()
            else:
                threading.Thread(target=self._join, args=(ours,), daemon=True).start()

    def _join(self, ours: socket.socket) -> None:
        try:
            theirs = socket.create_connection(("127.0.0.1", self._to))
        except OSError:  # nobody is there: that is told by a reset
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ours.close()
            return
        for sock in (ours, theirs):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pass, args=(theirs, ours, self._back, self._late), daemon=True)
        back.start()
        self._pass(ours, theirs, self._there, 0.0)
        back.join()
        ours.close()
        theirs.close()

    def _pass(self, one: socket.socket, other: socket.socket, way: threading.Event, late: float) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                if way is self._there and self._left is not None:
                    self._left -= len(data)
                    if self._left < 0:
                        self._left = None
                        self.unplugged()
                way.wait()
                time.sleep(late)
                other.sendall(data)
        way.wait()
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


def main() -> None:
    """Be the process, until standard input ends."""
    relay = _Relay(int(sys.argv[1]), float(sys.argv[2]))
    sys.stdout.write(f"{relay.port}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        state, *words = line.split()
        getattr(relay, state)(*words)
        sys.stdout.write("done\n")
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
