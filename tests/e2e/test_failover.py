"""Providers that fail, in every way that a bench of gateways tries, behind the real service on real sockets.

The upstream does what the model's name says, so that one proxy serves all of it. The fallback answers well.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest

from flowstack.http.framing import LAST_CHUNK, chunk
from tests.e2e.processes import Proxy, eventually, invoke
from tests.e2e.raw import Answer, Client, request
from tests.e2e.raw_upstream import Seen, upstream
from tests.e2e.sdk_runs import Sdks
from tests.e2e.test_workers import admin_port

pytestmark = pytest.mark.e2e

CLIENT_KEY = "sk-proj-canary-of-the-client-0123456789abcdefABCDEF"
AZURE_KEY = "canary-of-azure-0123456789abcdefABCDEF"
USAGE = {"prompt_tokens": 7, "completion_tokens": 60, "total_tokens": 67}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(model: str, status: bytes = b"200 OK", *fields: bytes, error: str = "") -> bytes:
    told: dict[str, Any] = {"error": {"message": "no", "type": "x", "param": None, "code": error}}
    if not error:
        message = {"role": "assistant", "content": "word " * 60}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        told = {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": choices}
        told["usage"] = USAGE
    body = json.dumps(told).encode()
    lines = [b"HTTP/1.1 " + status, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join((*lines, b"", body))


def event(model: str, text: str | None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": None if text else "stop"}
    told = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(told | ({"usage": usage} if usage else {})).encode() + b"\n\n"


def tokens(model: str, first: int, last: int) -> bytes:
    return b"".join(chunk(event(model, f"{number} ")) for number in range(first, last))


def end(model: str) -> bytes:
    return chunk(event(model, None, USAGE)) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK


def good(asked: dict[str, Any]) -> bytes:
    """A good answer: sixty tokens."""
    model = asked["model"]
    if asked.get("stream"):
        return STREAM + tokens(model, 0, 60) + end(model)
    return whole(model)


ODD = ("malformed", "no-done")


def odd(fault: str) -> bytes:
    """A stream with something in it that nobody expects, from the model of that name."""
    if fault == "no-done":
        return STREAM + tokens(fault, 0, 60) + LAST_CHUNK
    return STREAM + tokens(fault, 0, 40) + chunk(b"data: {not json\n\n") + tokens(fault, 40, 60) + end(fault)


class Faulty:
    """What the first upstream does with a request: what its model's name says."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.down = False

    def __call__(self, seen: Seen) -> None:
        asked = json.loads(seen.read_body())
        model, link = asked["model"], seen.link
        self.asked[model] += 1
        first = self.asked[model] == 1
        fault, body = model.partition("/")[0], good(asked)
        if self.down:
            link.offer(whole(model, b"503 Unavailable", error="down"))
        elif fault == "429-once" and first:
            link.offer(whole(model, b"429 Slow", b"Retry-After: 2", error="rate_limit_exceeded"))
        elif fault == "429-always":
            link.offer(whole(model, b"429 Slow", error="rate_limit_exceeded"))
        elif fault == "500-once" and first:
            link.offer(whole(model, b"500 Oh", error="server_error"))
        elif fault == "503-always":
            link.offer(whole(model, b"503 Oh", error="overloaded"))
        elif fault == "reset-once" and first:
            link.abort()
        elif fault == "half-a-head" and first:
            link.offer(b"HTTP/1.1 200 OK\r\nContent-")
            link.abort()
        elif fault == "silent":
            link.to_the_end()
        elif fault == "late":
            link.offer(body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            link.to_the_end()
        elif fault == "headless" and first:
            link.offer(body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            link.abort()
        elif fault == "cut":
            link.offer(STREAM + tokens(model, 0, 40) if asked.get("stream") else body[:-100])
            link.abort()
        elif fault == "mute":
            link.offer(STREAM + tokens(model, 0, 40) if asked.get("stream") else body[:-100])
            link.to_the_end()
        elif fault in ODD:
            link.offer(odd(fault))
        elif fault == "too-long":
            link.offer(whole(model, b"400 Bad Request", error="context_length_exceeded"))
        elif fault == "filter":
            link.offer(whole(model, b"400 Bad Request", b"X-Own: 1", error="content_filter"))
        else:
            link.offer(body)


class Stage:
    """A proxy before an upstream that fails by script, and behind that one a fallback."""

    def __init__(self, folder: Path, stack: ExitStack, workers: int = 1, health: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        secret = folder / "azure.secret"
        secret.write_text(AZURE_KEY)
        secret.chmod(0o600)
        self.primary, self.azure = stack.enter_context(upstream()), stack.enter_context(upstream())
        self.faulty = self.primary.script = Faulty()
        self.azure.script = lambda seen: seen.link.offer(good(json.loads(seen.read_body())))
        self.proxy = Proxy(
            folder,
            f"http://127.0.0.1:{self.primary.port}/v1",
            settings={
                "server": {"workers": workers, "admin": "tcp:0:interface=127.0.0.1"},
                "timeouts": {"stream_idle": 1.5},
                "upstreams": {
                    "openai": {
                        "default": True,
                        "first_byte": 1.0,
                        "retry": {
                            "on": ["connect", "reset", "timeout", 429, 500, 503],
                            "attempts": 3,
                            "within": 10,
                            "backoff": 0.05,
                            "backoff_max": 0.2,
                            "budget_least": 1000,
                        },
                        "health": health or {"failures": 100_000, "failure_share": 1.0},
                        "fallback": {
                            "to": "azure",
                            "on": ["connect", "reset", "timeout", 429, 500, 503],
                            "models": {'"*"': "rescue"},
                            "context_length": True,
                        },
                    },
                    "azure": {
                        "base_url": f"http://127.0.0.1:{self.azure.port}/openai/v1",
                        "api_key_file": str(secret),
                        "api_key_header": "api-key",
                    },
                },
            },
        )
        stack.callback(self._stop)

    def _stop(self) -> None:
        self.proxy.stop()
        self.proxy.assert_no_secrets([CLIENT_KEY, AZURE_KEY])
        log = self.proxy.log_text()
        assert "Traceback" not in log and "Unhandled" not in log, log

    def sent(self, model: str, stream: bool, *fields: bytes) -> bytes:
        body = json.dumps({"model": model, "messages": [], "stream": stream}).encode()
        return request(
            self.proxy.key,
            b"POST /v1/chat/completions HTTP/1.1",
            b"Authorization: Bearer " + CLIENT_KEY.encode(),
            b"Cookie: session=" + CLIENT_KEY.encode(),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
            *fields,
            body=body,
        )

    def ask(self, model: str, stream: bool = False, *fields: bytes) -> Answer:
        with Client(self.proxy.port) as client:
            return client.ask(self.sent(model, stream, *fields))

    def row(self, answer: Answer) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            for journal in self.proxy.state_path.glob("ledger/*.jsonl"):
                for line in journal.read_text().splitlines():
                    if answer.request_id in line:
                        found: dict[str, Any] = json.loads(line)
                        return found
            return None

        return eventually(find, "the request's row")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(tmp_path_factory.mktemp("failover"), stack)


RESCUED = {
    # fault: attempts at the primary, whether the fallback serves, statuses or faults of the attempts
    "429-once": (2, False, [429, 200]),
    "429-always": (3, True, [429, 429, 429, 200]),
    "500-once": (2, False, [500, 200]),
    "503-always": (3, True, [503, 503, 503, 200]),
    "reset-once": (2, False, ["reset", 200]),
    "half-a-head": (2, False, ["reset", 200]),
    "headless": (2, False, ["reset", 200]),
    "silent": (1, True, ["timeout", 200]),
    "late": (1, True, ["timeout", 200]),
    "too-long": (1, True, [400, 200]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", RESCUED)
def test_the_client_sees_one_clean_answer(stage: Stage, fault: str, stream: bool) -> None:
    attempts, by_fallback, outcomes = RESCUED[fault]
    model = f"{fault}/{stream}"
    before, started = stage.azure.total, time.monotonic()
    answer = stage.ask(model, stream)
    took = time.monotonic() - started
    served = "rescue" if by_fallback else model
    assert (answer.status, answer.body) == (200, b"".join(_unframed(good({"model": served, "stream": stream}), stream)))
    assert stage.faulty.asked[model] == attempts
    assert stage.azure.total - before == by_fallback
    assert answer.one(b"flowstack-upstream") == (b"azure/azure" if by_fallback else b"openai/openai")
    assert answer.one(b"flowstack-attempts") == b"%d" % len(outcomes)
    row = stage.row(answer)
    assert [one["fault"] or one["status"] for one in row["attempts_detail"]] == outcomes
    # The row is the answer's: failed attempts are no completions.
    assert (row["model_requested"], row["model"], row["upstream"]) == (
        model, served, "azure" if by_fallback else "openai",
    )  # fmt: skip
    assert (row["total_tokens"], row["end"], row["status"]) == (67, "complete", 200)
    if fault == "429-once":
        assert took >= 2.0


def _unframed(answer: bytes, stream: bool) -> list[bytes]:
    body = answer.partition(b"\r\n\r\n")[2]
    if not stream:
        return [body]
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return pieces


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["cut", "mute"])
def test_what_breaks_off_in_the_middle_never_looks_finished_and_is_asked_of_nobody_else(
    stage: Stage, fault: str, stream: bool
) -> None:
    model, before, started = f"{fault}/{stream}", stage.azure.total, time.monotonic()
    with Client(stage.proxy.port) as client:
        client.send(stage.sent(model, stream))
        got, _ = client.to_the_end()
    assert time.monotonic() - started < 10
    assert stage.faulty.asked[model] == 1
    assert stage.azure.total == before
    assert (b'"39 "' in got and LAST_CHUNK not in got) if stream else b'"usage"' not in got
    (row,) = eventually(lambda: [one for one in _rows(stage) if one["model_requested"] == model], "the row")
    assert (row["end"], row["attempts"]) == ("upstream_lost" if fault == "cut" else "timeout", 1)


def _rows(stage: Stage) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for journal in stage.proxy.state_path.glob("ledger/*.jsonl")
        for line in journal.read_text().splitlines()
    ]


@pytest.mark.parametrize("fault", ODD)
def test_what_is_odd_in_the_middle_passes_as_it_is(stage: Stage, fault: str) -> None:
    started = time.monotonic()
    answer = stage.ask(fault, True)
    assert (answer.status, answer.body) == (200, b"".join(_unframed(odd(fault), True)))
    assert time.monotonic() - started < 5
    assert stage.faulty.asked[fault] == 1


def test_a_content_filter_s_refusal_comes_through_byte_for_byte(stage: Stage) -> None:
    before = stage.azure.total
    answer = stage.ask("filter")
    told = whole("filter", b"400 Bad Request", b"X-Own: 1", error="content_filter")
    assert (answer.status, answer.body, answer.one(b"x-own")) == (400, told.partition(b"\r\n\r\n")[2], b"1")
    assert (stage.faulty.asked["filter"], stage.azure.total - before) == (1, 0)


def test_no_credential_crosses_to_the_other_upstream(stage: Stage) -> None:
    assert stage.ask("503-always/cross").status == 200
    first, second = (b"".join(bytes(link.received) for link in one.links) for one in (stage.primary, stage.azure))
    assert CLIENT_KEY.encode() in first and AZURE_KEY.encode() in second
    assert AZURE_KEY.encode() not in first
    assert CLIENT_KEY.encode() not in second
    assert stage.proxy.key.encode() not in first + second
    with Client(admin_port(stage.proxy)) as client:
        shown = client.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").body
    assert b"flowstack_rescued_requests_total" in shown
    assert b"canary" not in shown


def test_reports_count_one_request_with_the_usage_of_what_served(stage: Stage) -> None:
    row = stage.row(stage.ask("503-always/report", False, b"Flowstack-Attribute-Case: report"))
    config, only = str(stage.proxy.config_path), "attribute:case=report"
    asked = ["flowstack", "usage", "--config", config, "--where", only, "--format", "json"]
    told = eventually(lambda: json.loads(invoke(*asked).stdout)["total"]["requests"] or None, "the index")
    assert told == 1
    total = json.loads(invoke(*asked).stdout)["total"]
    assert (total["errors"], total["total_tokens"]) == (0, row["total_tokens"])


PROGRAMS = {
    "python-openai": """
import openai, os
client = openai.OpenAI(base_url=os.environ["BASE"], api_key="sk-of-the-client", max_retries=0,
                       default_headers={"Flowstack-Auth": "Bearer " + os.environ["KEY"]})
for fault in ("429-always", "reset-once", "late", "cut", "filter"):
    for stream in (False, True):
        try:
            made = client.chat.completions.create(model=f"{fault}/py{stream}", messages=[], stream=stream)
            n = sum(1 for c in made if c.choices[0].delta.content) if stream else made.usage.total_tokens
            print(fault, stream, n)
        except Exception as error:
            print(fault, stream, "error", getattr(error, "code", None))
""",
    "node-openai": """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.BASE, apiKey: "sk-of-the-client", maxRetries: 0,
  defaultHeaders: { "Flowstack-Auth": "Bearer " + process.env.KEY } });
for (const fault of ["429-always", "reset-once", "late", "cut", "filter"])
  for (const stream of [false, true])
    try {
      const made = await client.chat.completions.create({ model: `${fault}/js${stream}`, messages: [], stream });
      let n = 0;
      if (stream) for await (const one of made) n += one.choices[0].delta.content ? 1 : 0;
      else n = made.usage.total_tokens;
      console.log(fault, stream ? "True" : "False", n);
    } catch (error) {
      console.log(fault, stream ? "True" : "False", "error", error.code ?? "None");
    }
""",
}


@pytest.mark.parametrize("sdk", PROGRAMS)
def test_an_sdk_sees_one_clean_answer_or_one_clean_error(stage: Stage, sdk: str, sdks: Sdks) -> None:
    env = {"BASE": stage.proxy.base_url, "KEY": stage.proxy.key}
    lines = [line.split() for line in sdks.program(sdk, PROGRAMS[sdk], env=env).splitlines()]
    told = {(fault, stream): rest for fault, stream, *rest in lines}
    for fault in ("429-always", "reset-once", "late"):
        assert told[fault, "False"] == ["67"]
        assert told[fault, "True"] == ["60"]
    for stream in ("False", "True"):
        assert told["cut", stream][0] == "error"
        assert told["filter", stream] == ["error", "content_filter"]


# A primary that is down, under load.


class Load:
    """Requests at a rate, from several connections; what they took, and who served them.

    :param seconds: how long.
    """

    def __init__(self, stage: Stage, rate: int, seconds: float) -> None:
        self.took: list[tuple[float, str, float]] = []  # when it began, who served it, seconds
        self.lost: list[str] = []
        self._stage, self._lock = stage, threading.Lock()
        self.began = time.monotonic()
        lanes = 8
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lambda lane: self._lane(lane, lanes, rate, seconds), range(lanes)))

    def _lane(self, lane: int, lanes: int, rate: int, seconds: float) -> None:
        sent = self._stage.sent("m", False)
        with Client(self._stage.proxy.port) as client:
            for number in range(lane, int(rate * seconds), lanes):
                due = self.began + number / rate
                time.sleep(max(0.0, due - time.monotonic()))
                begun = time.monotonic()
                answer = client.ask(sent)
                served = (answer.one(b"flowstack-upstream") or b"").decode()
                with self._lock:
                    if answer.status == 200:
                        self.took.append((begun, served, time.monotonic() - begun))
                    else:
                        self.lost.append(f"{answer.status} {answer.body[:200]!r}")


RATE = 100
HEALTH = {"failures": 5, "eject": 0.5, "eject_max": 2.0}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_primary_that_is_down_is_passed_by_and_found_again(tmp_path: Path, workers: int) -> None:
    with ExitStack() as stack:
        stage = Stage(tmp_path, stack, workers, HEALTH)
        well = Load(stage, RATE, 2)
        assert well.lost == [] and {served for _, served, _ in well.took} == {"openai/openai"}
        stage.faulty.down = True
        before = stage.primary.total
        down = Load(stage, RATE, 4)
        assert down.lost == []
        assert {served for _, served, _ in down.took} == {"azure/azure"}
        # Each that finds it down makes up to three attempts; then one request tries it now and then.
        probes = 2 + 4 / HEALTH["eject"]
        in_flight = 8
        assert stage.primary.total - before <= (HEALTH["failures"] + in_flight) * workers + 3 * probes
        known = [took for begun, _, took in down.took if begun > down.began + 1]
        usual = [took for _, _, took in well.took]
        assert median(known) < 10 * median(usual) + 0.05
        assert quantiles(known, n=10)[-2] < 10 * quantiles(usual, n=10)[-1] + 0.1
        stage.faulty.down = False
        back = time.monotonic()
        eventually(lambda: stage.ask("m").one(b"flowstack-upstream") == b"openai/openai", "it is found again")
        assert time.monotonic() - back < 5
        with Client(admin_port(stage.proxy)) as client:
            assert client.ask(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").body.startswith(b"ok\nkeystore ")
        log = stage.proxy.log_text()
        assert log.count("the target openai is back") == 1
        assert 1 <= log.count("the target openai is down") <= probes + workers


def test_a_primary_that_cannot_be_reached_costs_no_request(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(tmp_path, stack, 1, HEALTH)
        stage.primary.stop()
        load = Load(stage, 50, 2)
        assert load.lost == []
        assert {served for _, served, _ in load.took} == {"azure/azure"}
        with Client(admin_port(stage.proxy)) as client:
            assert b"target openai: down" in client.ask(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").body


def test_a_reload_takes_the_keys_of_a_file_with_several(tmp_path: Path) -> None:
    secret = tmp_path / "openai.secret"
    secret.write_text("sk-one\nsk-two\n")
    secret.chmod(0o600)
    with upstream() as behind:
        behind.script = lambda seen: seen.link.offer(good(json.loads(seen.read_body())))
        proxy = Proxy(
            tmp_path, f"http://127.0.0.1:{behind.port}/v1",
            settings={"upstreams": {"openai": {"api_key_file": str(secret)}}},
        )  # fmt: skip
        body = b'{"model":"m"}'
        fields = (b"Content-Type: application/json", b"Content-Length: %d" % len(body))
        sent = request(proxy.key, b"POST /v1/chat/completions HTTP/1.1", *fields, body=body)

        def used(count: int) -> set[bytes]:
            behind.forget()
            with Client(proxy.port) as client:
                for _ in range(count):
                    assert client.ask(sent).status == 200
            return {one.all(b"authorization")[0] for one in behind.requests}

        try:
            assert used(4) == {b"Bearer sk-one", b"Bearer sk-two"}
            secret.write_text("sk-three\nsk-four\n")
            proxy.reload()
            assert used(4) == {b"Bearer sk-three", b"Bearer sk-four"}
        finally:
            proxy.stop()
