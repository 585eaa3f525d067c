"""The cable keeps back what it should, or tests that pull it out prove nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.cable import Cable


class Echo:
    """Gives back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.got = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(65536):
                self.got += data
                sock.sendall(data)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    one = Echo()
    yield one
    one.close()


def connected(cable: Cable, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", cable.port), timeout)


def says_nothing(sock: socket.socket) -> bool:
    sock.settimeout(0.2)
    try:
        return not sock.recv(100)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(10.0)


@pytest.mark.parametrize("way", ["unplugged", "unheard"])
def test_pulled_out_it_passes_nothing_back_answers_nobody_and_loses_nothing(echo: Echo, way: str) -> None:
    with Cable(echo.port) as cable, connected(cable) as sock:
        sock.sendall(b"one")
        assert sock.recv(100) == b"one"
        for _ in range(2):
            echo.got = b""
            with getattr(cable, way)():
                sock.sendall(b"two")
                assert says_nothing(sock)
                assert echo.got == (b"two" if way == "unheard" else b"")
                for _ in range(3):
                    with pytest.raises(TimeoutError):
                        connected(cable, 0.1)
            assert sock.recv(100) == b"two"
            with connected(cable) as other:
                other.sendall(b"three")
                assert other.recv(100) == b"three"


def test_it_can_be_pulled_out_in_the_middle_of_what_is_sent(echo: Echo) -> None:
    with Cable(echo.port) as cable, connected(cable) as sock:
        with cable.unplugged_after(5):
            sock.sendall(b"12345")
            assert sock.recv(100) == b"12345"
            sock.sendall(b"678")
            assert says_nothing(sock)
            with pytest.raises(TimeoutError):
                connected(cable, 0.1)
        assert sock.recv(100) == b"678"


def test_an_end_is_passed_on_and_nobody_there_is_told(echo: Echo) -> None:
    with Cable(echo.port) as cable:
        with connected(cable) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
        echo.close()
        with pytest.raises(ConnectionResetError), connected(cable) as sock:  # which may be told at once
            sock.recv(100)
