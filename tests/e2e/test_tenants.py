"""Two tenants share a proxy, its connections to the upstream, even one connection of their own, and see nothing of each
other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import frozen

from tests.e2e.live import read_rows
from tests.e2e.processes import eventually
from tests.e2e.raw import Answer, Client, assert_own_error, request
from tests.e2e.raw_upstream import OK, Front, Seen, front, reply

pytestmark = pytest.mark.e2e


@frozen
class Tenant:
    """A user of the proxy.

    :ivar name: stands in everything that is theirs.
    """

    name: str
    key: str

    def request(self, line: bytes = b"GET /v1/models HTTP/1.1", *fields: bytes, body: bytes = b"") -> bytes:
        return request(self.key, line, *fields, body=body)

    def own(self, secret: str) -> bytes:
        """A request whose every part names this tenant."""
        fields = [
            f"Authorization: Bearer sk-{secret}",
            f"Cookie: session={secret}",
            f"X-Private: {secret}",
            f"OpenAI-Organization: {secret}",
            f"Flowstack-Attribute-Team: {secret}",
        ]
        body = f'{{"user": "{secret}"}}'.encode()
        length = b"Content-Length: %d" % len(body)
        line = f"POST /v1/chat/{secret} HTTP/1.1".encode()
        return self.request(line, *[field.encode() for field in fields], length, body=body)


@frozen
class House:
    """The proxy and its two tenants, with its request log."""

    ends: Front
    alice: Tenant
    bob: Tenant

    def row(self, answer: Answer) -> dict[str, Any]:
        """The request log's line for an answer."""

        def find() -> dict[str, Any] | None:
            rows = read_rows(self.ends.proxy.folder / "requests.jsonl")
            return next((row for row in rows if row["request_id"] == answer.request_id), None)

        return eventually(find, f"a line of the request log for {answer.request_id}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("tenants")
    log = {"requests": str(folder / "requests.jsonl")}
    with front(folder, log=log, upstreams={"openai": {"max_connections": 2}}) as ends:
        bob = ends.proxy.keystore.add("owner=bob@example.com")
        assert ends.proxy.reload()["keys"] == 2
        yield House(ends, Tenant("alice", ends.proxy.key), Tenant("bob", bob))
        assert ends.upstream.faults == []


@pytest.fixture
def house(shared: House) -> House:
    shared.ends.upstream.forget()
    return shared


def mirror(seen: Seen) -> None:
    """Answer with the request's own bytes, and a cookie for whoever asked."""
    seen.read_body()
    body = seen.raw_head + seen.framed
    who = seen.target.rpartition(b"/")[2]
    seen.link.offer(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: __cf_bm=%b; path=/\r\nX-Mirror: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (who, who, len(body), body)
    )


def test_nothing_of_one_tenant_is_sent_or_answered_to_the_other_over_one_upstream_connection(house: House) -> None:
    house.ends.upstream.script = mirror
    with house.ends.client() as first, house.ends.client() as second:
        for turn in range(10):
            for tenant, client in ((house.alice, first), (house.bob, second)):
                secret = f"{tenant.name}-{turn}"
                answer = client.ask(tenant.own(secret))
                assert answer.all(b"set-cookie") == [b"__cf_bm=" + secret.encode() + b"; path=/"]
                body = f'{{"user": "{secret}"}}'
                assert house.ends.upstream.last().pairs == [
                    (b"Host", house.ends.upstream.authority),
                    (b"Authorization", b"Bearer sk-" + secret.encode()),
                    (b"Cookie", b"session=" + secret.encode()),
                    (b"X-Private", secret.encode()),
                    (b"OpenAI-Organization", secret.encode()),
                    (b"Content-Length", b"%d" % len(body)),
                ]
                assert answer.body == house.ends.upstream.last().raw_head + body.encode()
    assert {seen.connection for seen in house.ends.upstream.requests} == {house.ends.upstream.requests[0].connection}


def test_a_cookie_that_the_upstream_sets_is_replayed_to_nobody(house: House) -> None:
    house.ends.upstream.script = mirror
    with house.ends.client() as client:
        for tenant in (house.alice, house.bob, house.alice):
            client.ask(tenant.request(b"GET /v1/cookie HTTP/1.1"))
            assert house.ends.upstream.last().pairs == [(b"Host", house.ends.upstream.authority)]


def test_two_tenants_on_one_client_connection_are_told_apart_at_each_request(house: House) -> None:
    house.ends.upstream.script = mirror
    with house.ends.client() as client:
        alices = client.ask(house.alice.own("alice-team"))
        bobs = client.ask(house.bob.own("bob-team"))
        assert_own_error(client.ask(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"), 401, "missing_flowstack_key")
        plain = client.ask(house.alice.request())
    for answer, owner, attributes in (
        (alices, "alice@example.com", {"team": "alice-team"}),
        (bobs, "bob@example.com", {"team": "bob-team"}),
        (plain, "alice@example.com", None),
    ):
        row = house.row(answer)
        assert (row["owner"], row["attributes"], row["status"]) == (owner, attributes, 200)
    assert len({answer.request_id for answer in (alices, bobs, plain)}) == 3


def test_pipelined_requests_of_two_tenants_get_each_their_own_answer(house: House) -> None:
    house.ends.upstream.script = mirror
    tenants = [house.alice, house.bob] * 8
    with house.ends.client() as client:
        client.send(b"".join(tenant.own(f"{tenant.name}-{turn}") for turn, tenant in enumerate(tenants)))
        for turn, tenant in enumerate(tenants):
            assert client.answer().all(b"x-mirror") == [f"{tenant.name}-{turn}".encode()]


def test_many_requests_at_once_over_few_upstream_connections_get_each_their_own_answer(house: House) -> None:
    house.ends.upstream.script = mirror
    wrong: list[str] = []

    def work(tenant: Tenant, number: int) -> None:
        with house.ends.client() as client:
            for turn in range(25):
                secret = f"{tenant.name}-{number}-{turn}"
                answer = client.ask(tenant.own(secret))
                if answer.all(b"x-mirror") != [secret.encode()] or answer.body.count(secret.encode()) != 6:
                    wrong.append(f"{secret} got {answer}")

    threads = [
        threading.Thread(target=work, args=(tenant, number))
        for number in range(6)
        for tenant in (house.alice, house.bob)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(house.ends.upstream.requests) == 12 * 25
    assert len({seen.connection for seen in house.ends.upstream.requests}) <= 2


# However Alice's exchange ends, Bob's begins clean.

BEGUN = b"HTTP/1.1 200 OK\r\nX-Private: alice\r\nContent-Length: 1000\r\n\r\nalice's secret"
Leave = Callable[[House, Client], None]


def wait_for_request(house: House) -> None:
    eventually(lambda: house.ends.upstream.requests, "Alice's request goes upstream")


def leave_before_the_head(house: House, client: Client) -> None:
    house.ends.upstream.script = hold
    client.send(house.alice.own("alice"))
    wait_for_request(house)
    client.abort()


def leave_in_the_answer(house: House, client: Client) -> None:
    def script(seen: Seen) -> None:
        seen.read_body()
        seen.link.offer(BEGUN)
        hold(seen)

    house.ends.upstream.script = script
    client.send(house.alice.own("alice"))
    client.until(b"secret")
    client.abort()


def leave_in_the_upload(house: House, client: Client) -> None:
    house.ends.upstream.script = hold
    client.send(house.alice.request(b"POST /v1/files HTTP/1.1", b"Content-Length: 1000"), b"alice's secret")
    wait_for_request(house)
    client.abort()


def leave_in_a_chunked_upload(house: House, client: Client) -> None:
    house.ends.upstream.script = hold
    client.send(house.alice.request(b"POST /v1/files HTTP/1.1", b"Transfer-Encoding: chunked"), b"ff\r\nalice's secret")
    wait_for_request(house)
    client.abort()


def be_answered_too_early(house: House, client: Client) -> None:
    def script(seen: Seen) -> None:
        seen.link.offer(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
        hold(seen)

    house.ends.upstream.script = script
    assert client.ask(house.alice.request(b"POST /v1/files HTTP/1.1", b"Content-Length: 1000"), b"half").status == 400


def be_answered_too_much(house: House, client: Client) -> None:
    house.ends.upstream.script = reply(OK + BEGUN)
    assert client.ask(house.alice.own("alice")).body == b"ok"


def be_answered_head_with_a_body(house: House, client: Client) -> None:
    house.ends.upstream.script = reply(BEGUN)
    assert client.ask(house.alice.request(b"HEAD /v1/x HTTP/1.1"), method="HEAD").body == b""


def be_answered_garbage(house: House, client: Client) -> None:
    house.ends.upstream.script = reply(b"alice's secret\r\n\r\n")
    assert_own_error(client.ask(house.alice.own("alice")), 502, "upstream_malformed")


def hold(seen: Seen) -> None:
    """Keep the connection until the proxy closes it."""
    seen.link.to_the_end()
    seen.link.close()


WAYS = [
    leave_before_the_head,
    leave_in_the_answer,
    leave_in_the_upload,
    leave_in_a_chunked_upload,
    be_answered_too_early,
    be_answered_too_much,
    be_answered_head_with_a_body,
    be_answered_garbage,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_one_tenant_leaves_behind_reaches_the_other_in_neither_direction(house: House, way: Leave) -> None:
    upstream = house.ends.upstream
    with house.ends.client() as warm:
        assert warm.ask(house.alice.request()).status == 200
        pooled = upstream.last().connection
        upstream.forget()
        with house.ends.client() as client:
            way(house, client)
        left = upstream.last()
        assert left.connection == pooled, "the pooled connection was there to be reused"
        eventually(lambda: left.link.closed, "a connection with something left on it is closed")
        upstream.script = mirror
        for _ in range(3):
            answer = warm.ask(house.bob.own("bob"))
            assert (answer.status, answer.all(b"x-mirror"), answer.all(b"x-private")) == (200, [b"bob"], [])
            assert b"alice" not in answer.raw_head + answer.body
            seen = upstream.last()
            assert seen.connection != left.connection
            assert b"alice" not in seen.raw_head + seen.framed
            assert seen.body == b'{"user": "bob"}'


def test_a_connection_that_the_upstream_closes_while_idle_is_replaced_unseen(house: House) -> None:
    with house.ends.client() as client:
        for _ in range(5):
            assert client.ask(house.alice.request()).status == 200
            house.ends.upstream.last().link.close()
            # Whether the FIN was seen before the next request or not: what may be sent again is.
            assert client.ask(house.bob.request()).status == 200


@pytest.mark.parametrize("refused", [b"", b"Connection: Cookie", b"Transfer-Encoding: identity"], ids=bytes.decode)
def test_a_refused_request_leaves_the_pool_as_it_was(house: House, refused: bytes) -> None:
    with house.ends.client() as client:
        assert client.ask(house.alice.request()).status == 200
        with house.ends.client() as other:
            key = house.alice.key if refused else "unknown"
            assert other.ask(request(key, b"POST /v1/x HTTP/1.1", *filter(None, [refused]))).status in (400, 401)
        assert client.ask(house.bob.request()).status == 200
    first, second = house.ends.upstream.requests
    assert first.connection == second.connection
