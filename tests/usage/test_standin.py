"""What meters find in the stand-in's answers is what the stand-in counted."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from flowstack.testing.standin import App
from flowstack.testing.standin.faults import Directives
from flowstack.testing.standin.journal import Journal
from flowstack.testing.standin.values import Reply, Request
from flowstack.usage.meters import meter_for
from flowstack.usage.model import Outcome
from flowstack.usage.operations import operation_of
from tests.usage.fixtures import outcome_of

TALK = {"model": "gpt-4o", "messages": [{"role": "user", "content": "a few words to say"}], "max_tokens": 50}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", TALK),
    ("chat/completions", TALK | WITH_USAGE),
    ("completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a few words"}),
    ("completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a few words", **WITH_USAGE}),
    ("responses", {"model": "gpt-5", "input": "a few words"}),
    ("responses", {"model": "gpt-5", "input": "a few words", "stream": True}),
    ("responses", {"model": "gpt-5", "input": "a few words", "stream": True, "max_output_tokens": 1}),
    ("embeddings", {"model": "text-embedding-3-small", "input": ["a few", "words"]}),
    ("embeddings", {"model": "text-embedding-3-small", "input": ["a few", "words"], "encoding_format": "base64"}),
    ("embeddings", {"model": "text-embedding-3-large", "input": ["a few words"] * 60}),
    ("images/generations", {"model": "gpt-image-1", "prompt": "a few words"}),
    ("messages", TALK),
    ("messages", TALK | {"stream": True}),
]


def request(path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Request:
    headers = ((b"Authorization", b"Bearer sk-test"), (b"Content-Type", b"application/json"))
    return Request(method, f"/v1/{path}", headers, b"" if body is None else orjson.dumps(body))


def metered(asked: Request, reply: Reply) -> Outcome:
    operation = operation_of(asked.method.encode(), asked.path.removeprefix("/v1/").encode())
    assert reply.content_type is not None
    meter = meter_for(operation, reply.status, {b"content-type": reply.content_type.encode()})
    assert meter is not None
    return outcome_of(meter, reply.pieces)


@pytest.mark.parametrize(("path", "body"), CASES)
def test_the_figures_are_the_stand_in_s_own(path: str, body: dict[str, Any]) -> None:
    asked = request(path, body)
    reply, _ = App(Journal(lambda: 0.0)).answer(asked, Directives())
    usage = metered(asked, reply).usage
    assert usage is not None
    assert reply.usage is not None
    assert usage.prompt_tokens == reply.usage.prompt
    assert (usage.completion_tokens or 0) == reply.usage.completion
    assert usage.total_tokens in (reply.usage.total, None if path == "messages" else reply.usage.total)
    assert reply.usage.prompt > 0


def test_each_poll_shows_a_background_response_and_what_it_used_once_it_is_finished() -> None:
    app = App(Journal(lambda: 0.0))
    asked = request("responses", {"model": "gpt-5", "input": "a few words", "background": True})
    reply, _ = app.answer(asked, Directives())
    whole = b"".join(reply.pieces)
    identity = orjson.loads(whole)["id"]
    outcomes = []
    for _ in range(4):
        poll = request(f"responses/{identity}", method="GET")
        outcomes.append(metered(poll, app.answer(poll, Directives())[0]))
    late = [outcome.late[0] for outcome in outcomes]
    assert {one.id for one in late} == {identity}
    assert [one.finished for one in late] == [False, True, True, True]
    assert late[1].used == late[3].used
    assert late[1].used[0].usage.total_tokens
    assert {outcome.usage for outcome in outcomes} == {None}
    assert outcomes[0].model is not None
