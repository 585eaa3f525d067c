"""The OpenAI SDK for Python holds its WebSockets with the stand-in as with OpenAI."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.processes import StandIn
from tests.e2e.sdk_runs import HERE, OPENAI_KEY, Outcome, Sdks

PROGRAM = HERE / "sdks/python-openai/sockets.py"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def outcomes(stand_in: StandIn, sdks: Sdks) -> dict[str, Outcome]:
    """What became of each of the program's cases, straight at the stand-in."""
    settings = {"base_url": f"{stand_in.url}/v1", "api_key": OPENAI_KEY, "headers": {}}
    faults = {"refused": "status=429", "closed": "ws-after=1; ws-close=1013 try again later"}
    attempts = [{"name": name, **settings, "faults": {"Stand-In": text}} for name, text in faults.items()]
    job = json.dumps({"client": settings, "answers": True, "attempts": attempts})
    lines = sdks.program("python-openai", PROGRAM.read_text("utf-8"), stdin=job, harness=True).splitlines()
    reports = [json.loads(line) for line in lines]
    return {report.pop("case"): Outcome(**report) for report in reports}


def value(outcomes: dict[str, Outcome], case: str) -> Any:
    assert outcomes[case].raised is None, outcomes[case].raised
    return outcomes[case].value


@pytest.mark.parametrize("case", ["realtime_text", "realtime_text_async"])
def test_a_realtime_session_answers_in_text(outcomes: dict[str, Outcome], case: str) -> None:
    done = value(outcomes, case)[-1]["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "Say this is a test"}]
    assert done["usage"]["total_tokens"] == 15


def test_a_realtime_session_hears_speech_and_tells_the_usage_of_both_models(outcomes: dict[str, Outcome]) -> None:
    events = {event["type"]: event for event in value(outcomes, "realtime_speech")}
    assert events["conversation.item.input_audio_transcription.completed"]["usage"]["type"] == "tokens"
    assert events["response.done"]["response"]["usage"]["input_token_details"]["audio_tokens"] == 10


def test_a_realtime_response_is_cancelled(outcomes: dict[str, Outcome]) -> None:
    assert value(outcomes, "realtime_cancelled") == ["cancelled", True]


def test_a_realtime_error_names_the_event(outcomes: dict[str, Outcome]) -> None:
    assert value(outcomes, "realtime_error")["error"]["event_id"] == "mine"


def test_a_client_secret_has_its_session(outcomes: dict[str, Outcome]) -> None:
    assert value(outcomes, "realtime_with_a_client_secret") == ["text"]


def test_a_call_is_made_and_its_sideband_heard(outcomes: dict[str, Outcome]) -> None:
    sdp, usage = value(outcomes, "realtime_call")
    assert sdp.startswith("v=0")
    assert usage["total_tokens"] > 0


def test_responses_follow_each_other_on_one_connection(outcomes: dict[str, Outcome]) -> None:
    events = value(outcomes, "responses")
    first, second = (event["response"] for event in events if event["type"] == "response.completed")
    assert second["previous_response_id"] == first["id"] != second["id"]
    assert first["usage"]["total_tokens"] == 12


def test_responses_run_in_lanes(outcomes: dict[str, Outcome]) -> None:
    events = value(outcomes, "responses_in_lanes")
    ended = {e["stream_id"]: e["response"]["output"] for e in events if e["type"] == "response.completed"}
    assert {lane: output[0]["content"][0]["text"] for lane, output in ended.items()} == {
        "one": "This is lane one",
        "two": "This is lane two",
    }


def test_a_response_that_is_unknown_is_an_error(outcomes: dict[str, Outcome]) -> None:
    found = value(outcomes, "responses_not_found")
    assert (found["status"], found["error"]["code"]) == (400, "previous_response_not_found")


def test_a_refused_handshake_and_a_close_raise_what_they_say(outcomes: dict[str, Outcome]) -> None:
    refused, closed = outcomes["refused"].raised, outcomes["closed"].raised
    assert refused is not None and closed is not None
    assert (refused["status"], refused["headers"]["retry-after"]) == (429, "1")
    assert "received 1013 (try again later) try again later" in closed["message"]
