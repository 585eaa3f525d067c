"""Budgets hold: no kind of request, and no upstream that says nothing, gets more out of a key than its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from attrs import define, field

from tests.e2e.crowd import STREAM, chunk, crowd, journal, once
from tests.e2e.raw import Answer, request
from tests.e2e.raw_upstream import Front, Script, Seen, front
from tests.relay.spenders import WAYS, Way, dollars, used

pytestmark = pytest.mark.e2e

CLIENTS = 24


@define
class Till:
    """An upstream that does whatever it is asked for, and what it would bill.

    :ivar says: whether it says what was used where it should.
    :ivar billed: US dollars of each request.
    """

    says: bool = True
    billed: list[float] = field(factory=list)

    def script(self) -> Script:
        def answer(seen: Seen) -> None:
            document = orjson.loads(seen.read_body())
            path = seen.target.decode()
            prompt, output = used(path, document)
            self.billed.append(dollars(document["model"], prompt, output))
            seen.link.offer(self._answer(path, document, prompt, output))

        return answer

    def _answer(self, path: str, document: dict[str, Any], prompt: int, output: int) -> bytes:
        model = document["model"]
        first, second = ("input", "output") if path in ("/v1/responses", "/v1/messages") else ("prompt", "completion")
        usage: dict[str, int] = {f"{first}_tokens": prompt, f"{second}_tokens": output}
        if path != "/v1/messages":
            usage["total_tokens"] = prompt + output
        answer = {"model": model, "says": "done", **({"usage": usage} if self.says else {})}
        if not document.get("stream"):
            body = orjson.dumps(answer)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            return head % len(body) + body
        if path == "/v1/responses":
            events = [b"event: response.completed\ndata: " + orjson.dumps({
                "type": "response.completed", "response": answer | {"status": "completed"}
            })]  # fmt: skip
        else:
            told = self.says and (document.get("stream_options") or {}).get("include_usage") is True
            null = {"usage": None} if told else {}
            delta = {"model": model, "choices": [{"index": 0, "delta": {"content": "done"}}], **null}
            events = [b"data: " + orjson.dumps(delta)]
            if told:
                events.append(b"data: " + orjson.dumps({"model": model, "choices": [], "usage": usage}))
            events.append(b"data: [DONE]")
        return STREAM + b"".join(chunk(event + b"\n\n") for event in events) + b"0\r\n\r\n"


@define
class House:
    """A proxy with two workers."""

    ends: Front
    ask: Callable[[str, Way], Answer]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings: dict[str, Any] = {"server": {"workers": 2}, "ledger": {"index": False}}
    with front(tmp_path_factory.mktemp("budgets"), base="/v1", **settings) as ends:

        def ask(key: str, way: Way) -> Answer:
            body = orjson.dumps(way.document)
            head = b"Content-Type: application/json", b"Content-Length: %d" % len(body)
            return once(ends.proxy.port, request(key, b"POST %b HTTP/1.1" % way.path.encode(), *head, body=body))

        yield House(ends, ask)


@pytest.mark.parametrize("says", [True, False], ids=["says what it used", "never says what it used"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_budget_pays_for_no_more_than_itself_and_one_request_s_excess(house: House, way: Way, says: bool) -> None:
    ends = house.ends
    key = ends.proxy.keystore.add(f"budget={way.budget}usd/total")
    assert ends.proxy.reload()["fault"] is None
    till = Till(says)
    ends.upstream.script = till.script()
    answers = crowd(CLIENTS, lambda _: house.ask(key, way))
    if way.refused:
        assert {answer.status for answer in answers} == {403}
        assert till.billed == []
        return
    while (answer := house.ask(key, way)).status == 200:
        answers.append(answer)
        assert len(till.billed) < 200
    assert answer.one(b"flowstack-error") == b"flowstack_budget_exceeded"
    assert len(till.billed) == sum(answer.status == 200 for answer in answers) > 0
    assert sum(till.billed) <= way.budget + max(till.billed)
    options = way.members.get("stream_options") or {}
    if way.members.get("stream") and way.path != "/v1/responses":
        seen = {b'"usage"' in answer.body for answer in answers if answer.status == 200}
        assert seen == {says and options.get("include_usage") is True}, "the client sees what it asked for"
    sources = {row["usage_source"] for row in journal(ends.proxy, key) if row["status"] == 200}
    assert sources == {"upstream" if says else "none"}


ODD = b"Accept-Encoding: foo, gzip;q=0.5, dcb, *", b"Accept-Encoding: what", b"Accept-Encoding: br , zstd"


def test_a_key_that_pays_by_usage_gets_no_answer_in_a_coding_that_is_not_read(house: House) -> None:
    ends, seen = house.ends, []

    def answer(came: Seen) -> None:
        came.read_body()
        seen.append(came.all(b"accept-encoding"))
        came.link.offer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    ends.upstream.script = answer
    keys = ends.proxy.keystore.add("tpm=100000"), ends.proxy.keystore.add("rpm=1000")
    assert ends.proxy.reload()["fault"] is None
    body = b'{"model":"gpt-5","messages":[]}'
    head = b"Content-Type: application/json", b"Content-Length: %d" % len(body)
    for key in keys:
        for field_line in ODD:
            raw = request(key, b"POST /v1/chat/completions HTTP/1.1", *head, field_line, body=body)
            assert once(ends.proxy.port, raw).status == 200
    assert seen == [
        [b"gzip;q=0.5"], [b"identity"], [b"br , zstd"],
        [b"foo, gzip;q=0.5, dcb, *"], [b"what"], [b"br , zstd"],
    ]  # fmt: skip
