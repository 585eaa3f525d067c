from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.testing.wire import Client

ADMIN = "Authorization: Bearer sk-admin-test"
KINDS = ("completions", "embeddings", "moderations", "images", "audio_speeches", "audio_transcriptions",
         "vector_stores", "code_interpreter_sessions")  # fmt: skip
TODAY = int(time.time()) // 86_400 * 86_400 - 86_400
"""Yesterday, in case that midnight passes."""


def of(client: Client, path: str, query: str = "group_by=project_id&group_by=model", key: str = ADMIN) -> Any:
    days = f"start_time={TODAY}&end_time={TODAY + 3 * 86_400}"
    return client.ask("GET", f"/v1/organization/{path}?{days}&{query}", key=key)


def results(answer: Any) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    page = answer.json
    assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
    assert all(bucket["object"] == "bucket" for bucket in page["data"])
    return [result for bucket in page["data"] for result in bucket["results"]]


def post(client: Client, path: str, body: dict[str, Any], *headers: str) -> None:
    sent = json.dumps(body).encode()
    assert client.ask("POST", path, "Content-Type: application/json", *headers, body=sent).status == 200


@pytest.mark.parametrize("path", ["costs", *(f"usage/{kind}" for kind in KINDS)])
def test_only_an_admin_key_is_told_what_an_organization_used(client: Client, path: str) -> None:
    assert results(of(client, path)) == []
    answer = of(client, path, key="Authorization: Bearer sk-test")
    assert (answer.status, answer.json["error"]["type"]) == (401, "invalid_request_error")


def test_what_was_served_is_told_by_project_and_model(client: Client) -> None:
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
    post(client, "/v1/chat/completions", asked)
    post(client, "/v1/chat/completions", asked | {"stream": True}, "OpenAI-Project: proj_a")  # not told, and billed
    post(client, "/v1/embeddings", {"model": "text-embedding-3-small", "input": "a b c d"})
    post(client, "/v1/images/generations", {"prompt": "a cat", "n": 2, "model": "gpt-image-1"})
    post(client, "/v1/audio/speech", {"model": "tts-1", "voice": "alloy", "input": "twelve chars"})
    found = {(one["project_id"], one["model"]): one for one in results(of(client, "usage/completions"))}
    assert set(found) == {("proj_default", "gpt-4o-2024-08-06"), ("proj_a", "gpt-4o-2024-08-06")}
    for one in found.values():
        assert (one["object"], one["num_model_requests"]) == ("organization.usage.completions.result", 1)
        assert (one["input_tokens"], one["output_tokens"], one["input_cached_tokens"]) == (3, 3, 0)
    (together,) = results(of(client, "usage/completions", ""))
    assert (together["input_tokens"], together["model"], together["project_id"]) == (6, None, None)
    (only,) = results(of(client, "usage/completions", "project_ids=proj_a"))
    assert only["input_tokens"] == 3
    assert results(of(client, "usage/embeddings"))[0]["input_tokens"] == 4
    assert results(of(client, "usage/images"))[0]["images"] == 2
    assert results(of(client, "usage/audio_speeches"))[0]["characters"] == 12


def test_what_it_costs_is_told_by_project_and_line_item(client: Client) -> None:
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three four"}]}
    post(client, "/v1/chat/completions", asked, "Stand-In: cached=2")
    items = results(of(client, "costs", "group_by[]=project_id&group_by[]=line_item"))
    found = {one["line_item"]: one for one in items}
    assert {item: one["amount"] for item, one in found.items()} == {
        "gpt-4o-2024-08-06, input": {"value": 5e-06, "currency": "usd"},
        "gpt-4o-2024-08-06, cached input": {"value": 2.5e-06, "currency": "usd"},
        "gpt-4o-2024-08-06, output": {"value": 4e-05, "currency": "usd"},
    }
    assert {one["project_id"] for one in found.values()} == {"proj_default"}
    (together,) = results(of(client, "costs", ""))
    assert (together["amount"]["value"], together["line_item"]) == (4.75e-05, None)


def test_days_come_in_pages(client: Client) -> None:
    seen, page = [], ""
    while True:
        answer = of(client, "costs", f"limit=2{page}").json
        seen += [bucket["start_time"] for bucket in answer["data"]]
        if not answer["has_more"]:
            break
        page = f"&page={answer['next_page']}"
    assert seen == [TODAY, TODAY + 86_400, TODAY + 2 * 86_400]


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=181", "limit"), ("limit=x", "limit"), ("bucket_width=1m", "bucket_width"), ("page=x", "page"),
     ("end_time=9999999999", "end_time")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_name(client: Client, query: str, param: str) -> None:
    answer = client.ask("GET", f"/v1/organization/costs?start_time={TODAY}&{query}", key=ADMIN)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert client.ask("GET", "/v1/organization/costs", key=ADMIN).status == 400
