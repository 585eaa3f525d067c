"""Every error of the contract that a client can meet, and how it is brought about. Each request carries keys."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from flowstack.keys import make_token
from tests.e2e.processes import PATIENCE, Proxy, eventually
from tests.e2e.raw import Answer, Client, request
from tests.e2e.raw_upstream import Seen, Upstream, reply, upstream

CHAT = b"POST /v1/chat/completions HTTP/1.1"


@frozen
class Scene:
    """A proxy with short times and small limits, before upstreams that make trouble.

    :ivar openai_key: the provider's key that goes with every request.
    :ivar foreign: a token of another scheme whose hash is in the keystore.
    :ivar unknown: a well-formed Flowstack key that is not in the keystore.
    """

    proxy: Proxy
    upstream: Upstream
    openai_key: str
    disabled: str
    expired: str
    foreign: str
    unknown: str

    @property
    def secrets(self) -> dict[str, str]:
        """Every credential of the scene, whole, by what it is."""
        return {
            "the provider's key": self.openai_key,
            "the Flowstack key": self.proxy.key,
            "the disabled key": self.disabled,
            "the expired key": self.expired,
            "the foreign key": self.foreign,
            "the unknown key": self.unknown,
        }

    @property
    def bearer(self) -> bytes:
        """The provider's key where it belongs."""
        return b"Authorization: Bearer " + self.openai_key.encode()

    def request(
        self, line: bytes = CHAT, *fields: bytes, key: str | None = None, host: bytes | None = None, body: bytes = b""
    ) -> bytes:
        """A request with both keys.

        :param key: another Flowstack key than the proxy's first.
        :param host: selects an upstream.
        """
        raw = request(key or self.proxy.key, line, self.bearer, *fields, body=body)
        return raw if host is None else raw.replace(b"flowstack.example", host, 1)

    def ask(self, raw: bytes, method: str = "POST") -> Answer:
        """Send on a new connection, and read the answer."""
        with Client(self.proxy.port) as client:
            client.offer(raw)
            return client.answer(method)


@contextmanager
def scene(folder: Path, openai_key: str, **more: dict[str, object]) -> Iterator[Scene]:
    """A :class:`Scene` for as long as the block lasts; the caller ends the proxy.

    :param more: tables of the configuration, whose settings come to those that every scene has.
    """
    with upstream() as behind, closed_port() as nowhere, stuck_port() as stuck:
        settings: dict[str, dict[str, object]] = {
            "server": {"max_request_bytes": 1000},
            "timeouts": {
                "connect": 0.5,
                "response_head": 1.5,
                "stream_idle": 1.5,
                "request_head": 1.5,
                "request_idle": 1.5,
                "queue": 0.3,
            },
            "log": {"requests": str(folder / "requests.jsonl")},
            "upstreams": {
                "openai": {"default": True},
                "nowhere": _named(nowhere, "nowhere"),
                "stuck": _named(stuck, "stuck"),
                "narrow": _named(behind.port, "narrow") | {"max_connections": 1},
            },
        }
        for name, table in more.items():
            settings[name] = settings.get(name, {}) | table
        proxy = Proxy(folder, f"http://127.0.0.1:{behind.port}/v1", settings=settings)
        try:
            found = Scene(
                proxy=proxy,
                upstream=behind,
                openai_key=openai_key,
                disabled=proxy.keystore.add("disabled"),
                expired=proxy.keystore.add("expires=2020-01-01"),
                foreign="other-scheme_" + openai_key[::-1],
                unknown=make_token(lambda size: bytes(range(7, 7 + size)))[1],
            )
            proxy.keystore.put("foreignforei", found.foreign)
            assert proxy.reload()["keys"] == 4
            yield found
        finally:
            proxy.kill()


