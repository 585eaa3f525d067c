"""``python -m tests.differential.exchanges FIRST COUNT``: drive odd exchanges in memory; print a digest of each.

What an exchange is like follows from its number; time, request ids and all else that could differ are made up. The
digest covers every byte that either side got, how its connections ended, every ledger row, and the limits' counters.
``--show`` prints that in place of the digest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from decimal import Decimal
from random import Random
from typing import Any

from twisted.internet.error import ConnectError

from flowstack.config import Settings, Upstream
from flowstack.config.settings import Fallback, Retry, Target
from flowstack.config.values import Pairs
from flowstack.keys import Budget
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from flowstack.server.connection import IDLE
from tests.harness import Transport
from tests.hostile import BAD_CHUNKS, CHUNKS, FRAMING, HEADS, HOSTS, MALFORMED, METHODS, POST, REQUEST_LINES, SHORT
from tests.relay.lab import NOW, Lab

TOGETHER = 25
"""Exchanges that one proxy sees, one after the other, before the next is made."""

ONE = (Upstream(base_url="http://upstream.example/v1", hosts=("flowstack.example",)),)
SEVERAL = (
    Upstream(
        base_url="http://eu.example/v1", hosts=("flowstack.example",), first_byte=10.0,
        targets=(Target("eu", "http://eu.example/v1"), Target("us", "http://us.example/v1", 3)),
        retry=Retry(("connect", "reset", "timeout", 429, 500, 503)),
        fallback=Fallback("azure", Pairs([("gpt-4o", "my-own")]), context_length=True),
    ),
    Upstream(name="azure", base_url="http://azure.example/openai/v1", default=False, api_key_header="api-key"),
)  # fmt: skip
"""What stands behind every other proxy: more than one attempt may be made there."""

MOST_ANSWERS = 4

KEYS: tuple[dict[str, Any], ...] = (
    {},
    {"rpm": 8, "tpm": 20_000, "max_parallel": 2},
    {"rpm": 1000, "tpm": 10**6, "max_parallel": 50, "budget": Budget(Decimal("0.02"), "month")},
    {"models": ("gpt-4o*", "text-*"), "tpm": 5000},
    {"endpoints": ("/chat/*", "GET:/models*")},
    {"disabled": True},
    {"expires_at": NOW + 20},
    {"inject_usage": True},
)
TOKENS = [b"a-key-of-others-number-%d-that-is-long-enough" % number for number in range(len(KEYS))]

MODELS = (
    "gpt-4o-mini",
    "gpt-4o-mini",
    "gpt-4o-mini",
    "gpt-4o",
    "gpt-4.1",
    "o3",
    "text-embedding-3-small",
    "made-up",
    "gpt-4o-mini\u00e9",
    "",
)
TARGETS = (
    *("POST /v1/chat/completions",) * 12, *("POST /v1/responses",) * 5, "POST /v1/embeddings",
    "POST /v1/completions", "POST /v1/moderations", "GET /v1/models",
    "POST /v1/images/generations", "POST /v1/messages", "GET /v1/responses/resp_1", "DELETE /v1/responses/resp_1",
    "POST /v1/batches", "GET /v1/batches/batch_1", "POST /v1/audio/speech", "HEAD /v1/models", "OPTIONS /v1/models",
    "GET /flowstack/key", "POST /v1/files", "GET /v2/models", "PUT /v1/chat/completions?a=b",
    "POST /v1/engines/gpt-4o/completions", "POST /v1/chat/completions?model=gpt-4o", "POST /v1/audio/transcriptions",
)  # fmt: skip
WORDS = ("What is the capital of France", "\u00fc\u00f1\u4e2d\U0001f600", "x" * 700, 'a "quoted" \\ text', "", "\n\t")
FIELDS = (
    b"Accept: application/json", b"Accept-Encoding: gzip, deflate, br", b"User-Agent: OpenAI/Python 2.0",
    b"Authorization: Bearer sk-proj-of-the-client", b"OpenAI-Organization: org-1", b"X-Stainless-Lang: python",
    b"Flowstack-Attribute-Team: red", b"Flowstack-Attribute-Team: blue", b"Connection: keep-alive",
    b"Connection: close", b"Connection: X-Drop", b"X-Drop: 1", b"Idempotency-Key: 1", b"Expect: 100-continue",
    b"X-Forwarded-For: 203.0.113.9", b"Cookie: a=b", b"X-Empty:", b"x-lower: \xe4", b"TE: trailers",
    b"Upgrade: websocket", b"X-HTTP-Method-Override: DELETE", b"Origin: https://app.example", b"Via: 1.1 a",
)  # fmt: skip
STATUSES = (
    *("200 OK",) * 20, "201 Created", "400 Bad Request", "401 Unauthorized", "404 Not Found", "429 Too Many Requests",
    "500 Oops", "503 Service Unavailable", "204 No Content", "304 Not Modified", "302 Found",
)  # fmt: skip
HOSTILE_REQUESTS = [
    *(raw for raw in HEADS.values() if len(raw) < 5000),
    *(line + b"\r\nHost: a\r\n\r\n" for line in (*REQUEST_LINES, *(method + b" HTTP/1.1" for method in METHODS))),
    *(POST.replace(b"Host: flowstack.example\r\n", host) + b"\r\n" for host in HOSTS.values()),
    *(POST + fields + b"\r\n0\r\n\r\n" for fields in FRAMING.values()),
    *(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body for body in CHUNKS.values() if len(body) < 5000),
]
HOSTILE_ANSWERS = [raw for table in (MALFORMED, SHORT, BAD_CHUNKS) for raw in table.values() if len(raw) < 5000]


class Odd:
    """What one exchange is like."""

    def __init__(self, number: int) -> None:
        self._random = Random(number)
        self.chance = self._random.random

    def one(self, choices: Any) -> Any:
        return self._random.choice(choices)

    def upto(self, most: int) -> int:
        return self._random.randrange(most + 1)

    def spoiled(self, data: bytes) -> bytes:
        """The same with something in it that should not be there, or without something that should."""
        if not data:
            return data
        at = self.upto(len(data) - 1)
        match self.upto(3):
            case 0:
                return data[:at] + bytes([self.upto(255)]) + data[at + 1 :]
            case 1:
                return data[:at] + data[at + 1 + self.upto(3) :]
            case 2:
                return data[:at] + self._random.randbytes(self.upto(3)) + data[at:]
        end = min(len(data), at + 1 + self.upto(40))
        return data[:end] + data[at:end] + data[end:]

    def pieces(self, data: bytes) -> list[bytes]:
        """The same in as many reads as it happens to come in."""
        cuts = sorted({self.upto(len(data)) for _ in range(self.one((0, 0, 0, 1, 2, 5)))})
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]

    def chunked(self, data: bytes) -> bytes:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self.pieces(data))
        return chunks + self.one((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"))

    def body(self) -> bytes:
        """What a client may ask for."""
        asked: dict[str, Any] = {"model": self.one(MODELS)}
        if self.chance() < 0.7:
            asked["messages"] = [
                {"role": self.one(("user", "system")), "content": self.one(WORDS) * self.upto(4)}
                for _ in range(1 + self.upto(3))
            ]
        for name, values in (
            ("stream", (True, True, False, None, "yes")), ("max_tokens", (1, 64, 4096, -1, "8", 1.5, 10**20)),
            ("max_completion_tokens", (16, 300)), ("n", (1, 2, 8)), ("input", ("hello", ["a", "b"], [1, 2, 3], [])),
            ("max_output_tokens", (16, 2000)), ("service_tier", ("auto", "flex", "priority", 1)),
            ("stream_options", ({}, {"include_usage": True}, {"include_usage": False}, None)),
            ("tools", ([], [{"type": "web_search"}], [{"type": "image_generation"}], [{"type": "function"}])),
            ("temperature", (0, 0.7)), ("background", (True, False)), ("store", (True,)), ("prompt", ("once",)),
            ("metadata", ({"a": "b"},)), ("size", ("1024x1024",)), ("quality", ("high", "low")),
        ):  # fmt: skip
            if self.chance() < 0.25:
                asked[name] = self.one(values)
        items = list(asked.items())
        self._random.shuffle(items)
        return json.dumps(dict(items), ensure_ascii=self.chance() < 0.5).encode("utf-8", "surrogatepass")

    def form(self) -> bytes:
        parts = [("model", "whisper-1"), ("response_format", self.one(("json", "text"))), ("stream", "true")]
        lines = [f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts]
        self._random.shuffle(lines)
        return ("".join(lines) + "--edge--\r\n").encode()

    def request(self) -> bytes:
        if self.chance() < 0.08:
            raw: bytes = self.one(HOSTILE_REQUESTS)
            return raw.replace(b"Flowstack-Auth: Bearer KEY", b"Flowstack-Auth: Bearer " + self.one(TOKENS))
        target = self.one(TARGETS)
        fields = [b"Host: flowstack.example"]
        key = self.one((*TOKENS, *TOKENS[:3] * 5))
        match self.upto(29):
            case 0:
                pass
            case 1:
                fields.append(b"Authorization: Bearer " + key)
            case 2:
                fields.append(b"Flowstack-Auth: Bearer fsk-unknown")
            case _:
                fields.append(b"Flowstack-Auth: Bearer " + key)
        fields += self._random.sample(FIELDS, self.one((0, 0, 1, 2, 4)))
        body, kind = b"", b""
        if target.startswith(("POST", "PUT")):
            form = "transcriptions" in target or "files" in target
            body, kind = (
                (self.form(), b"multipart/form-data; boundary=edge") if form else (self.body(), b"application/json")
            )
        if body and self.chance() < 0.1:
            body = self.spoiled(body)
        if body and self.chance() < 0.05:
            body = gzip.compress(body, mtime=0)
            fields.append(b"Content-Encoding: gzip")
        if kind and self.chance() < 0.95:
            fields.append(b"Content-Type: " + kind)
        if body or self.chance() < 0.1:
            if self.chance() < 0.2:
                fields.append(b"Transfer-Encoding: chunked")
                body = self.chunked(body)
            else:
                fields.append(b"Content-Length: %d" % len(body))
        if self.chance() < 0.3:
            self._random.shuffle(fields)
        version = self.one(("HTTP/1.1",) * 12 + ("HTTP/1.0",))
        head = b"\r\n".join((f"{target} {version}".encode(), *fields, b"", b""))
        if self.chance() < 0.05:
            head = self.spoiled(head)
        return head + body

    def usage(self) -> dict[str, Any] | None:
        given, taken = self.upto(900), self.upto(900)
        chat = {"prompt_tokens": given, "completion_tokens": taken, "total_tokens": given + taken}
        parts = {
            "prompt_tokens_details": {"cached_tokens": given // 2, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": taken // 3, "audio_tokens": self.upto(1)},
        }
        response = {"input_tokens": given, "output_tokens": taken, "total_tokens": given + taken}
        cached = {"input_tokens_details": {"cached_tokens": given // 3}, "cache_read_input_tokens": 5}
        usage: dict[str, Any] = self.one((
            *(chat, chat | parts, chat | parts, response, response | cached) * 4, {"prompt_tokens": "many"}, {},
            {"prompt_tokens": given, "total_tokens": given}, {"prompt_tokens": 10**19}, {"completion_tokens": 1.5},
        ))  # fmt: skip
        return usage if self.chance() < 0.9 else None

    def said(self) -> bytes:
        """What an upstream may say in one piece."""
        answer: dict[str, Any] = {
            "id": self.one(("chatcmpl-1", "resp_1", "batch_1", 5)), "object": self.one(("chat.completion", "response")),
            "model": self.one(MODELS), "choices": [{"message": {"content": self.one(WORDS)}}],
            "status": self.one(("completed", "queued", "in_progress", "failed")),
        }  # fmt: skip
        if self.chance() < 0.85:
            answer["usage"] = self.usage()
        if self.chance() < 0.2:
            answer["service_tier"] = self.one(("default", "flex", None))
        return json.dumps(answer).encode()

    def streamed(self) -> bytes:
        """What an upstream may say in events."""
        ends = self.one((b"\n", b"\n", b"\n", b"\r\n", b"\r"))
        events: list[bytes] = []
        for _ in range(self.upto(6)):
            chunk = {
                "id": "c",
                "model": self.one(MODELS),
                "choices": [{"index": 0, "delta": {"content": self.one(WORDS)}}],
            }
            events.append(b"data: " + json.dumps(chunk).encode())
        if self.chance() < 0.8:
            chunk = {"id": "c", "model": "gpt-4o-mini", "choices": [], "usage": self.usage()}
            name = self.one(("response.completed", "response.failed", "message_delta", "ping"))
            whole = {"type": name, "response": {"id": "resp_1", "model": "gpt-4o", "usage": self.usage()}}
            events.append(self.one((
                b"data: " + json.dumps(chunk).encode(),
                b"event: " + name.encode() + ends + b"data: " + json.dumps(whole).encode(),
                b": note", b"data:", b"id: 4" + ends + b"data: {", b'data: {"usage":',
            )))  # fmt: skip
        if self.chance() < 0.8:
            events.append(b"data: [DONE]")
        return b"".join(event + 2 * ends for event in events)

    def answer(self) -> bytes:
        if self.chance() < 0.08:
            raw: bytes = self.one(HOSTILE_ANSWERS)
            return raw
        streams = self.chance() < 0.4
        body = self.streamed() if streams else self.said()
        if self.chance() < 0.08:
            body = self.spoiled(body)
        kind = self.one((b"text/event-stream", b"text/event-stream; charset=utf-8")) if streams else b"application/json"
        status = self.one(STATUSES).encode()
        fields = [b"Date: Thu, 01 Jan 1970 00:00:00 GMT", b"x-request-id: req_%d" % self.upto(9)]
        if self.chance() < 0.9:
            fields.append(b"Content-Type: " + kind)
        if self.chance() < 0.1:
            body = gzip.compress(body, mtime=0)
            fields.append(b"Content-Encoding: gzip")
        for field in (
            b"Set-Cookie: a=b", b"Connection: close", b"Location: http://upstream.example/v1/x", b"Flowstack-Error: x",
            b"openai-processing-ms: 5", b"Set-Cookie: c=d", b"Keep-Alive: timeout=5", b"Retry-After: 1",
        ):  # fmt: skip
            if self.chance() < 0.12:
                fields.append(field)
        match self.upto(5):
            case 0:
                fields.append(b"Connection: close")  # which ends it
            case 1 | 2:
                fields.append(b"Transfer-Encoding: chunked")
                body = self.chunked(body)
            case _:
                fields.append(b"Content-Length: %d" % len(body))
        if status[:3] in (b"204", b"304"):
            body = b""
        version = self.one((b"HTTP/1.1",) * 12 + (b"HTTP/1.0",))
        head = b"\r\n".join((version + b" " + status, *fields, b"", b""))
        if self.chance() < 0.04:
            head = self.spoiled(head)
        if self.chance() < 0.05:
            head = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + head
        return head + body + (b"HTTP/1.1 200 OK\r\n" if self.chance() < 0.01 else b"")


def _lab(several: bool) -> Lab:
    def real(lab: Lab) -> dict[str, Any]:
        return {"limiter": SharedLimiter(open_counters(None, 2), Settings(), lab.wall, lab.turns.clock.seconds)}

    lab = Lab(
        upstreams=SEVERAL if several else ONE, real=real,
        provider_keys={"azure": (b"azure-secret",)} if several else {},
        max_request_bytes=20_000, server_timing=True, cors_origins=("https://app.example",),
    )  # fmt: skip
    for number, (token, options) in enumerate(zip(TOKENS, KEYS, strict=True)):
        lab.keys.add(token, id=f"k{number}", owner="alice@example.com", **options)
    return lab


class Witness:
    """Writes down all that can be seen of a proxy."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._rows = self._told = 0
        self._ends: dict[Transport, tuple[Any, ...]] = {}
        self.clients: list[Transport] = []

    def news(self) -> list[Any]:
        """What happened since it was asked last."""
        lab, news = self._lab, list[Any]()
        upstreams = [(label, provider.peers) for label, provider in lab.providers.items()]
        for side, ends in (("client", self.clients), *upstreams):
            for place, end in enumerate(ends):
                got, state = end.take(), (end.peer_saw, end.reading, tuple(end.calls))
                if got or self._ends.get(end) != state:
                    self._ends[end] = state
                    news.append((side, place, got, state))
        news += [sorted(row.items()) for row in lab.rows[self._rows :]]
        self._rows = len(lab.rows)
        news += lab.unauthenticated[self._told :]
        self._told = len(lab.unauthenticated)
        return news

    def standings(self) -> list[Any]:
        """What counts against the keys' limits."""
        limited = [key for key in self._lab.keys.keys.values() if key.rpm or key.tpm or key.budget]
        return [self._lab.relay._services.limiter.standings(key) for key in limited]


