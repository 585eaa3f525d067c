"""Many clients at once, and what an upstream sees of them: for tests of limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson
from attrs import Factory, define

from tests.e2e.processes import Proxy
from tests.e2e.raw import Answer, Client, request
from tests.e2e.raw_upstream import Script, Seen

T = TypeVar("T")

CHAT = b"POST /v1/chat/completions HTTP/1.1"
MODEL = "gpt-4o"
INPUT_PRICE, OUTPUT_PRICE = 2.5e-6, 10e-6
"""US dollars a token of :data:`MODEL`, by the table that Flowstack comes with."""


def chat(key: str, *fields: bytes, **members: Any) -> bytes:
    """A request for a chat completion."""
    document = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **members}
    body = orjson.dumps({name: value for name, value in document.items() if value is not None})
    head = (b"Content-Type: application/json", b"Content-Length: %d" % len(body), *fields)
    return request(key, CHAT, *head, body=body)


def once(port: int, raw: bytes) -> Answer:
    """Send a request on a connection of its own, so that any worker may get it."""
    with Client(port) as client:
        return client.ask(raw)


def crowd(count: int, act: Callable[[int], T]) -> list[T]:
    """Do it in so many threads at once, each given its number.

    :raises Exception: the first of theirs.
    """
    together = threading.Barrier(count)

    def run(number: int) -> T:
        together.wait(30)
        return act(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def codes(answers: Iterable[Answer]) -> list[str]:
    """Of each answer its status, or the code of the error that Flowstack gave."""
    return [(answer.one(b"flowstack-error") or b"%d" % answer.status).decode() for answer in answers]


@define
class Gauge:
    """Counts the requests that an upstream has under way.

    :ivar most: at once so far.
    :ivar arrived: when each came, seconds on the monotonic clock.
    """

    now: int = 0
    most: int = 0
    arrived: list[float] = Factory(list)
    _lock: threading.Lock = Factory(threading.Lock)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """One request, for as long as the block lasts."""
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.arrived.append(time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1

    def script(self, prompt: int, completion: int, pause: float = 0.0) -> Script:
        """Answer chat completions, JSON or streams, with these figures after so many seconds."""

        def answer(seen: Seen) -> None:
            with self.under_way():
                document = orjson.loads(seen.read_body())
                time.sleep(pause)
            seen.link.offer(answer_to(document, prompt, completion))

        return answer


def answer_to(document: dict[str, Any], prompt: int, completion: int) -> bytes:
    """What OpenAI answers to a chat completion, with these figures in the usage."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if not document.get("stream"):
        body = orjson.dumps({"object": "chat.completion", "model": MODEL, "choices": [], "usage": usage})
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    events: list[Any] = [{"model": MODEL, "choices": [{"index": 0, "delta": {"content": "a"}}]}]
    if (document.get("stream_options") or {}).get("include_usage"):
        events.append({"model": MODEL, "choices": [], "usage": usage})
    pieces = [b"data: " + orjson.dumps(event) + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    return STREAM + b"".join(map(chunk, pieces)) + b"0\r\n\r\n"


def cost(prompt: int, completion: int) -> float:
    """US dollars for so many tokens of :data:`MODEL`."""
    return prompt * INPUT_PRICE + completion * OUTPUT_PRICE


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """A chunk of a body (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def journal(proxy: Proxy, key: str | None = None) -> list[dict[str, Any]]:
    """The rows of all workers so far, or those of one key."""
    found = []
    for path in sorted((proxy.state_path / "ledger").glob("*.jsonl")):
        found += [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [row for row in found if key is None or row["key_id"] == key[4:16]]


def writers(proxy: Proxy, key: str) -> int:
    """In how many files of the journal a key has rows: so many workers served it."""
    mark = key[4:16].encode()
    return sum(mark in path.read_bytes() for path in (proxy.state_path / "ledger").glob("*.jsonl"))