def _named(port: int, name: str) -> dict[str, object]:
    return {"base_url": f"http://127.0.0.1:{port}/v1", "hosts": [f"{name}.example"], "default": False}


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def stuck_port() -> Iterator[int]:
    """A port that neither takes nor refuses connections: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(10):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.2)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            raise AssertionError("the backlog does not fill")
        yield listener.getsockname()[1]


def hold(seen: Seen) -> None:
    """Say nothing until the proxy gives up."""
    seen.read_body()
    seen.link.to_the_end()
    seen.link.close()


def overload(scene: Scene) -> Answer:
    """Take the only connection that there may be, then ask for another."""
    scene.upstream.forget()
    scene.upstream.script = hold
    with Client(scene.proxy.port) as holder:
        holder.send(scene.request(host=b"narrow.example"))
        eventually(lambda: scene.upstream.requests, "the first request goes upstream")
        return scene.ask(scene.request(host=b"narrow.example"))


def answered_by(raw: bytes, *, close: bool = False) -> Callable[[Scene], Answer]:
    """Let the upstream answer so."""

    def cause(scene: Scene) -> Answer:
        scene.upstream.script = reply(raw, close=close)
        return scene.ask(scene.request())

    return cause


def silence(scene: Scene) -> Answer:
    """Let the upstream say nothing."""
    scene.upstream.script = hold
    return scene.ask(scene.request())


def stalled(head: bytes) -> Callable[[Scene], Answer]:
    """Send a part of a request, and no more."""
    return lambda scene: scene.ask(scene.request(*head.split(b"\r\n"))[: None if b"Content-Length" in head else -2])


def sent(line: bytes = CHAT, *fields: bytes, key: str | None = None, body: bytes = b"") -> Callable[[Scene], Answer]:
    """Send a request; in a field, ``{openai_key}`` and the like stand for the scene's secrets.

    :param key: the name of the secret that goes as the Flowstack key.
    """

    def cause(scene: Scene) -> Answer:
        def filled(text: bytes) -> bytes:
            for name in ("openai_key", "disabled", "expired", "foreign", "unknown"):
                text = text.replace(b"{%b}" % name.encode(), getattr(scene, name).encode())
            return text.replace(b"{key}", scene.proxy.key.encode())

        token = filled(key.encode()).decode() if key is not None else None
        return scene.ask(scene.request(filled(line), *map(filled, fields), key=token, body=filled(body)))

    return cause


def bare(*fields: bytes) -> Callable[[Scene], Answer]:
    """Send a request with the provider's key alone, and these fields."""

    def cause(scene: Scene) -> Answer:
        own = [field.replace(b"{key}", scene.proxy.key.encode()) for field in fields]
        return scene.ask(b"\r\n".join([CHAT, b"Host: flowstack.example", scene.bearer, *own, b"", b""]))

    return cause


OK_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

