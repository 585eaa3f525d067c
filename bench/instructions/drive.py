"""What is counted: a usual request, an SSE chunk, through the whole proxy in memory, and some plain Python beside it.

The channel, the relay, the pool, the limiter, the journal and the metrics are the real ones; only sockets are not.

    valgrind --tool=callgrind --instr-atstart=no ... python -m bench.instructions.drive

does each of KINDS some times, has callgrind dump what it has counted, does it more often, and has it dump again.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from twisted.internet.defer import succeed

from flowstack.config import Ledger as LedgerSettings
from flowstack.config import Log, Settings, Upstream
from flowstack.config.settings import Retry
from flowstack.keys import Budget
from flowstack.ledger.access import AccessLog
from flowstack.ledger.journal import Journal
from flowstack.ledger.ledger import RowLedger
from flowstack.limits.restore import open_counters
from flowstack.limits.shared import SharedLimiter
from flowstack.metrics.recorder import Recorder
from flowstack.metrics.segment import Segment
from tests.relay.lab import KEY, Lab, request

PLAIN = "plain Python"
"""Nothing of Flowstack's: what another build of Python makes of such code."""

KINDS = ("request", "request with limits", "request with retries", "chunk", "chunk with limits", PLAIN)

WARM_UP, FEW, MANY = 50, 20, 220
"""How often a thing is done before each of its two dumps, and before them: what stands around the work is the same in
both of them."""

_MESSAGES = (
    b'"messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"'
    + b"What is the capital of France, and why is it so? " * 6
    + b'"}],"temperature":0.7,"max_tokens":256}'
)
_FIELDS = (
    b"Content-Type: application/json",
    b"Authorization: Bearer sk-proj-abcdefghijklmnop",
    b"User-Agent: OpenAI/Python 1.50.0",
    b"Accept: application/json",
    b"Accept-Encoding: gzip, deflate",
    b"x-stainless-lang: python",
)
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + b"x" * 300 + b'"},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":80,"completion_tokens":60,"total_tokens":140,"prompt_tokens_details":{"cached_tokens":0,'
    b'"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default",'
    b'"system_fingerprint":"fp_1"}'
)
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,'
    b'"delta":{"content":"hello there"}}]}\n\n'
)


RETRIES = Upstream(base_url="http://upstream.example/v1", retry=Retry(on=("connect", "reset", 429, 503)))
"""What a failed request would be sent again to. Nothing fails here."""


def _lab(limits: bool, retries: bool, folder: Path) -> Lab:
    """The proxy with all that counts and writes."""

    def real(lab: Lab) -> dict[str, Any]:
        clock = lab.turns.clock
        journal = Journal(folder, 0, LedgerSettings(), clock, lab.wall, lambda function: succeed(function()))
        ledger = RowLedger(journal, AccessLog(Log(requests="none"), clock), 10, clock)
        ledger.start()
        limiter = SharedLimiter(open_counters(None, 2), Settings(), lab.wall, clock.seconds)
        observers = (ledger.record, Recorder(Segment.create()).record)
        return {"limiter": limiter, "ledger": ledger, "observers": observers}

    lab = Lab(real=real, upstreams=(RETRIES,)) if retries else Lab(real=real)
    lab.keys.keys.clear()
    budget = Budget(Decimal(1_000_000), "month")
    limited = {"models": ("gpt-4o*",), "rpm": 10**6, "tpm": 10**9, "max_parallel": 50, "budget": budget}
    lab.key = lab.keys.add(KEY, owner="alice@example.com", **(limited if limits else {}))
    return lab


def _requests(lab: Lab) -> Callable[[int], None]:
    body = b'{"model":"gpt-4o-mini",' + _MESSAGES
    asked = request(b"POST /v1/chat/completions HTTP/1.1", *_FIELDS, b"Content-Length: %d" % len(body), body=body)
    given = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        b"x-request-id: req_1\r\nopenai-processing-ms: 10\r\nContent-Length: %d\r\n\r\n" % len(_ANSWER)
    ) + _ANSWER
    client = lab.client()

    def do(count: int) -> None:
        for _ in range(count):
            client.send(asked)
            if not lab.upstreams:
                lab.turns.settle()
            upstream = lab.upstreams[-1]
            upstream.take()
            upstream.send(given)
            answer = client.take()
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"The request was not answered with 200, but with {answer[:500]!r}.")

    return do


def _chunks(lab: Lab) -> Callable[[int], None]:
    body = b'{"model":"gpt-4o-mini","stream":true,' + _MESSAGES
    client = lab.client()
    client.send(request(b"POST /v1/chat/completions HTTP/1.1", *_FIELDS, b"Content-Length: %d" % len(body), body=body))
    lab.turns.settle()
    upstream = lab.upstreams[-1]
    upstream.take()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.take()
    piece = b"%x\r\n%b\r\n" % (len(_CHUNK), _CHUNK)

    def do(count: int) -> None:
        for _ in range(count):
            upstream.send(piece)
            if client.take() != piece:
                raise SystemExit("The chunk did not come through as it was sent.")

    return do


class _Thing:
    __slots__ = ("fields", "size")

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self.fields = fields
        self.size = 0

    def take(self, data: bytes) -> bytes | None:
        head, _, rest = data.partition(b"\r\n")
        self.size += len(rest)
        for name, value in self.fields.items():
            if value in head and self.size:
                return b"%b: %d" % (name, self.size)
        return None


def _plain(count: int) -> None:
    fields = {b"a": b"no", b"b": b"nor", b"c": b"GET"}
    for _ in range(count):
        for _ in range(10):
            thing = _Thing(fields.copy())
            thing.fields[b"d"] = b"e"
            pieces = [thing.take(line) for line in (b"GET / HTTP/1.1\r\nHost: a", b"x\r\ny")]
            if pieces[0] is None or pieces[1] is not None or not isinstance(thing.size, int):
                raise SystemExit("Python is not what it was.")


def _control(*words: str) -> None:
    subprocess.run(["callgrind_control", *words, str(os.getpid())], check=True, capture_output=True)


def main() -> None:
    """See the module."""
    # Names and times of day must not change what is counted.
    os.environ["TZ"] = "UTC"
    time.tzset()
    with tempfile.TemporaryDirectory() as folder:
        work: list[Callable[[int], None]] = []
        for kind in KINDS:
            state = Path(folder, kind)
            state.mkdir()
            make = _chunks if kind.startswith("chunk") else _requests
            lab = _lab(kind.endswith("limits"), kind.endswith("retries"), state)
            work.append(_plain if kind == PLAIN else make(lab))
            work[-1](WARM_UP)
        gc.collect()
        gc.freeze()  # as the service does
        _control("-i", "on")
        for do in work:
            for count in (WARM_UP, FEW, MANY):
                gc.collect()
                do(count)
                _control("-d")
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
