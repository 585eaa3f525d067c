"""Several machines with one Redis: work is charged once by whichever sees it finished, and all know client secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from flowstack.keys.client_secrets import ClientSecrets
from flowstack.ledger.shared_work import SharedOpenWork
from flowstack.limits.remote_memory import RemoteMemory
from flowstack.limits.told import Untold
from tests.limits.lab import NOON, Clock
from tests.limits.remote_lab import AtOnce
from tests.relay import lab as relay_lab
from tests.relay.lab import KEY, Lab, answer
from tests.relay.sockets import OPENING, REALTIME, Duet
from tests.relay.test_client_secrets import EK, SECRET, bearer, made
from tests.relay.test_late import NOW, OTHER, USAGE, background, batch, begin, look


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_lab, "NOW", NOW)


def make_secret(lab: Lab) -> None:
    made(lab, {"value": SECRET, "expires_at": int(NOW) + 600, "session": {"type": "realtime"}})


class Machines:
    """Each with a directory, and a link of its own."""

    def __init__(self, client: redis.Redis, path: Path) -> None:
        self.clock = Clock(NOON)
        self.links: list[AtOnce] = []
        self.labs: list[Lab] = []
        self.paths: list[Path] = []
        for number in range(2):
            link = AtOnce(client, b"m%d" % number, self.clock)
            link.connect()
            memory = RemoteMemory(link)  # type: ignore[arg-type]
            state = path / str(number)
            state.mkdir()

            def real(lab: Lab, state: Path = state, memory: RemoteMemory = memory) -> dict[str, Any]:
                return {"secrets": ClientSecrets(state / "secrets", lab.wall, lab.turns.clock.seconds, memory)}

            lab = Lab(open_work=SharedOpenWork(state / "open", 0, self.clock, memory), real=real)
            lab.keys.add(OTHER, id="k2", owner="bob@example.com")
            self.links.append(link)
            self.labs.append(lab)
            self.paths.append(state)

    def files(self) -> list[str]:
        """What waits, wherever."""
        return [file.name for path in self.paths if (path / "open").exists() for file in (path / "open").iterdir()]


@pytest.fixture
def machines(redis_client: redis.Redis, tmp_path: Path) -> Machines:
    return Machines(redis_client, tmp_path)


SEEN = [
    ("response", b"responses/resp_1", background("completed", USAGE)),
    ("batch", b"batches/batch_1", batch("completed", USAGE)),
]


@pytest.mark.parametrize(("kind", "path", "answered"), SEEN)
def test_what_one_machine_began_is_charged_once_by_whichever_sees_it_finished(
    machines: Machines, kind: str, path: bytes, answered: Any
) -> None:
    one, other = machines.labs
    begun = begin(one, kind)
    (row,) = look(other, path, answered)
    assert (row["key_id"], row["parent_request_id"]) == ("k1", begun["request_id"])
    assert other.limiter.settled_later == [(1, row)]
    for lab in (other, one):
        assert look(lab, path, answered) == []
    assert one.limiter.settled_later == [] and len(other.limiter.settled_later) == 1
    assert machines.files() == [], "who began it knows that it need not ask any more"


def test_what_the_machine_that_began_it_sees_itself_is_seen_by_no_other(machines: Machines) -> None:
    one, other = machines.labs
    begin(one, "response")
    assert len(machines.files()) == 1
    assert len(look(one, b"responses/resp_1", background("completed", USAGE))) == 1
    assert look(other, b"responses/resp_1", background("completed", USAGE)) == []
    assert machines.files() == []


def test_what_a_machine_claimed_and_could_not_charge_is_another_ones_when_it_is_dead(machines: Machines) -> None:
    one, other = machines.labs
    begun = begin(one, "response")
    claimed: list[Any] = []
    other.open_work.claim("openai", "response", "resp_1").addCallback(claimed.append)  # type: ignore[union-attr]
    assert claimed[0].request_id == begun["request_id"]
    other.open_work.claim("openai", "response", "resp_1").addCallback(claimed.append)  # type: ignore[union-attr]
    assert claimed[1] is None, "nor does the same process get it twice"
    assert look(one, b"responses/resp_1", background("completed", USAGE)) == []
    machines.clock.now += 21
    machines.links[0].live(new=True)
    assert len(look(one, b"responses/resp_1", background("completed", USAGE))) == 1


def test_a_claim_of_which_the_answer_was_lost_is_made_again(machines: Machines) -> None:
    one, _ = machines.labs
    begin(one, "response")
    link, asked = machines.links[0], list[Any]()
    owe, link.owe = link.owe, lambda owed, again=False: asked.append(owed)  # type: ignore[method-assign]
    found: list[Any] = []
    one.open_work.claim("openai", "response", "resp_1").addCallback(found.append)  # type: ignore[union-attr]
    link.call(*asked[0].words(False))
    assert found == []
    link.owe = owe  # type: ignore[method-assign]
    link.connect()
    link.owe(asked[0], again=True)
    assert found[0].id == "resp_1"


def test_work_that_redis_forgot_is_still_known_where_it_was_begun(
    machines: Machines, redis_client: redis.Redis
) -> None:
    one, other = machines.labs
    begin(one, "response")
    redis_client.flushall()
    assert look(other, b"responses/resp_1", background("completed", USAGE)) == []
    assert len(look(one, b"responses/resp_1", background("completed", USAGE))) == 1
    assert look(one, b"responses/resp_1", background("completed", USAGE)) == []


def test_without_redis_nothing_is_charged_until_it_is_back(machines: Machines) -> None:
    one, other = machines.labs
    machines.links[0].up = False
    begin(one, "response")
    assert look(one, b"responses/resp_1", background("completed", USAGE)) == []
    assert len(machines.files()) == 1
    machines.links[0].come_back()
    assert len(look(other, b"responses/resp_1", background("completed", USAGE))) == 1


def test_what_is_remembered_in_redis_ends(machines: Machines, redis_client: redis.Redis) -> None:
    one, other = machines.labs
    begin(one, "response")
    begin(one, "batch")
    look(other, b"batches/batch_1", batch("completed", USAGE))
    make_secret(one)
    names = [name for name in redis_client.scan_iter() if name.startswith((b"flowstack:work:", b"flowstack:secret:"))]
    assert len(names) == 3
    for name in names:
        assert 0 < redis_client.ttl(name) <= 30 * 86400


def test_a_secret_that_one_machine_saw_made_is_good_at_another_and_is_not_in_redis(
    machines: Machines, redis_client: redis.Redis
) -> None:
    one, other = machines.labs
    make_secret(one)
    duet = Duet(other, REALTIME, bearer(), auth=None)
    assert duet.head.startswith(b"HTTP/1.1 101")
    duet.client.transport.hang_up()
    assert other.rows[-1]["key_id"] == "k1"
    for name in redis_client.scan_iter():
        if redis_client.type(name) == b"string":
            assert EK not in name + redis_client.get(name) and KEY not in redis_client.get(name)  # type: ignore[operator]


def opened(lab: Lab) -> Any:
    client = lab.client()
    client.send(b"\r\n".join([b"GET /v1/realtime HTTP/1.1", b"Host: flowstack.example", *OPENING, bearer(), b"", b""]))
    return client


@pytest.mark.parametrize("what", ["none", "down", "slow", "nonsense", "endless", "expired", "a removed key"])
def test_a_secret_of_which_no_machine_knows_is_refused(
    machines: Machines, redis_client: redis.Redis, what: str
) -> None:
    one, other = machines.labs
    link = machines.links[1]
    if what != "none":
        make_secret(one)
        (name,) = redis_client.scan_iter("flowstack:secret:*")
    if what == "down":
        link.up = False
    elif what == "slow":
        link.ask = lambda *asked: asked[3](None)  # type: ignore[method-assign]
    elif what == "nonsense":
        redis_client.set(name, b'{"key": 7}')
    elif what == "endless":
        redis_client.set(name, b'{"key": "%b", "upstream": "openai", "expires": 1e13}' % one.key.digest.hex().encode())
    elif what == "expired":
        other.turns.advance(601)
    elif what == "a removed key":
        other.keys.keys.clear()
    assert answer(opened(other)).status == 401
    assert not other.providers["openai"].peers


def test_a_client_that_leaves_while_redis_is_asked_for_its_secret_is_forgotten(machines: Machines) -> None:
    one, other = machines.labs
    make_secret(one)
    link, held = machines.links[1], list[Any]()
    link.ask = lambda *asked: held.append(asked)  # type: ignore[method-assign]
    gone, waits = opened(other), opened(other)
    gone.hang_up()
    assert not waits.got
    for function, keys, arguments, done in held:
        done(link.call(function, keys, arguments))
    other.turns.settle()
    assert len(other.providers["openai"].peers) == 1
    assert len(other.rows) == 0


@pytest.mark.parametrize("answered", [[1], [1, None], [1, 7], [1, b"", b""]])
def test_an_answer_about_a_secret_that_is_none_of_ours_is_believed_in_nothing(
    machines: Machines, answered: list[Any]
) -> None:
    link, held = machines.links[1], list[Any]()
    link.ask = lambda *asked: held.append(asked[3])  # type: ignore[method-assign]
    client = opened(machines.labs[1])
    with pytest.raises(Untold):
        held[0](answered)
    assert not client.got
    held[0](None)  # as the link does when it gives a connection up
    assert answer(client).status == 401
