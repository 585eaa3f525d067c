"""Upstreams that work before a request is whole serve no key more than it may have, and what they began is charged."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import orjson
import pytest
from attrs import Factory, define, field

from tests.e2e.crowd import CHAT, STREAM, chunk, journal, once
from tests.e2e.processes import PATIENCE, Proxy, eventually
from tests.e2e.raw import Answer, Client, assert_own_error, framing, request
from tests.e2e.raw_upstream import OK, Seen, upstream
from tests.go import built

pytestmark = pytest.mark.e2e

JSON = b"Content-Type: application/json"
FORM = b"Content-Type: multipart/form-data; boundary=between"
SPEECH = b"POST /v1/audio/transcriptions HTTP/1.1"
LENGTH = b"Content-Length: 1000000"
CHUNKED = b"Transfer-Encoding: chunked"

KEYS = {
    "free": "",
    "models": "models=gpt-4o*",
    "tpm": "tpm=1000000 models=gpt-4o*",
    "budget": "budget=100usd/day models=gpt-4o*",
}
LIMITED = [name for name in KEYS if name != "free"]

STREAMED = pytest.mark.parametrize(
    ("key", "framed"), [*((key, LENGTH) for key in LIMITED), ("models", CHUNKED)],
    ids=[*LIMITED, "chunked"],
)  # fmt: skip
"""Whose body streams. A short or chunked one in which usage may be asked for is gathered first."""

GOOD = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}'
UNENDED = GOOD[:-1] + b","
FORBIDDEN = b'{"model":"FORBIDDEN","messages":[{"role":"user","content":"hi"}]}'


def form(model: bytes) -> bytes:
    """A transcription up to the end of its last field, without the last delimiter."""
    return (
        b'--between\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b'--between\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model
    )


@define
class Eager:
    """An upstream that works as soon as it can.

    :ivar begun: requests whose head came.
    :ivar served: the models that it worked with.
    """

    port: int
    _state: Callable[[], dict[str, Any]]
    begun: int = 0
    served: list[str] = Factory(list)

    def look(self) -> Eager:
        """Count what happened since."""
        state = self._state()
        self.begun += state["begun"]
        self.served += state["served"]
        return self

    def forget(self) -> None:
        """Begin a new count."""
        self.look()
        self.begun, self.served = 0, []


@contextmanager
def in_go() -> Iterator[Eager]:
    """Go's own ``net/http``, ``encoding/json`` and ``mime/multipart``."""
    program = built(Path(__file__).parent / "go" / "eager.go")
    with subprocess.Popen([program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())

            def state() -> dict[str, Any]:
                with urlopen(f"http://127.0.0.1:{port}/state", timeout=PATIENCE) as answer:
                    found: dict[str, Any] = json.load(answer)
                return found

            yield Eager(port, state)
        finally:
            process.kill()


_MODEL = re.compile(rb'"model":"([^"]*)".*"messages":\[[^\]]*\]|name="model"\r\n\r\n(.*?)\r\n--between', re.DOTALL)


@define
class Script:
    """Works with a model and messages, or a form's field, that are complete, whatever is missing behind them.

    :ivar answer: what it then says, whether the request is whole or not.
    """

    answer: bytes = OK
    state: dict[str, Any] = field(factory=lambda: {"begun": 0, "served": []})
    _lock: threading.Lock = Factory(threading.Lock)

    def __call__(self, seen: Seen) -> None:
        """The script."""
        with self._lock:
            self.state["begun"] += 1
        if seen.method == "GET":
            seen.read_body()
            seen.link.offer(OK)
            return
        while (found := _MODEL.search(_plain(seen))) is None:
            seen.link.more()
        with self._lock:
            self.state["served"].append((found[1] or found[2]).decode())
        seen.link.offer(self.answer)
        seen.read_body()

    def take(self) -> dict[str, Any]:
        """What happened since this was last asked."""
        with self._lock:
            found, self.state = self.state, {"begun": 0, "served": []}
        return found


def _plain(seen: Seen) -> bytes:
    """What came of the body, without its chunks' sizes."""
    came = seen.link.buffer
    return re.sub(rb"(?:\A|\r\n)[0-9a-f]+\r\n", b"", came) if framing(seen.pairs) is None else came


@contextmanager
def in_python(script: Script) -> Iterator[Eager]:
    """One that is more eager than any that is known."""
    with upstream() as behind:
        behind.script = script
        yield Eager(behind.port, script.take)


@define
class House:
    """A proxy before an eager upstream, and a key for each kind of limit."""

    proxy: Proxy
    eager: Eager
    script: Script | None
    keys: dict[str, str] = field(repr=False)

    def head(self, key: str, line: bytes, *fields: bytes) -> bytes:
        """A request's head."""
        return request(self.keys[key], line, *fields)

    def renew(self, key: str) -> None:
        """Have another key of this kind: nothing that was charged to it leaves its sixty seconds meanwhile."""
        self.keys[key] = self.proxy.keystore.add(KEYS[key])
        assert self.proxy.reload()["fault"] is None

    def assert_nothing_served(self, key: str, answer: Answer, status: int, code: str, sent: bool | None) -> None:
        """The client got an error, the row says so, and the upstream has worked for nobody."""
        assert_own_error(answer, status, code)
        row = journal(self.proxy, self.keys[key])[-1]
        assert (row["request_id"], row["status"], row["error_code"]) == (answer.request_id, status, code)
        assert self.eager.look().served == []
        if sent is not None:
            assert (row["attempts"], self.eager.begun) == (int(sent), int(sent))


@contextmanager
def house(folder: Path, eager: Eager, script: Script | None) -> Iterator[House]:
    """A :class:`House` for as long as the block lasts."""
    proxy = Proxy(folder, f"http://127.0.0.1:{eager.port}/v1")
    try:
        keys = {name: proxy.keystore.add(attributes) for name, attributes in KEYS.items()}
        assert proxy.reload()["fault"] is None
        yield House(proxy, eager, script, keys)
    except BaseException:
        proxy.kill()
        raise
    proxy.stop()
    assert "Traceback" not in proxy.log_text(), proxy.log_text()


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with in_go() as eager, house(tmp_path_factory.mktemp("eager-go"), eager, None) as found:
        yield found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    script = Script()
    with in_python(script) as eager, house(tmp_path_factory.mktemp("eager"), eager, script) as found:
        yield found


BODIES = [
    ("text behind it", CHAT, JSON, GOOD, b"xx"),
    ("another object", CHAT, JSON, GOOD, FORBIDDEN),
    ("another line", CHAT, JSON, GOOD, b"\n" + FORBIDDEN + b"\n"),
    ("much space", CHAT, JSON, GOOD, b" " * 70_000),
    ("a forbidden model", CHAT, JSON, FORBIDDEN, b"xx"),
    ("a forbidden model before much space", CHAT, JSON, FORBIDDEN, b" " * 70_000),
    ("an epilogue", SPEECH, FORM, form(b"gpt-4o-transcribe") + b"\r\n--between--", b"\r\nmore"),
    ("text behind the last delimiter", SPEECH, FORM, form(b"gpt-4o-transcribe") + b"\r\n--between--", b"xx"),
    ("a forbidden model in a form", SPEECH, FORM, form(b"FORBIDDEN") + b"\r\n--between--", b"xx"),
]
"""What is wrong, and of a body what must not go before it is known, and what makes that known."""

WRONG = pytest.mark.parametrize(("why", "line", "kind", "body", "rest"), BODIES, ids=[each[0] for each in BODIES])


def in_chunks(data: bytes, coding: bytes) -> bytes:
    return chunk(data) if coding is CHUNKED else data


@WRONG
@STREAMED
def test_an_upstream_that_decodes_the_first_object_gets_none_that_is_not_judged(
    go: House, key: str, framed: bytes, why: str, line: bytes, kind: bytes, body: bytes, rest: bytes
) -> None:
    head = go.head(key, line, kind, framed)
    forbidden = b"FORBIDDEN" in body
    go.eager.forget()
    with Client(go.proxy.port) as client:  # all that is ever sent, with the head or, for much space, soon after it
        client.send(head + in_chunks(body + rest, framed))
        go.assert_nothing_served(key, client.answer(), 403, "model_not_allowed", None)
    go.eager.forget()
    with Client(go.proxy.port) as client:
        client.send(head)
        eventually(lambda: go.eager.look().begun, "the upstream waits for the body")
        client.send(in_chunks(body, framed))
        if not forbidden:
            assert client.quiet(), "an end that is held back is no reason for a refusal"
            client.send(in_chunks(rest, framed))
        go.assert_nothing_served(key, client.answer(), 403, "model_not_allowed", True)


@pytest.mark.parametrize("key", LIMITED)
@pytest.mark.parametrize(
    "fields",
    [(JSON, b"Content-Encoding: gzip"), (b"Content-Type: text/plain",), (JSON, FORM), (JSON, b"Content-Encoding: br",
     b"Expect: 100-continue")],
)  # fmt: skip
def test_what_cannot_be_read_makes_no_connection(go: House, key: str, fields: tuple[bytes, ...]) -> None:
    for framed in (LENGTH, CHUNKED):
        go.eager.forget()
        with Client(go.proxy.port) as client:
            client.send(go.head(key, CHAT, *fields, framed))
            answer = client.answer()
            assert answer.interim == []
            go.assert_nothing_served(key, answer, 403, "model_not_allowed", False)


def test_the_same_upstream_serves_who_need_not_be_judged_and_who_is(go: House) -> None:
    go.eager.forget()
    with Client(go.proxy.port) as client:
        client.send(go.head("free", CHAT, JSON, LENGTH), FORBIDDEN + b"x")
        assert client.answer().status == 200
    for key in LIMITED:
        answer = once(go.proxy.port, go.head(key, CHAT, JSON, b"Content-Length: %d" % len(GOOD)) + GOOD)
        assert answer.status == 200
        sent = form(b"gpt-4o-transcribe") + b"\r\n--between--\r\n"
        with Client(go.proxy.port) as client:
            client.send(go.head(key, SPEECH, FORM, b"Content-Length: %d" % len(sent)), sent[:-20], sent[-20:])
            assert client.answer().status == 200
    assert go.eager.look().served == ["FORBIDDEN", *["gpt-4o", "gpt-4o-transcribe"] * len(LIMITED)]


# An upstream that needs no end at all.

PARTS = pytest.mark.parametrize(
    ("line", "kind", "body"),
    [(CHAT, JSON, UNENDED), (SPEECH, FORM, form(b"gpt-4o-transcribe") + b"\r\n--between\r\n")],
    ids=["json", "form"],
)


def spent(house: House, key: str) -> int:
    """Tokens that count for the key."""
    answer = once(house.proxy.port, request(house.keys[key]))
    left = answer.one(b"flowstack-ratelimit-remaining-tokens")
    return 0 if left is None else 1_000_000 - int(left)


@PARTS
@STREAMED
@pytest.mark.parametrize(
    "said",
    [
        OK,
        b"HTTP/1.1 303 See Other\r\nLocation: /v1/results/1\r\nContent-Length: 2\r\n\r\nok",
        STREAM + chunk(b'data: {"choices":[{"delta":{"content":"secret"}}]}\n\n'),
    ],
    ids=["success", "redirect", "stream"],
)
def test_a_success_before_the_requests_end_is_cut_and_charged(
    python: House, said: bytes, key: str, framed: bytes, line: bytes, kind: bytes, body: bytes
) -> None:
    assert python.script is not None
    python.script.answer = said
    python.eager.forget()
    if key == "tpm":
        python.renew(key)
    with Client(python.proxy.port) as client:
        client.send(python.head(key, line, kind, framed), in_chunks(body, framed))
        answer = client.answer()
    assert_own_error(answer, 502, "upstream_malformed")
    assert (answer.one(b"x-should-retry"), answer.one(b"location")) == (b"false", None)
    row = journal(python.proxy, python.keys[key])[-1]
    assert (row["request_id"], row["end"], row["attempts"]) == (answer.request_id, "upstream_lost", 1)
    assert len(python.eager.look().served) == 1
    if key == "tpm":
        assert spent(python, key) >= 4096
    assert spent(python, "free") == 0, "the proxy serves on"


@PARTS
def test_a_client_that_leaves_amid_its_body_is_charged_what_it_may_have_begun(
    python: House, line: bytes, kind: bytes, body: bytes
) -> None:
    def left() -> list[dict[str, Any]]:
        return [row for row in journal(python.proxy, python.keys["tpm"]) if row["end"] == "client_gone"]

    python.eager.forget()
    python.renew("tpm")
    with Client(python.proxy.port) as client:
        client.send(python.head("tpm", line, kind, LENGTH), body[:-30])
        eventually(lambda: python.eager.look().begun, "the upstream has the head")
    (row,) = eventually(left, "it is noticed")
    assert (row["attempts"], row["status"]) == (1, None)
    assert spent(python, "tpm") >= 4096


def test_a_budget_is_spent_by_what_was_attempted(python: House) -> None:
    assert python.script is not None
    python.script.answer = OK
    key = python.proxy.keystore.add("budget=0.4usd/total")
    assert python.proxy.reload()["fault"] is None
    told = []
    for _ in range(3):
        with Client(python.proxy.port) as client:
            client.send(request(key, CHAT, JSON, LENGTH), UNENDED)
            told.append(client.answer().one(b"flowstack-error"))
    # gpt-4o's 16,384 tokens of output are 0.28 dollars in its dearest tier: after two of them nothing is left.
    assert told == [b"upstream_malformed", b"upstream_malformed", b"flowstack_budget_exceeded"]


@pytest.mark.parametrize("key", LIMITED)
def test_an_error_before_the_requests_end_reaches_the_client(python: House, key: str) -> None:
    assert python.script is not None
    body = orjson.dumps({"error": {"message": "Too large.", "type": "invalid_request_error"}})
    python.script.answer = (
        b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    with Client(python.proxy.port) as client:
        client.send(python.head(key, CHAT, JSON, LENGTH), UNENDED)
        answer = client.answer()
    assert (answer.status, answer.body, answer.one(b"flowstack-error")) == (413, body, None)


def test_nothing_of_a_cut_request_is_left_for_the_next(python: House) -> None:
    assert python.script is not None
    python.script.answer = OK
    for _ in range(3):
        with Client(python.proxy.port) as client:
            client.send(python.head("models", CHAT, JSON, LENGTH), UNENDED)
            assert client.answer().status == 502
        answer = once(python.proxy.port, python.head("models", CHAT, JSON, b"Content-Length: %d" % len(GOOD)) + GOOD)
        assert (answer.status, answer.body) == (200, b"ok")
