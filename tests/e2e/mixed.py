"""Exchanges of every kind that a client may have, and what each client saw of its own: for what the ledger must say.

A client here is honest about what it saw: an exchange has ended for it when the answer was there whole by its framing.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import brotli  # type: ignore[import-untyped]
import zstandard
from attrs import define, field, frozen

from tests.e2e.live import PROVIDER_KEY, Cut, Head, Link
from tests.e2e.processes import PATIENCE

GROUP = 50
"""So many exchanges share an ``X-Client-Tag``: the stand-in keeps the last 64 requests of each."""

_CODINGS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    # A stream's frame does not say how long it is.
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}


@frozen
class Kind:
    """A way to ask, and to take the answer.

    :ivar body: of the request, but for a text of its own in each; None for GET.
    :ivar directives: what the stand-in is asked for.
    :ivar key: the name of the Flowstack key.
    :ivar leave: the client leaves after so many bytes of the answer's body; None stays. -1 leaves before the head.
    """

    name: str
    target: str
    body: dict[str, Any] | None = None
    directives: str = ""
    fields: tuple[str, ...] = ()
    key: str = "plain"
    leave: int | None = None


@define
class Asked:
    """One exchange, from the client's side.

    :ivar number: its own, in no other exchange.
    :ivar job: what several exchanges are about, or None.
    :ivar ended: whether the answer was seen to its end.
    :ivar body: decoded; None unless it has ended.
    """

    number: int
    kind: Kind
    job: str | None = None
    status: int | None = None
    error: str | None = None
    request_id: str | None = None
    ended: bool = False
    body: bytes | None = field(default=None, repr=False)

    @property
    def told(self) -> dict[str, Any] | None:
        """The usage that the answer told this client, or None."""
        if self.body is None:
            return None
        found = None
        for value in _values(self.body):
            inner = value.get("response")
            found = (inner if isinstance(inner, dict) else value).get("usage") or found
        return found

    @property
    def value(self) -> dict[str, Any]:
        """The answer, where it is one JSON object."""
        assert self.body is not None
        found: dict[str, Any] = json.loads(self.body)
        return found


def _values(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer."""
    if not body.startswith((b"data:", b"event:")):
        with suppress(ValueError):
            yield json.loads(body)
        return
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


CHAT = {"model": "gpt-4o-mini", "messages": []}
STREAM = CHAT | {"stream": True}
TELLING = STREAM | {"stream_options": {"include_usage": True}}
RESPONSE = {"model": "gpt-4.1", "input": ""}
PATH = "/v1/chat/completions"

KINDS = {
    kind.name: kind
    for kind in (
        Kind("chat", PATH, CHAT, "cached=2; reasoning=3"),
        Kind("chat gzip", PATH, CHAT, "", ("Accept-Encoding: gzip",)),
        Kind("chat br", PATH, CHAT, "coding=br"),
        Kind("chat in drips", PATH, CHAT, "drip=90; gap=0.002; chunked"),
        Kind("stream", PATH, TELLING, "chunks=12; gap=0.004; reasoning=5"),
        Kind("stream gzip", PATH, TELLING, "chunks=8; gap=0.003; coding=gzip"),
        Kind("stream zstd", PATH, TELLING, "chunks=8; coding=zstd"),
        Kind("stream silent", PATH, STREAM, "chunks=9; gap=0.003"),
        Kind("stream injected", PATH, STREAM, "chunks=9; gap=0.003; cached=1", key="injecting"),
        Kind("completion", "/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": ""}),
        Kind("response", "/v1/responses", RESPONSE, "reasoning=7"),
        Kind("response stream", "/v1/responses", RESPONSE | {"stream": True}, "chunks=6; gap=0.004"),
        Kind("embedding", "/v1/embeddings", {"model": "text-embedding-3-small", "input": ""}),
        Kind("models", "/v1/models"),
        Kind("cut", PATH, TELLING, "chunks=40; cut=900"),
        Kind("closed", PATH, CHAT, "close=200"),
        Kind("dropped", PATH, CHAT, "drop"),
        Kind("told no", PATH, CHAT, "status=429"),
        Kind("model refused", PATH, CHAT, key="limited"),
        Kind("path refused", "/v2/chat/completions", CHAT),
        Kind("path unknown upstream", "/v1/nothing", CHAT),
        Kind("left", PATH, TELLING, "chunks=500; gap=0.01", leave=700),
        Kind("left early", PATH, CHAT, "delay=5", leave=-1),
        Kind("background", "/v1/responses", RESPONSE | {"background": True}, "reasoning=4"),
    )
}
POLL = "poll"

