"""treq's call without treq's habits, and treq's own stand-ins in its place."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent, StubTreq
from twisted.web.resource import Resource
from zope.interface.verify import verifyObject

from flowstack.interfaces import IRelayClient
from flowstack.relay.client import RelayClient
from tests.relay.lab import Lab, answer
from tests.wire.harness import Provider


class Upstream(Resource):
    isLeaf = True

    def render(self, request: Any) -> bytes:
        request.setHeader(b"content-type", b"text/plain")
        request.setHeader(b"set-cookie", b"s=1")
        return request.method + b" " + request.uri + b" " + request.content.read()


class Stub:
    """treq's stand-in, given treq's call as the relay makes it."""

    def __init__(self, resource: Resource) -> None:
        self._treq = StubTreq(resource)
        self.flush = self._treq.flush

    def request(self, method: bytes, url: bytes, *, headers: Any, data: Any) -> Any:
        headers = headers.copy()
        headers.removeHeader("content-length")  # which treq adds by itself
        return self._treq.request(
            method.decode(), url.decode(), headers=headers, data=None if data is None else data.whole, cookies={},
            unbuffered=True, allow_redirects=False,
        )  # fmt: skip


def test_a_stub_of_treqs_can_stand_in_for_the_upstream() -> None:
    stub = Stub(Upstream())
    lab = Lab(clients={"openai": stub})
    client = lab.ask(b"POST /v1/x?y HTTP/1.1", b"Content-Length: 5", body=b"hello")
    stub.flush()
    got = answer(client)
    assert got.status == 200
    assert b"POST /v1/x?y hello" in got.body
    assert (lab.row["end"], lab.row["upstream"]) == ("complete", "openai")


def test_an_agent_of_treqs_can_stand_in_for_the_wires() -> None:
    agent = RequestTraversalAgent(Upstream())
    lab = Lab(clients={"openai": RelayClient(agent)})
    client = lab.ask(b"GET /v1/x?y HTTP/1.1")
    agent.flush()
    got = answer(client)
    assert (got.status, got["set-cookie"], got.body) == (200, b"s=1", b"GET /v1/x?y ")
    assert (lab.row["end"], lab.row["bytes_out"]) == ("complete", 12)


def test_a_client_that_leaves_a_stub_still_has_its_row() -> None:
    class Silent(Resource):
        isLeaf = True

        def render(self, request: Any) -> int:
            request.write(b"begun")
            return 1  # NOT_DONE_YET

    stub = Stub(Silent())
    lab = Lab(clients={"openai": stub})
    client = lab.ask()
    stub.flush()
    client.hang_up()
    assert lab.row["end"] == "client_gone"


def test_the_relays_client_is_treqs_and_gives_the_call_on_unchanged() -> None:
    provider = Provider()
    client = RelayClient(provider.agent)
    assert isinstance(client, HTTPClient)
    assert verifyObject(IRelayClient, client)
    client.request(b"GET", b"http://upstream.example/v1/%7e?a=b?", headers=None, data=None)
    provider.turns.settle()
    assert provider.peers[0].take() == b"GET /v1/%7e?a=b? HTTP/1.1\r\nHost: upstream.example\r\n\r\n"
