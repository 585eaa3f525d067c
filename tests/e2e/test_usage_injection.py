"""``inject_usage``: a stream's usage is asked for in the client's stead, and the client sees none of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from flowstack.ledger.files import files
from flowstack.ledger.reader import read
from tests.e2e.processes import Proxy, StandIn
from tests.e2e.raw import Answer, request
from tests.e2e.raw import Client as Connection
from tests.e2e.sdk_runs import OPENAI_KEY, Outcome, Sdks

pytestmark = pytest.mark.e2e

STREAMS = {"langchain": ("stream", "stream_async"), "llamaindex": ("stream_chat", "stream_chat_async")}
OTHERS = {"langchain": ("invoke", "embed"), "llamaindex": ("complete", "chat")}

# The stand-in makes it of the request's body, which is another one where usage is asked for.
_ID = re.compile(r"(chatcmpl-|cmpl-)[0-9a-f]{29}")
_ID_BYTES = re.compile(_ID.pattern.encode())


@frozen
class Keys:
    """A proxy with a key of each kind.

    :ivar injecting: with ``inject_usage=on``.
    :ivar plain: without.
    """

    proxy: Proxy
    injecting: str
    plain: str

    def rows(self, **wanted: str) -> list[dict[str, Any]]:
        """The rows with these attributes."""
        rows = [row for path in files(self.proxy.state_path / "ledger") for _, row in read(path) if row is not None]
        return [row for row in rows if wanted.items() <= (row["attributes"] or {}).items()]


@pytest.fixture(scope="module")
def keys(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    folder = tmp_path_factory.mktemp("injection")
    proxy = Proxy(folder, f"{stand_in.url}/v1", settings={"log": {"requests": "none"}})
    try:
        found = Keys(proxy, proxy.keystore.add("inject_usage=on"), proxy.keystore.add())
        assert proxy.reload()["keys"] == 3
        yield found
    except BaseException:
        proxy.kill()
        raise
    proxy.stop()
    assert "Traceback" not in proxy.log_text()


def told(usage: dict[str, Any]) -> tuple[Any, ...]:
    """What the upstream counted, or a row says; of embeddings no row says anything of output."""
    return usage["prompt_tokens"], usage["completion_tokens"] or 0, usage["total_tokens"]


@pytest.mark.parametrize("sdk", STREAMS)
def test_an_sdk_that_never_asks_for_usage_gets_the_same_stream_and_the_row_has_the_upstreams_tokens(
    sdk: str, keys: Keys, sdks: Sdks, stand_in: StandIn
) -> None:
    answers: dict[str, dict[str, Outcome]] = {}
    for name, key in (("injecting", keys.injecting), ("plain", keys.plain)):
        run = {
            "Flowstack-Auth": f"Bearer {key}",
            "Flowstack-Attribute-Run": f"{sdk} {name}",
            "X-Client-Tag": f"{sdk}-{name}",
        }
        answers[name] = sdks.answers(sdk, keys.proxy.base_url, run)
    streams = STREAMS[sdk]
    assert set(answers["plain"]) == {*streams, *OTHERS[sdk]}
    for case, plain in answers["plain"].items():
        injected = answers["injecting"][case]
        assert plain.raised is None and injected.raised is None, (plain, injected)
        assert len(plain.value) > 0
        assert _ID.sub("id", json.dumps(injected.value)) == _ID.sub("id", json.dumps(plain.value))

    without = [row for row in keys.rows(run=f"{sdk} plain") if row["stream"]]
    assert len(without) == len(streams)
    assert {(row["usage_source"], row["total_tokens"], row["cost_usd"]) for row in without} == {("none", None, None)}

    rows = keys.rows(run=f"{sdk} injecting")
    assert len([row for row in rows if row["stream"]]) == len(streams)
    assert all(row["usage_source"] == "upstream" and row["cost_usd"] > 0 for row in rows)
    counted = [seen["usage"] for seen in stand_in.seen(f"{sdk}-injecting")]
    assert len(counted) == len(streams) + len(OTHERS[sdk])
    assert sorted(map(told, rows)) == sorted(map(told, counted))


CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "one two three four"}]}
OLD: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": "one two three four"}
BODIES: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "two choices": CHAT | {"n": 2},
    "completion": OLD,
    "other options": CHAT | {"stream_options": {"include_obfuscation": False}},
    "options of null": CHAT | {"stream_options": None},
    "a large prompt": CHAT | {"messages": [{"role": "user", "content": "word " * 100_000}], "max_tokens": 5},
}
WAYS = {
    "whole": "chunks=9",
    "paced": "chunks=9; gap=0.005",
    "in sevens": "chunks=3; drip=7; gap=0.0001",
    "until close": "chunks=9; until-close",
}


def ask(port: int, key: str | None, body: dict[str, Any], *fields: str) -> Answer:
    """One stream, through the proxy or, without a key, straight from the stand-in."""
    target = b"completions" if "prompt" in body else b"chat/completions"
    sent = json.dumps(body | {"stream": True}).encode()
    raw = request(
        key or "none", b"POST /v1/" + target + b" HTTP/1.1", b"Authorization: Bearer " + OPENAI_KEY.encode(),
        b"Content-Type: application/json", b"Content-Length: %d" % len(sent), *map(str.encode, fields), body=sent,
    )  # fmt: skip
    with Connection(port) as client:
        return client.ask(raw, method="POST")


def same(one: bytes, other: bytes) -> bool:
    return _ID_BYTES.sub(b"id", one) == _ID_BYTES.sub(b"id", other)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BODIES)
def test_the_clients_bytes_are_those_of_a_stream_that_nobody_asked_for_usage(
    name: str, way: str, keys: Keys, stand_in: StandIn
) -> None:
    if (name, way) == ("a large prompt", "in sevens"):
        way = "paced"
    fields = (f"Stand-In: {WAYS[way]}", f"Flowstack-Attribute-Run: {name} {way}")
    direct = ask(stand_in.port, None, BODIES[name], *fields[:1])
    injected = ask(keys.proxy.port, keys.injecting, BODIES[name], *fields, "X-Client-Tag: injected")
    assert direct.status == injected.status == 200
    assert b"data: [DONE]\n\n" in direct.body and b'"usage"' not in direct.body
    assert same(injected.body, direct.body)
    (row,) = [row for row in keys.rows() if row["request_id"] == injected.request_id]
    counted = stand_in.seen("injected")[-1]["usage"]
    assert counted["completion_tokens"] > 0
    assert (row["usage_source"], told(row)) == ("upstream", told(counted))
    assert row["bytes_out"] == len(injected.body)


@pytest.mark.parametrize("name", BODIES)
def test_without_it_nothing_is_asked_and_the_row_says_that_it_does_not_know(
    name: str, keys: Keys, stand_in: StandIn
) -> None:
    plain = ask(keys.proxy.port, keys.plain, BODIES[name], "X-Client-Tag: plain")
    direct = ask(stand_in.port, None, BODIES[name])
    assert plain.body == direct.body, "the body went upstream as it was, or its id were another"
    (row,) = [row for row in keys.rows() if row["request_id"] == plain.request_id]
    assert (row["usage_source"], row["total_tokens"], row["cost_usd"]) == ("none", None, None)
    assert stand_in.seen("plain")[-1]["usage"] is None


@pytest.mark.parametrize("key", ["injecting", "plain"])
@pytest.mark.parametrize("wants", [True, False])
def test_a_client_that_says_whether_it_wants_usage_gets_what_it_says(
    wants: bool, key: str, keys: Keys, stand_in: StandIn
) -> None:
    body = CHAT | {"stream_options": {"include_usage": wants}}
    answer = ask(keys.proxy.port, getattr(keys, key), body)
    assert answer.body == ask(stand_in.port, None, body).body
    assert (b'"usage"' in answer.body) is wants
    (row,) = [row for row in keys.rows() if row["request_id"] == answer.request_id]
    assert row["usage_source"] == ("upstream" if wants else "none")


def test_a_key_may_be_without_it_where_it_is_on_by_default(stand_in: StandIn, tmp_path: Path) -> None:
    settings = {"ledger": {"inject_usage": True}, "log": {"requests": "none"}}
    proxy = Proxy(tmp_path / "proxy", f"{stand_in.url}/v1", settings=settings)
    try:
        keys = Keys(proxy, proxy.key, proxy.keystore.add("inject_usage=off"))
        proxy.reload()
        for key, source in ((keys.injecting, "upstream"), (keys.plain, "none")):
            answer = ask(proxy.port, key, CHAT)
            assert b'"usage"' not in answer.body
            (row,) = [row for row in keys.rows() if row["request_id"] == answer.request_id]
            assert row["usage_source"] == source
    except BaseException:
        proxy.kill()
        raise
    proxy.stop()