KEYS = {"plain": "", "injecting": "inject_usage=on", "limited": "models=text-embedding-*"}
"""The keys' attributes, by the names that the kinds have for them."""


def _body(kind: Kind, number: int) -> bytes:
    """With a text of its own: the stand-in makes ids and usage from it."""
    if kind.body is None:
        return b""
    text = f"exchange {number}" + " word" * (number % 7)
    filled = dict(kind.body)
    for name in ("prompt", "input"):
        if name in filled:
            filled[name] = text
    if "messages" in filled:
        filled["messages"] = [{"role": "user", "content": text}]
    return json.dumps(filled).encode()


@define
class Client:
    """One connection at a time to a proxy that may go away and come back.

    :ivar keys: the Flowstack keys, by the names that the kinds have for them.
    :ivar done: every exchange that was begun.
    :ivar numbers: gives the next exchange its number.
    """

    port: int
    keys: dict[str, str]
    done: list[Asked]
    numbers: Iterator[int]
    _link: Link | None = None

    async def ask(self, kind: Kind, job: str | None = None) -> Asked:
        """Have one exchange; one that was cut off is not tried again."""
        link = await self._connected()
        asked = Asked(next(self.numbers), kind, job)
        self.done.append(asked)
        try:
            await link.send(self._request(asked))
            await self._take(link, asked)
        except (Cut, OSError):
            self.close()
        return asked

    async def poll(self, job: str, identity: str) -> Asked:
        """Ask what became of a background response."""
        return await self.ask(Kind(POLL, f"/v1/responses/{identity}"), job)

    async def _take(self, link: Link, asked: Asked) -> None:
        leave = asked.kind.leave
        if leave == -1:
            await asyncio.sleep(0.02)
            self.close()
            return
        head = await link.head()
        asked.status = head.status
        asked.request_id = head.get("flowstack-request-id")
        asked.error = head.get("flowstack-error")
        body = link.body(head)
        if leave is not None and head.status == 200:
            await body.read(leave)
            self.close()
            return
        whole = await body.rest()
        asked.body = _CODINGS[head.get("content-encoding")](whole)
        asked.ended = True
        if _closes(head):
            self.close()

    def _request(self, asked: Asked) -> bytes:
        kind, number = asked.kind, asked.number
        body = _body(kind, number)
        lines = [
            f"{'POST' if body else 'GET'} {kind.target} HTTP/1.1",
            "Host: flowstack.example",
            f"Flowstack-Auth: Bearer {self.keys[kind.key]}",
            f"Authorization: Bearer {PROVIDER_KEY}",
            f"X-Client-Tag: {tag_of(number)}",
            f"X-Exchange: {number}",
            f"Flowstack-Attribute-Exchange: {number}",
            *([f"Flowstack-Attribute-Job: {asked.job}"] if asked.job else []),
            *([f"Stand-In: {kind.directives}"] if kind.directives else []),
            *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
            *kind.fields,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def _connected(self) -> Link:
        """The connection, or a new one as soon as somebody listens."""
        async with asyncio.timeout(PATIENCE):
            while self._link is None:
                try:
                    link = await _dial(self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    self._link = link
        return self._link

    def close(self) -> None:
        """Let go of the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None


def _closes(head: Head) -> bool:
    return (head.get("connection") or "").lower() == "close"


async def _dial(port: int) -> Link:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(sock)


def tag_of(number: int) -> str:
    """The ``X-Client-Tag`` of an exchange."""
    return f"mixed-{number // GROUP}"


async def background(client: Client, again: int = 3) -> None:
    """Begin a background response, ask until it is finished, and some more times for its text."""
    created = await client.ask(KINDS["background"], job := uuid4().hex)
    if not created.ended or created.status != 200:
        return
    identity = created.value["id"]
    finished = 0
    for _ in range(40):
        asked = await client.poll(job, identity)
        if asked.ended and asked.status == 200 and asked.value["status"] == "completed":
            finished += 1
            if finished > again:
                return
    raise AssertionError("the background response does not come to its end")