def _drive(lab: Lab, witness: Witness, odd: Odd) -> None:
    """One exchange, or as much of it as its two ends let happen."""
    several = len(lab.providers) > 1
    for provider in lab.providers.values():
        provider.endpoint.at_once = not several or odd.chance() > 0.1
    free = [one for one in witness.clients if not one.closed and one.peer_reads and one.protocol.state is IDLE]
    if free and odd.chance() < 0.8:
        client = free[-1]
    else:
        client = lab.client()
        witness.clients.append(client)
    client.peer_reads = odd.chance() > 0.03
    request = odd.request()
    leaves = odd.one((None,) * 8 + ("early", "late"))
    for piece in odd.pieces(request):
        client.send(piece)
        if odd.chance() < 0.02:
            _wait(lab, odd.one((1, 5, 40)))
    lab.turns.settle()
    if leaves == "early":
        odd.one((client.hang_up, client.fall_over))()
    if odd.chance() < 0.1:
        client.send(odd.request())  # before the answer
    heard: dict[Transport, int] = {}
    for number in range(MOST_ANSWERS if several else 1):
        _refuse(lab)
        upstreams = [one for provider in lab.providers.values() for one in provider.peers if not one.closed]
        asked = [one for one in upstreams if len(one.got) > heard.get(one, 0)]
        if not asked and (number or not upstreams):
            break
        upstream = (asked or upstreams)[-1]
        heard[upstream] = len(upstream.got)
        answer = odd.answer()
        cut = odd.upto(len(answer)) if odd.chance() < 0.1 else len(answer)
        for piece in odd.pieces(answer[:cut]):
            upstream.send(piece)
            if odd.chance() < 0.02:
                _wait(lab, odd.one((1, 20, 400)))
            if leaves == "late" and odd.chance() < 0.5:
                odd.one((client.hang_up, client.fall_over))()
        if cut < len(answer) or b"Content-Length" not in answer or odd.chance() < 0.05:
            odd.one((upstream.hang_up, upstream.fall_over))()
        if several and odd.chance() < 0.5:
            _wait(lab, 5)
    lab.turns.settle()
    if odd.chance() < 0.05:
        _wait(lab, odd.one((1, 30, 90)))
    if not client.peer_reads and odd.chance() < 0.5:
        client.read()


