"""treq's call without treq's habits, and treq's own stand-ins in its place."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent, StubTreq
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource

from flowstack.http.headers import RawHeaders, ReceivedHeaders
from flowstack.interfaces import BodyReceiver
from flowstack.relay.client import RelayClient
from tests.harness import Provider
from tests.relay.lab import Lab, answer


class Upstream(Resource):
    isLeaf = True

    def render(self, request: Any) -> bytes:
        request.setHeader(b"content-type", b"text/plain")
        request.setHeader(b"set-cookie", b"s=1")
        return request.method + b" " + request.uri + b" " + request.content.read()


class Response:
    """A response of treq's or of an agent's, as the relay takes one."""

    def __init__(self, response: Any) -> None:
        self.code, self.phrase, self.length = response.code, response.phrase, response.length
        fields = response.headers.getAllRawHeaders()
        self.headers = ReceivedHeaders([(name, value) for name, values in fields for value in values])
        self.connection = self
        self._response = response
        self._transport: Any = None

    def deliver(self, receiver: BodyReceiver) -> None:
        body = self

        class Taker(Protocol):
            def connectionMade(self) -> None:
                body._transport = self.transport

            def dataReceived(self, data: bytes) -> None:
                receiver.data(data)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                if reason.check(ResponseDone):
                    receiver.last(b"")
                else:
                    receiver.lost(reason.value)

        self._response.deliverBody(Taker())

    def pauseProducing(self) -> None:
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._transport.resumeProducing()

    def stopProducing(self) -> None:
        self._transport.stopProducing()


class Call:
    """treq's Deferred, as the relay takes it."""

    attempts = 1

    def __init__(self, answered: Any) -> None:
        self._answered = answered.addCallback(Response)
        self.addCallbacks, self.cancel = self._answered.addCallbacks, self._answered.cancel


class Stub:
    """treq's stand-in, given treq's call as the relay makes it."""

    def __init__(self, resource: Resource) -> None:
        self._treq = StubTreq(resource)
        self.flush = self._treq.flush

    def request(self, method: bytes, url: bytes, *, headers: Any, data: Any) -> Call:
        given = Headers()
        for name, value in headers.pairs:
            given.addRawHeader(name, value)
        given.removeHeader("content-length")  # which treq adds by itself
        return Call(self._treq.request(
            method.decode(), url.decode(), headers=given, data=None if data is None else data.whole, cookies={},
            unbuffered=True, allow_redirects=False,
        ))  # fmt: skip


class Adapted:
    """An agent whose Deferred is the relay's call."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def request(self, method: bytes, url: bytes, headers: Any, body: Any) -> Call:
        return Call(self._agent.request(method, url, headers, body))


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
    lab = Lab(clients={"openai": RelayClient(Adapted(agent))})
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
    host = RawHeaders([(b"Host", b"upstream.example")])
    client.request(b"GET", b"http://upstream.example/v1/%7e?a=b?", headers=host, data=None)
    provider.turns.settle()
    assert provider.peers[0].take() == b"GET /v1/%7e?a=b? HTTP/1.1\r\nHost: upstream.example\r\n\r\n"