TROUBLES: dict[str, tuple[int, str, Callable[[Scene], Answer]]] = {
    "two Flowstack keys": (400, "malformed_request", sent(CHAT, b"Flowstack-Auth: Bearer {foreign}")),
    "two provider keys": (400, "malformed_request", sent(CHAT, b"authorization: Bearer {openai_key}")),
    "17 attributes": (
        400,
        "malformed_request",
        sent(CHAT, *[b"Flowstack-Attribute-%d: {openai_key}" % number for number in range(17)]),
    ),
    "attributes of 5 KiB": (400, "malformed_request", sent(CHAT, b"Flowstack-Attribute-A: {openai_key}" + b"a" * 5000)),
    "an attribute without a name": (400, "malformed_request", sent(CHAT, b"Flowstack-Attribute-: {openai_key}")),
    "an attribute twice": (
        400,
        "malformed_request",
        sent(CHAT, b"Flowstack-Attribute-A: {openai_key}", b"flowstack-attribute-a: {openai_key}"),
    ),
    "Connection: Authorization": (400, "malformed_request", sent(CHAT, b"Connection: Authorization, {openai_key}")),
    "a dot segment": (400, "malformed_request", sent(b"POST /v1/../{openai_key} HTTP/1.1")),
    "a space before a colon": (400, "malformed_request", sent(CHAT, b"X-Key : {openai_key} {key}")),
    "a key for a name": (400, "malformed_request", sent(CHAT, b"{key} {openai_key}: x")),
    "a key for a method": (400, "malformed_request", sent(b"{openai_key}@ /v1/x HTTP/1.1")),
    "a key for a version": (400, "malformed_request", sent(b"POST /v1/x {openai_key}")),
    "a key for a host": (400, "malformed_request", sent(b"POST http://{openai_key}@evil.example/v1/x HTTP/1.1")),
    "a key for a second Host": (400, "malformed_request", sent(CHAT, b"Host: {key}")),
    "a key for a length": (400, "malformed_request", sent(CHAT, b"Content-Length: {openai_key}")),
    "a key for a coding": (400, "malformed_request", sent(CHAT, b"Transfer-Encoding: {openai_key}")),
    "a key for a chunk size": (
        400,
        "malformed_request",
        sent(CHAT, b"Transfer-Encoding: chunked", body=b"{openai_key}\r\n{key}\r\n"),
    ),
    "a key before a NUL": (400, "malformed_request", sent(CHAT, b"X-Key: {openai_key}{key}\x00")),
    "a key in an oversize head": (400, "malformed_request", sent(CHAT, b"X-Key: " + b"{openai_key}{key} " * 1000)),
    "a head that stalls": (400, "malformed_request", stalled(CHAT)),
    "a body that stalls": (400, "malformed_request", stalled(CHAT + b"\r\nContent-Length: 10")),
    "no key": (401, "missing_flowstack_key", bare()),
    "an empty key": (401, "invalid_flowstack_key", bare(b"Flowstack-Auth:")),
    "an unknown key": (401, "invalid_flowstack_key", sent(key="{unknown}")),
    "a mistyped key": (401, "invalid_flowstack_key", sent(key="{key}x")),
    "a key cut short": (401, "invalid_flowstack_key", lambda scene: scene.ask(scene.request(key=scene.proxy.key[:-9]))),
    "another scheme": (401, "invalid_flowstack_key", bare(b"Flowstack-Auth: Basic {key}")),
    "no scheme": (401, "invalid_flowstack_key", bare(b"Flowstack-Auth: {key}")),
    "a key in quotes": (401, "invalid_flowstack_key", bare(b'Flowstack-Auth: Bearer "{key}"')),
    "a very long key": (401, "invalid_flowstack_key", bare(b"Flowstack-Auth: Bearer " + b"{key}" * 10)),
    "an expired key": (401, "flowstack_key_expired", sent(key="{expired}")),
    "a disabled key": (401, "flowstack_key_disabled", sent(key="{disabled}")),
    "the provider's key as Flowstack's": (401, "misplaced_key", sent(key="{openai_key}")),
    "a Flowstack key in Authorization": (401, "misplaced_key", lambda scene: misplaced(scene)),
    "a Flowstack key in api-key": (401, "misplaced_key", sent(CHAT, b"api-key: {key}")),
    "a Flowstack key in x-api-key": (401, "misplaced_key", sent(CHAT, b"X-API-Key: {key}")),
    "an unknown Flowstack key in x-api-key": (401, "misplaced_key", sent(CHAT, b"X-API-Key: {unknown}")),
    "a foreign key in x-api-key": (401, "misplaced_key", sent(CHAT, b"X-API-Key: {foreign}")),
    "a Flowstack key in the path": (401, "misplaced_key", sent(b"GET /v1/{key}/x HTTP/1.1")),
    "a Flowstack key in the query": (401, "misplaced_key", sent(b"GET /v1/x?key={key} HTTP/1.1")),
    "another path": (404, "unknown_path", sent(b"POST /v2/{openai_key}?key={openai_key} HTTP/1.1")),
    "another method": (405, "method_not_allowed", sent(b"TRACE /v1/x HTTP/1.1")),
    "a method that nobody knows": (405, "method_not_allowed", sent(b"{openai_key} /v1/x HTTP/1.1")),
    "too large by its length": (413, "request_too_large", sent(CHAT, b"Content-Length: 1001")),
    "too large and all there": (
        413,
        "request_too_large",
        sent(CHAT, b"Content-Length: 1001", body=b"x" * 1001),
    ),
    "too large by its chunks": (
        413,
        "request_too_large",
        sent(CHAT, b"Transfer-Encoding: chunked", body=b"7d0\r\n{openai_key}" + b"x" * 1500),
    ),
    "half a WebSocket": (400, "malformed_request", sent(b"GET /v1/realtime HTTP/1.1", b"Upgrade: websocket")),
    "nobody there": (502, "upstream_unreachable", lambda scene: scene.ask(scene.request(host=b"nowhere.example"))),
    "an upstream that hangs up": (502, "upstream_closed", answered_by(b"", close=True)),
    "half a head": (502, "upstream_closed", answered_by(b"HTTP/1.1 200 OK\r\n", close=True)),
    "no HTTP": (502, "upstream_malformed", answered_by(b"220 smtp.example ESMTP\r\n\r\n")),
    "an unasked 101": (502, "upstream_malformed", answered_by(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n")),
    "no connection comes free": (503, "overloaded", overload),
    "no connection in time": (504, "upstream_timeout", lambda scene: scene.ask(scene.request(host=b"stuck.example"))),
    "no answer in time": (504, "upstream_timeout", silence),
}


def misplaced(scene: Scene) -> Answer:
    """Send the Flowstack key in the provider's place too."""
    return scene.ask(scene.request().replace(scene.openai_key.encode(), scene.proxy.key.encode()))


def drain(scene: Scene) -> tuple[Answer, Answer]:
    """Ask an idle connection for more while another's answer is waited for, after SIGTERM; both answers."""
    scene.upstream.forget()
    asked = threading.Event()

    def slow(seen: Seen) -> None:
        seen.read_body()
        asked.wait(PATIENCE)
        seen.link.offer(OK_JSON)

    with Client(scene.proxy.port) as idle, Client(scene.proxy.port) as busy:
        assert idle.ask(scene.request()).status == 200
        scene.upstream.script = slow
        busy.send(scene.request())
        eventually(lambda: len(scene.upstream.requests) == 2, "the slow request goes upstream")
        scene.proxy.signal(signal.SIGTERM)
        eventually(lambda: "draining" in scene.proxy.log_text(), "the proxy drains")
        refused = idle.ask(scene.request())
        asked.set()
        return refused, busy.answer()
