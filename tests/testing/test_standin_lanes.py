"""Responses over a WebSocket to the stand-in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.testing.sockets import WebSocket, websocket
from tests.testing.test_standin_organization import of, results
from tests.testing.wire import Client, until

PATH = "/v1/responses"
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


def create(ws: WebSocket, **body: Any) -> list[dict[str, Any]]:
    ws.send(type="response.create", **{"model": "gpt-4o", "input": "one two three", **body})
    return ws.until(*ENDS)


def alike(event: dict[str, Any]) -> str:
    """An event without the ids of its own."""
    text = json.dumps(event)
    for name in ("resp_", "msg_"):
        head, *rest = text.split(name)
        text = head + "".join(part[29:] for part in rest)
    return text


def test_the_events_are_those_of_the_stream_each_as_one_message(client: Client) -> None:
    asked = {"model": "gpt-4o", "input": "one two three", "metadata": {"a": "b"}, "max_output_tokens": 9}
    streamed = client.post(PATH, {**asked, "stream": True})
    events = [json.loads(line[6:]) for line in streamed.body.splitlines() if line.startswith(b"data: ")]
    with websocket(client, PATH) as ws:
        assert [alike(event) for event in create(ws, **asked)] == [alike(event) for event in events]


def test_equal_events_are_two_responses(client: Client) -> None:
    with websocket(client, PATH) as ws:
        assert create(ws)[0]["response"]["id"] != create(ws)[0]["response"]["id"]


@pytest.mark.parametrize(
    ("body", "status", "output"),
    [
        ({}, "completed", 3),
        ({"max_output_tokens": 2}, "incomplete", 2),
        ({"metadata": {"stand-in": "fail"}}, "failed", 2),
        ({"generate": False}, "completed", 0),
    ],
)
def test_a_response_ends_with_its_usage(client: Client, body: dict[str, Any], status: str, output: int) -> None:
    with websocket(client, PATH) as ws:
        last = create(ws, **body)[-1]
        assert (last["type"], last["response"]["status"]) == (f"response.{status}", status)
        usage = last["response"]["usage"]
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (3, output, 3 + output)


def test_a_warm_up_has_no_output_and_can_be_continued(client: Client) -> None:
    with websocket(client, PATH) as ws:
        warm = create(ws, generate=False)
        assert [event["type"] for event in warm] == ["response.created", "response.in_progress", "response.completed"]
        assert warm[-1]["response"]["output"] == []
        last = create(ws, previous_response_id=warm[-1]["response"]["id"])[-1]
        assert last["response"]["previous_response_id"] == warm[-1]["response"]["id"]


def test_what_is_not_stored_can_be_continued_on_its_own_connection_only(client: Client) -> None:
    with websocket(client, PATH) as ws, websocket(client, PATH) as other:
        kept = create(ws)[-1]["response"]["id"]
        loose = create(ws, store=False)[-1]["response"]["id"]
        assert create(ws, previous_response_id=loose)[-1]["type"] == "response.completed"
        assert create(other, previous_response_id=kept)[-1]["type"] == "response.completed"
        assert create(other, previous_response_id=loose) == [
            {
                "type": "error",
                "status": 400,
                "error": {
                    "message": f"Previous response with id '{loose}' not found.",
                    "type": "invalid_request_error",
                    "param": "previous_response_id",
                    "code": "previous_response_not_found",
                },
            }
        ]


def test_lanes_speak_in_turn_and_each_keeps_its_order(client: Client) -> None:
    with websocket(client, PATH) as ws:
        wanted = [("a", "one"), ("a", "two"), ("b", "three")]
        sent = [{"type": "response.create", "model": "m", "input": text, "stream_id": lane} for lane, text in wanted]
        ws.write(b"".join(bytes(ws.frames.send_data(json.dumps(event))) for event in sent))  # in one piece
        events = []
        while sum(event["type"] == "response.completed" for event in events) < 3:
            events.append(ws.event())
        lanes = [event["stream_id"] for event in events]
        assert lanes[:4] == ["a", "b", "a", "b"]
        done = [e["response"]["output"][0]["content"][0]["text"] for e in events if e["type"] == "response.completed"]
        assert done == ["one", "three", "two"]


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        ({"type": "response.create", "model": "m"}, 400, "missing_required_parameter"),
        ({"type": "response.create", "input": "x"}, 400, "missing_required_parameter"),
        ({"type": "response.create", "model": "m", "input": "x", "background": True}, 400, "invalid_value"),
        ({"type": "session.update"}, 400, "invalid_value"),
        ({}, 400, "missing_required_parameter"),
        (
            {"type": "response.create", "model": "m", "input": "x", "metadata": {"stand-in": "status=429"}},
            429,
            "rate_limit_exceeded",
        ),
        (
            {"type": "response.create", "model": "m", "input": "x", "metadata": {"stand-in": "frob"}},
            400,
            "unknown_directive",
        ),
    ],
)
def test_a_bad_event_is_an_error_of_its_lane_and_the_connection_lives_on(
    client: Client, event: dict[str, Any], status: int, code: str
) -> None:
    with websocket(client, PATH) as ws:
        ws.send(**event, stream_id="mine")
        found = ws.event()
        assert (found["type"], found["status"], found["stream_id"]) == ("error", status, "mine")
        assert found["error"]["code"] == code
        assert create(ws)[-1]["type"] == "response.completed"


def test_steering_is_refused_in_its_own_form(client: Client) -> None:
    with websocket(client, PATH) as ws:
        ws.send(type="response.steer", previous_response_id="resp_1", input="left")
        found = ws.event()
        assert (found["type"], found["error"]["code"]) == ("response.steer.failed", "steering_not_supported")


def test_the_journal_and_the_organization_count_each_response(client: Client) -> None:
    with websocket(client, PATH, "X-Client-Tag: a") as ws:
        create(ws)
        create(ws, max_output_tokens=1)
        ws.close()
        ws.closed()
    until(lambda: client.seen("a")[0]["end"] == "closed")
    counted = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert client.state()["tokens"] == {"responses": counted}
    assert client.seen("a")[0]["usage"] == counted
    [told] = results(of(client, "usage/completions", ""))
    assert (told["input_tokens"], told["output_tokens"], told["num_model_requests"]) == (6, 4, 2)