def _refuse(lab: Lab) -> None:
    """Have no connection made where none is to be, nor to the place that is asked next."""
    waiting: list[Any] = [True]
    while waiting:
        endpoints = [provider.endpoint for provider in lab.providers.values() if not provider.endpoint.at_once]
        waiting = [one for end in endpoints for one in end.attempts if not one.cancelled and not one.made.called]
        for attempt in waiting:
            attempt.refuse(ConnectError())
        lab.turns.settle()


def _wait(lab: Lab, seconds: float) -> None:
    """Let time pass, in two steps: what expires in the first may begin something that expires in the second."""
    for _ in range(2):
        lab.turns.clock.advance(seconds / 2)
        lab.turns.settle()


def drive(first: int, count: int) -> list[str]:
    """What was seen of each exchange, in words. ``first`` is a multiple of :data:`TOGETHER`."""
    seen: list[str] = []
    for start in range(first, first + count, TOGETHER):
        lab = _lab(start // TOGETHER % 2 == 1)
        witness = Witness(lab)
        for number in range(start, start + TOGETHER):
            try:
                _drive(lab, witness, Odd(number))
            except Exception as error:  # is to be the same, too
                witness.clients.clear()
                seen.append(f"{type(error).__name__} {witness.news()!r}")
            else:
                seen.append(repr(witness.news()))
        for client in witness.clients:
            client.hang_up()
        _wait(lab, 30)
        seen[-1] += repr([witness.news(), witness.standings()])
    return seen


def main() -> None:
    """See the module."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    for text in drive(first, count):
        print(text if "--show" in sys.argv else hashlib.sha256(text.encode()).hexdigest()[:16])


if __name__ == "__main__":
    main()
