"""Limits cannot be passed: whatever a client sends, an upstream that takes anything serves it nothing beyond them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import define, field

from tests.e2e.attacks import ALLOWED, CHAT, JSON, Attack, attacks, chat, prying, sized
from tests.e2e.crowd import crowd
from tests.e2e.lax import SERVED, Lax, Moment, at_the_head, when_it_could
from tests.e2e.raw import Client, Closed, request
from tests.e2e.raw_upstream import Front, Seen, front

pytestmark = pytest.mark.e2e

ATTACKS = list(attacks())

CLOSED = {
    "models": f"models={ALLOWED.decode()}",
    "tpm": "tpm=1",
    "budget": "budget=0.0001usd/total",
    "rpm": "rpm=1",
    "max_parallel": "max_parallel=1",
    "endpoints": "endpoints=GET:/v1/files",
    "everything": f"models={ALLOWED.decode()} tpm=1 budget=0.0001usd/total endpoints=POST:/v1/audio/*",
}
"""Keys that have nothing left for any of the attacks."""

MOMENTS = pytest.mark.parametrize(
    "moment", [at_the_head, when_it_could], ids=["answers at the head", "answers when it could"]
)


@define
class House:
    """A proxy before a lax upstream, and keys with nothing left."""

    ends: Front
    keys: dict[str, str] = field(repr=False)

    def received(self, key: str, attack: Attack) -> bytes:
        """All that a client gets to read, until the answer is whole or the connection ends."""
        with Client(self.ends.proxy.port) as client:
            client.offer(request(key, attack.line, *attack.fields) + b"".join(attack.pieces))
            with contextlib.suppress(Closed):
                client.answer(attack.method.decode())
            return bytes(client.received)

    def served(self, key: str, several: list[Attack]) -> list[tuple[str, bytes]]:
        """Those of several attacks that are not refused by Flowstack itself, each with how its answer begins."""

        def attempt(attack: Attack) -> list[tuple[str, bytes]]:
            got = self.received(key, attack)
            return [(attack.name, got[:80])] if SERVED in got or not _refused(got) else []

        def side_by_side(some: list[Attack]) -> list[list[tuple[str, bytes]]]:
            return crowd(len(some), lambda number: attempt(some[number]))

        groups = [side_by_side(several[start : start + 16]) for start in range(0, len(several), 16)]
        return [one for group in groups for each in group for one in each]

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """See that a key has nothing left where that must be brought about."""
        key, upstream = self.keys[kind], self.ends.upstream
        asked = request(key, b"POST %b HTTP/1.1" % CHAT, JSON, b"Content-Length: %d" % len(chat()), body=chat())
        if kind == "rpm":
            upstream.script = Lax().answering(when_it_could)
            with Client(self.ends.proxy.port) as client:
                client.ask(asked)
            yield
        elif kind == "max_parallel":
            arrived: list[Seen] = []
            upstream.script = arrived.append
            with Client(self.ends.proxy.port) as client:
                client.send(asked)
                client.sock.settimeout(0.01)
                while not arrived:
                    with contextlib.suppress(TimeoutError):
                        assert client.sock.recv(1) is None, "it is answered"
                yield
                arrived[0].link.close()
        else:
            yield


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings: dict[str, Any] = {"timeouts": {"request_idle": 1}, "ledger": {"index": False}}
    with front(tmp_path_factory.mktemp("walls"), base="/v1", **settings) as ends:
        keys = {kind: ends.proxy.keystore.add(line) for kind, line in CLOSED.items()}
        assert ends.proxy.reload()["fault"] is None
        yield House(ends, keys)


@pytest.fixture(scope="module")
def prison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A proxy whose upstream gets the operator's key."""
    folder = tmp_path_factory.mktemp("prison")
    secret = folder / "openai.secret"
    secret.touch(0o600)
    secret.write_text("sk-operator-1-kJ8sQw2LpX0vBn5TzR7y")
    upstream = {"openai": {"api_key_file": str(secret)}}
    settings: dict[str, Any] = {"timeouts": {"request_idle": 1}, "ledger": {"index": False}, "upstreams": upstream}
    with front(folder, base="/v1", **settings) as ends:
        yield House(ends, {})


@MOMENTS
@pytest.mark.parametrize("kind", CLOSED)
def test_a_key_with_nothing_left_is_served_nothing_by_whatever_it_sends(
    house: House, kind: str, moment: Moment
) -> None:
    lax = Lax()
    with house.spent(kind):
        house.ends.upstream.script = lax.answering(moment)

        wrong = house.served(house.keys[kind], ATTACKS)
    assert wrong == []
    if moment is when_it_could:
        assert lax.served == [], "nothing went upstream that it could have begun to work on"


@MOMENTS
def test_with_the_operators_key_nothing_that_others_stored_is_served(prison: House, moment: Moment) -> None:
    lax = Lax()
    prison.ends.upstream.script = lax.answering(moment)
    assert prison.served(prison.ends.proxy.key, list(prying())) == []
    if moment is when_it_could:
        assert lax.served == []
    prison.ends.upstream.script = lax.answering(when_it_could)
    plain = [attack for attack in ATTACKS if attack.name in ("as it should be", "model behind 200 kB", "stream")]
    assert [attack.name for attack in plain if SERVED not in prison.received(prison.ends.proxy.key, attack)] == []


ROOM = {"rpm": "rpm=2", "tpm": "tpm=150000", "budget": "budget=2.00usd/total"}
"""Keys with room for two answers of the lax upstream, each of 101,000 tokens and 1.0025 USD."""


@pytest.mark.parametrize("kind", ROOM)
def test_a_key_with_room_for_two_is_served_no_more_by_an_upstream_that_ignores_maxima(house: House, kind: str) -> None:
    key = house.ends.proxy.keystore.add(ROOM[kind])
    assert house.ends.proxy.reload()["fault"] is None
    lax = Lax()
    house.ends.upstream.script = lax.answering(when_it_could)
    body = chat(b"gpt-4o", last=b',"max_tokens":1')
    modest = sized("asks for one token", body), sized("asks for one token, never ends", body, length=1_000_000)
    got = [house.received(key, modest[number % 2]) for number in range(12)]
    assert len(lax.served) == sum(SERVED in each for each in got) == 2


def _refused(got: bytes) -> bool:
    """Whether a client was told no, by Flowstack itself."""
    head = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")[0]
    return head.startswith((b"HTTP/1.1 4", b"HTTP/1.1 502 ")) and b"\r\nFlowstack-Error: " in head


def test_without_limits_the_same_requests_are_served(house: House) -> None:
    house.ends.upstream.script = Lax().answering(when_it_could)
    plain = [attack for attack in ATTACKS if attack.plain]
    unserved = [attack.name for attack in plain if SERVED not in house.received(house.ends.proxy.key, attack)]
    assert unserved == []
