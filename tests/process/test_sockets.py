"""What a parent binds for its workers, on real sockets."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.python.systemd import ListenFDs

from flowstack.process.sockets import Bound, bind_sockets
from flowstack.transport import uv
from flowstack.transport.tls import CertificateFault
from tests.files import state_of
from tests.transport.certificates import Authority

Bind = Callable[..., tuple[list[socket.socket], Any]]


@pytest.fixture
def bind() -> Iterator[Bind]:
    made: list[Bound] = []

    def bind(description: str, count: int = 2) -> tuple[list[socket.socket], Any]:
        made.append(bind_sockets(uv.server_endpoint, description, count))
        return made[-1].sockets, made[-1].address

    yield bind
    for bound in made:
        bound.release()
        for one in bound.sockets:
            one.close()


def served_by(sockets: list[socket.socket], address: Any, connections: int) -> list[int]:
    """Connect so often, and count what each socket accepts.

    A connection that its client has may come a moment later to the one that listens.
    """
    family = sockets[0].family
    clients = [socket.socket(family) for _ in range(connections)]
    for client in clients:
        client.settimeout(10)
        client.connect(address)
    counts = [0] * len(sockets)
    deadline = time.monotonic() + 10
    while sum(counts) < connections and time.monotonic() < deadline:
        for number, bound in enumerate(sockets):
            bound.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    bound.accept()[0].close()
                    counts[number] += 1
    for client in clients:
        client.close()
    return counts


def test_a_tcp_port_gets_a_socket_for_each_worker_and_the_kernel_spreads_connections_over_them(bind: Bind) -> None:
    sockets, address = bind("tcp:0:interface=127.0.0.1", 3)
    assert len(sockets) == 3
    assert isinstance(address, IPv4Address)
    assert address.host == "127.0.0.1"
    assert {bound.getsockname() for bound in sockets} == {("127.0.0.1", address.port)}
    assert address.port != 0
    assert not any(bound.get_inheritable() for bound in sockets)
    # So many that none is left out by chance, and so few that none gets more than its backlog of 50.
    counts = served_by(sockets, ("127.0.0.1", address.port), 60)
    assert sum(counts) == 60
    assert min(counts) > 0


@pytest.mark.parametrize("reuse", [False, True], ids=["alone", "shared"])
def test_a_port_on_which_somebody_listens_is_refused_even_if_he_would_share_it(bind: Bind, reuse: bool) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=reuse) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotListenError, match="Address already in use"):
            bind(f"tcp:{port}:interface=127.0.0.1")
    bind(f"tcp:{port}:interface=127.0.0.1")


def test_as_many_connections_wait_as_the_backlog_says(bind: Bind) -> None:
    _, address = bind("tcp:0:interface=127.0.0.1:backlog=2", 1)
    # The kernel keeps one more than it is told.
    clients = [socket.socket() for _ in range(4)]
    done = 0
    for client in clients:
        client.settimeout(0.5)
        try:
            client.connect(("127.0.0.1", address.port))
            done += 1
        except TimeoutError:
            pass
        finally:
            client.settimeout(None)
    for client in clients:
        client.close()
    assert done == 3


def test_an_ipv6_address_is_bound_and_shown(bind: Bind) -> None:
    sockets, address = bind("tcp6:0:interface=\\:\\:1")
    assert isinstance(address, IPv6Address)
    assert address.host == "::1"
    assert served_by(sockets, ("::1", address.port), 8) != [0, 0]


def test_a_unix_socket_is_shared_with_the_mode_that_was_asked_for(bind: Bind, short_path: Path) -> None:
    path = short_path / "s"
    sockets, address = bind(f"unix:{path}:mode=600")
    assert address == UNIXAddress(os.fsencode(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert served_by(sockets, str(path), 3) == [3]


def test_a_unix_socket_that_nobody_listens_on_is_replaced(bind: Bind, short_path: Path) -> None:
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    sockets, _ = bind(f"unix:{path}")
    assert served_by(sockets, str(path), 1) == [1]


def test_a_unix_socket_that_is_listened_on_is_left_alone(bind: Bind, short_path: Path) -> None:
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(CannotListenError, match="Address already in use"):
            bind(f"unix:{path}")
        # One connection was the question whether anybody listens.
        assert served_by([other], str(path), 1) == [2]


def test_what_is_no_socket_is_not_replaced(bind: Bind, short_path: Path) -> None:
    path = short_path / "notes"
    path.write_text("mine")
    with pytest.raises(CannotListenError, match="Address already in use: by a regular file; remove it"):
        bind(f"unix:{path}")
    assert path.read_text() == "mine"


def test_a_link_to_a_dead_socket_is_not_replaced(bind: Bind, short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(short_path / "other"))
    (short_path / "s").symlink_to("other")
    with pytest.raises(CannotListenError, match="Address already in use: by a symbolic link, no regular file"):
        bind(f"unix:{short_path}/s")
    assert sorted(os.listdir(short_path)) == ["other", "s"]


@pytest.mark.parametrize("count", [1, 3])
def test_the_second_to_bind_a_unix_socket_is_told_who_holds_it_and_leaves_all_as_it_was(
    bind: Bind, short_path: Path, count: int
) -> None:
    path = short_path / "s"
    sockets, _ = bind(f"unix:{path}", count)
    before = [state_of(path), state_of(short_path / "s.lock")]
    for _ in range(2):
        with pytest.raises(CannotListenError) as caught:
            bind(f"unix:{path}", count)
        assert f"{path}.lock: its lock is held by process {os.getpid()} (" in str(caught.value)
        assert "another service listens there; end it, or choose another path" in str(caught.value)
        assert [state_of(path), state_of(short_path / "s.lock")] == before
    assert served_by(sockets, str(path), 1) == [1]


def test_a_unix_socket_that_cannot_be_bound_leaves_no_lock(bind: Bind, short_path: Path) -> None:
    for name in ("taken", "x" * 120):
        (short_path / "taken").mkdir(exist_ok=True)
        with pytest.raises(CannotListenError):
            bind(f"unix:{short_path}/{name}")
    assert os.listdir(short_path) == ["taken"]


def test_a_socket_that_answers_is_never_replaced_though_its_lock_is_free(bind: Bind, short_path: Path) -> None:
    path = short_path / "s"
    sockets, _ = bind(f"unix:{path}")
    for lock in (Path.unlink, lambda lock: lock.symlink_to("4194304")):  # gone; an earlier version's, of a dead process
        lock(short_path / "s.lock")
        with pytest.raises(CannotListenError):
            bind(f"unix:{path}")
        assert served_by(sockets, str(path), 1)[0] >= 1


@pytest.mark.parametrize("leave", [lambda lock: lock.touch(), lambda lock: lock.symlink_to("4194304")])
def test_what_a_killed_service_left_is_taken_over(bind: Bind, short_path: Path, leave: Callable[[Path], None]) -> None:
    path = short_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
        stale.listen()
    leave(short_path / "s.lock")
    sockets, _ = bind(f"unix:{path}")
    assert served_by(sockets, str(path), 1) == [1]


def test_released_its_names_are_gone_and_another_can_bind_while_the_old_one_drains(short_path: Path) -> None:
    path = short_path / "s"
    old = bind_sockets(uv.server_endpoint, f"unix:{path}", 2)
    old.release()
    assert os.listdir(short_path) == []
    new = bind_sockets(uv.server_endpoint, f"unix:{path}", 2)
    old.release()  # a second time takes nothing from the new one
    assert served_by(new.sockets, str(path), 1) == [1]
    for one in (*old.sockets, *new.sockets):
        one.close()
    new.release()
    assert os.listdir(short_path) == []


def test_a_socket_that_another_put_in_its_place_is_not_removed(short_path: Path) -> None:
    path = short_path / "s"
    bound = bind_sockets(uv.server_endpoint, f"unix:{path}", 1)
    path.unlink()
    path.write_text("another's")
    bound.release()
    bound.sockets[0].close()
    assert path.read_text() == "another's"


def test_a_lock_that_cannot_be_one_is_named(bind: Bind, short_path: Path) -> None:
    (short_path / "s.lock").mkdir()
    with pytest.raises(CannotListenError, match=rf"{short_path}/s\.lock: a directory, no regular file"):
        bind(f"unix:{short_path}/s")


def test_a_lock_that_is_a_link_is_not_followed(bind: Bind, short_path: Path) -> None:
    (short_path / "s.lock").symlink_to(short_path / "made")
    bind(f"unix:{short_path}/s")
    assert not (short_path / "made").exists()


def test_a_tls_port_is_bound_once_its_certificate_is_known_to_be_good(bind: Bind, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server", "flowstack.example")
    text = f"ssl:0:interface=127.0.0.1:certKey={certificate}:privateKey={key}"
    sockets, address = bind(text)
    assert served_by(sockets, ("127.0.0.1", address.port), 4) != [0, 0]
    certificate.write_text("no certificate")
    with pytest.raises(CertificateFault, match="no certificate in PEM form was found") as caught:
        bind(text)
    assert str(certificate) in str(caught.value)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that systemd handed over under the name ``web``."""
    listener = socket.create_server(("127.0.0.1", 0))
    # Whoever adopts it closes it; the test keeps its own.
    found = ListenFDs([os.dup(listener.fileno())], ["web"])
    monkeypatch.setattr("twisted.internet.endpoints._SystemdParser._sddaemon", found)
    yield listener
    listener.close()


def test_a_socket_that_systemd_handed_over_is_shared(bind: Bind, handed_over: socket.socket) -> None:
    sockets, address = bind("systemd:domain=INET:name=web")
    assert (address.host, address.port) == handed_over.getsockname()
    assert served_by(sockets, (address.host, address.port), 3) == [3]


@pytest.mark.parametrize("which", ["name=other", "index=1"])
def test_a_socket_that_systemd_did_not_hand_over_is_missed_in_words(
    bind: Bind, which: str, handed_over: socket.socket
) -> None:
    with pytest.raises(ValueError, match="systemd handed over no such socket"):
        bind(f"systemd:domain=INET:{which}")


@pytest.mark.parametrize("text", ["tcp:0:nothing=1", "ssl:0:nothing=1", "cat:9"])
def test_a_string_that_cannot_be_understood_is_refused(bind: Bind, text: str) -> None:
    with pytest.raises(ValueError, match=r"nothing|cat"):
        bind(text)
