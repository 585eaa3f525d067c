"""The Realtime protocol of the stand-in: sessions, items, audio, responses and their usage."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.testing.sockets import WebSocket, refused, websocket
from tests.testing.wire import Answer, Client, until

REALTIME = "/v1/realtime?model=gpt-realtime"
SECOND = base64.b64encode(b"\1" * 48000).decode()
SILENCE = base64.b64encode(b"\0" * 48000).decode()
OFFER = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\n"


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def configure(ws: WebSocket, **session: Any) -> dict[str, Any]:
    ws.send(type="session.update", session={"type": "realtime", **session})
    found: dict[str, Any] = ws.until("session.updated")[-1]["session"]
    return found


def say(ws: WebSocket, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    ws.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
    ws.until("conversation.item.done")


def respond(ws: WebSocket, **response: Any) -> list[dict[str, Any]]:
    ws.send(type="response.create", response=response)
    return ws.until("response.done")


def error(ws: WebSocket, **event: Any) -> dict[str, Any]:
    ws.send(**event)
    found: dict[str, Any] = ws.until("error")[-1]["error"]
    return found


def test_the_first_event_is_the_session_with_its_model(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        event = ws.event()
        assert event["type"] == "session.created"
        session = event["session"]
        assert (session["type"], session["model"]) == ("realtime", "gpt-realtime")
        assert session["id"].startswith("sess_")


def test_an_update_changes_what_it_names_and_nothing_else(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        before = ws.event()["session"]
        after = configure(ws, audio={"input": {"turn_detection": None}}, instructions="Be brief")
        assert after["audio"]["input"] == before["audio"]["input"] | {"turn_detection": None}
        assert after["audio"]["output"] == before["audio"]["output"]
        assert after["instructions"] == "Be brief"


def test_an_item_is_added_and_done_in_order(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        ws.event()
        ids = []
        for text in ("one", "two"):
            content = [{"type": "input_text", "text": text}]
            ws.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
            events = ws.until("conversation.item.done")
            assert types(events) == ["conversation.item.added", "conversation.item.done"]
            assert {event["previous_item_id"] for event in events} == {ids[-1] if ids else None}
            ids.append(events[-1]["item"]["id"])
        ws.send(type="conversation.item.retrieve", item_id=ids[0])
        assert ws.event()["item"]["content"] == [{"type": "input_text", "text": "one"}]
        ws.send(type="conversation.item.delete", item_id=ids[0])
        assert ws.event() | {"event_id": 0} == {
            "type": "conversation.item.deleted",
            "event_id": 0,
            "item_id": ids[0],
        }
        assert error(ws, type="conversation.item.retrieve", item_id=ids[0])["code"] == "item_not_found"


def test_a_text_response_is_told_from_created_to_done(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        say(ws, "one two three")
        events = respond(ws, output_modalities=["text"])
        assert types(events) == [
            "response.created",
            "rate_limits.updated",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 3,
            "response.output_text.done",
            "response.content_part.done",
            "conversation.item.done",
            "response.output_item.done",
            "response.done",
        ]
        assert events[0]["response"]["status"] == "in_progress"
        assert "".join(event["delta"] for event in events[5:8]) == "one two three"
        done = events[-1]["response"]
        assert (done["status"], done["id"]) == ("completed", events[0]["response"]["id"])
        assert done["output"][0]["content"] == [{"type": "output_text", "text": "one two three"}]
        # Three words of the user and the five of the instructions.
        assert done["usage"] == {
            "total_tokens": 11,
            "input_tokens": 8,
            "output_tokens": 3,
            "input_token_details": {
                "text_tokens": 8,
                "audio_tokens": 0,
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 3, "audio_tokens": 0},
        }


def test_a_spoken_response_has_audio_and_its_transcript(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        say(ws, "one two")
        events = respond(ws)
        audio = [base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta"]
        assert [len(piece) for piece in audio] == [4800, 4800]  # a tenth of a second each
        spoken = [e["delta"] for e in events if e["type"] == "response.output_audio_transcript.delta"]
        assert "".join(spoken) == "one two"
        done = events[-1]["response"]
        assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "one two"}]
        assert done["usage"]["output_token_details"] == {"text_tokens": 2, "audio_tokens": 4}


def test_a_response_has_heard_the_conversation_of_which_the_last_ones_part_was_cached(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        configure(ws, instructions="Be brief", audio={"input": {"turn_detection": None}})
        say(ws, "one two three")
        first = respond(ws)[-1]["response"]["usage"]
        ws.send(type="input_audio_buffer.append", audio=SECOND)
        ws.send(type="input_audio_buffer.commit")
        ws.until("conversation.item.done")
        picture = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
        ws.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": [picture]})
        ws.until("conversation.item.done")
        second = respond(ws)[-1]["response"]["usage"]
        assert (first["input_tokens"], first["output_token_details"]["audio_tokens"]) == (5, 6)
        assert second["input_token_details"] == {
            "text_tokens": 5,
            "audio_tokens": 6 + 10,
            "image_tokens": 85,
            "cached_tokens": 5,
            "cached_tokens_details": {"text_tokens": 5, "audio_tokens": 0, "image_tokens": 0},
        }


def test_a_response_apart_from_the_conversation_leaves_it_alone(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        say(ws, "one two three")
        content = [{"type": "input_text", "text": "other"}]
        given = [{"type": "message", "role": "user", "content": content}]
        events = respond(ws, conversation="none", input=given, output_modalities=["text"], metadata={"topic": "x"})
        assert "conversation.item.added" not in types(events)
        done = events[-1]["response"]
        assert (done["conversation_id"], done["metadata"]) == (None, {"topic": "x"})
        assert done["output"][0]["content"][0]["text"] == "other"
        assert respond(ws)[-1]["response"]["output"][0]["content"][0]["transcript"] == "one two three"


def test_with_turn_detection_speech_begins_and_silence_ends_it_and_is_answered(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        ws.event()
        ws.send(type="input_audio_buffer.append", audio=SECOND)
        ws.send(type="input_audio_buffer.append", audio=SILENCE)
        events = ws.until("response.done")
        assert types(events)[:6] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
        ]
        assert (events[0]["audio_start_ms"], events[1]["audio_end_ms"]) == (0, 2000)
        assert {event["item_id"] for event in events[:3]} == {events[3]["item"]["id"]}
        assert events[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == 20


def test_a_commit_by_hand_is_answered_by_itself_where_turns_are_detected(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        ws.event()
        ws.send(type="input_audio_buffer.append", audio=SECOND)
        ws.send(type="input_audio_buffer.commit")
        assert ws.until("response.done")[-1]["response"]["status"] == "completed"


def test_without_turn_detection_a_commit_is_not_answered(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        configure(ws, audio={"input": {"turn_detection": None}})
        ws.send(type="input_audio_buffer.append", audio=SECOND)
        ws.send(type="input_audio_buffer.commit")
        ws.until("conversation.item.done")
        ws.send(type="input_audio_buffer.clear")
        assert types([ws.event()]) == ["input_audio_buffer.cleared"]
        assert error(ws, type="input_audio_buffer.commit")["code"] == "input_audio_buffer_commit_empty"


def test_who_speaks_interrupts_the_response_and_is_answered_after_it(client: Client) -> None:
    with websocket(client, REALTIME, "Stand-In: gap=0.02; chunks=500") as ws:
        ws.event()
        for audio in (SECOND, SILENCE):
            ws.send(type="input_audio_buffer.append", audio=audio)
        ws.until("response.output_audio.delta")
        for audio in (SECOND, SILENCE):
            ws.send(type="input_audio_buffer.append", audio=audio)
        events = ws.until("response.done")
        assert "input_audio_buffer.speech_started" in types(events)
        done = events[-1]["response"]
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert ws.until("response.created")[-1]["response"]["id"] != done["id"]


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("whisper-1", {"type": "duration", "seconds": 1.5}),
        ("gpt-realtime-whisper", {"type": "duration", "seconds": 1.5}),
        (
            "gpt-4o-transcribe",
            {
                "type": "tokens",
                "total_tokens": 19,
                "input_tokens": 15,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 15},
                "output_tokens": 4,
            },
        ),
    ],
)
def test_a_transcription_is_told_with_the_usage_of_its_model(client: Client, model: str, usage: Any) -> None:
    with websocket(client, "/v1/realtime?intent=transcription") as ws:
        assert ws.event()["session"]["type"] == "transcription"
        wish = {"type": "transcription", "audio": {"input": {"transcription": {"model": model}}}}
        ws.send(type="session.update", session=wish)
        ws.until("session.updated")
        ws.send(type="input_audio_buffer.append", audio=base64.b64encode(b"\1" * 72000).decode())
        ws.send(type="input_audio_buffer.commit")
        events = ws.until("conversation.item.input_audio_transcription.completed")
        deltas = [e["delta"] for e in events if e["type"] == "conversation.item.input_audio_transcription.delta"]
        assert "".join(deltas) == events[-1]["transcript"] == "1.5 seconds of speech"
        assert events[-1]["usage"] == usage
        assert error(ws, type="response.create")["param"] == "type"


def test_a_cancelled_response_ends_with_its_usage_so_far(client: Client) -> None:
    with websocket(client, REALTIME, "Stand-In: gap=0.02; chunks=500") as ws:
        ws.send(type="response.create", response={"output_modalities": ["text"]})
        ws.until("response.output_text.delta")
        ws.send(type="response.cancel")
        events = ws.until("response.done")
        said = 1 + types(events).count("response.output_text.delta")
        done = events[-1]["response"]
        assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "client_cancelled")
        assert done["usage"]["output_tokens"] == said < 500
        assert done["output"][0]["status"] == "incomplete"
        assert error(ws, type="response.cancel")["code"] == "response_cancel_not_active"


def test_only_one_response_at_a_time_is_made_for_the_conversation(client: Client) -> None:
    with websocket(client, REALTIME, "Stand-In: gap=0.01; chunks=50") as ws:
        ws.send(type="response.create")
        ws.until("response.created")
        assert error(ws, type="response.create")["code"] == "conversation_already_has_active_response"
        ws.send(type="response.create", response={"conversation": "none"})
        done = [ws.until("response.done")[-1]["response"] for _ in range(2)]
        assert {response["conversation_id"] is None for response in done} == {True, False}


@pytest.mark.parametrize(("modality", "said"), [("text", {"text_tokens": 4, "audio_tokens": 0}),
                                                ("audio", {"text_tokens": 1, "audio_tokens": 2})])  # fmt: skip
def test_a_limit_on_tokens_makes_a_response_incomplete(client: Client, modality: str, said: dict[str, int]) -> None:
    with websocket(client, REALTIME) as ws:
        say(ws, "one two three four five six")
        done = respond(ws, output_modalities=[modality], max_output_tokens=4)[-1]["response"]
        assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
        assert done["usage"]["output_token_details"] == said


def test_a_response_fails_halfway_when_asked_to(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        say(ws, "one two three four")
        done = respond(ws, output_modalities=["text"], metadata={"stand-in": "fail"})[-1]["response"]
        assert (done["status"], done["status_details"]["error"]["type"]) == ("failed", "server_error")
        assert done["usage"]["output_tokens"] == 2


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "nonsense"}, "invalid_value"),
        ({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_value"),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter"),
        ({"type": "session.update"}, "missing_required_parameter"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": None}}}}, "invalid_type"),
        ({"type": "session.update", "session": {"audio": []}}, "invalid_type"),
        ({"type": "session.update", "session": {"instructions": 3}}, "invalid_type"),
        ({"type": "response.create", "response": [1]}, "invalid_type"),
        ({"type": "conversation.item.create", "item": "text"}, "invalid_type"),
        ({"type": "response.create", "response": {"metadata": {"stand-in": "frob"}}}, "unknown_directive"),
        ({"type": "response.create", "response": {"metadata": {"stand-in": "status=429"}}}, "rate_limit_exceeded"),
    ],
)
def test_a_bad_event_is_an_error_that_names_it_and_the_session_lives_on(
    client: Client, event: dict[str, Any], code: str
) -> None:
    with websocket(client, REALTIME) as ws:
        found = error(ws, **event, event_id="mine")
        assert (found["code"], found["event_id"]) == (code, "mine")
        assert respond(ws)[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize("data", ["nonsense", "[1]", b"\0"])
def test_what_is_no_json_object_is_an_error(client: Client, data: str | bytes) -> None:
    with websocket(client, REALTIME) as ws:
        ws.write(bytes(ws.frames.send_data(data)))
        assert ws.until("error")[-1]["error"]["code"] == "invalid_json"


def test_the_beta_has_flat_sessions_and_its_own_names(client: Client) -> None:
    with websocket(client, REALTIME, "OpenAI-Beta: realtime=v1") as ws:
        session = ws.event()["session"]
        assert (session["modalities"], session["input_audio_format"]) == (["audio", "text"], "pcm16")
        wish = {"modalities": ["text"], "turn_detection": None, "input_audio_format": "g711_ulaw"}
        ws.send(type="session.update", session=wish)
        changed = ws.event()["session"]
        assert {name: changed[name] for name in wish} == wish
        content = [{"type": "input_text", "text": "one two"}]
        ws.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
        assert types([ws.event()]) == ["conversation.item.created"]
        ws.send(type="response.create", response={"modalities": ["text"]})
        events = ws.until("response.done")
        assert "".join(e["delta"] for e in events if e["type"] == "response.text.delta") == "one two"
        assert events[-1]["response"]["output"][0]["content"] == [{"type": "text", "text": "one two"}]


def test_the_journal_counts_what_a_session_was_told_to_have_used(client: Client) -> None:
    with websocket(client, REALTIME, "X-Client-Tag: a") as ws:
        configure(ws, instructions="Be brief", audio={"input": {"transcription": {"model": "gpt-4o-transcribe"}}})
        ws.send(type="input_audio_buffer.append", audio=SECOND)
        ws.send(type="input_audio_buffer.commit")
        usage = ws.until("response.done")[-1]["response"]["usage"]
    counted = {"prompt_tokens": 12, "completion_tokens": usage["output_tokens"], "total_tokens": usage["total_tokens"]}
    until(lambda: client.seen("a")[0]["end"] != "open")
    assert client.state()["tokens"] == {
        "realtime/transcription": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
        "realtime": counted,
    }
    [seen] = client.seen("a")
    assert seen["usage"]["total_tokens"] == 14 + usage["total_tokens"]
    assert json.loads(seen["messages"][1]["data"])["audio"] == SECOND


def secret(client: Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/realtime/client_secrets", body, "Authorization: Bearer sk-test", limit=5)
    assert answer.status == 200, answer.raw
    found: dict[str, Any] = answer.json
    return found


def test_a_client_secret_opens_the_session_that_it_was_made_for(client: Client) -> None:
    made = secret(client, session={"type": "realtime", "model": "gpt-realtime-mini", "instructions": "Be brief"})
    assert made["value"].startswith("ek_")
    assert made["session"]["model"] == "gpt-realtime-mini"
    for key, offer in (
        (f"Authorization: Bearer {made['value']}", ""),
        ("", f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{made['value']}"),
    ):
        with websocket(client, "/v1/realtime", *filter(None, [offer]), key=key) as ws:
            session = ws.event()["session"]
            assert (session["model"], session["instructions"]) == ("gpt-realtime-mini", "Be brief")


def test_a_client_secret_opens_nothing_else(client: Client) -> None:
    key = f"Authorization: Bearer {secret(client)['value']}"
    assert client.ask("GET", "/v1/models", key=key).status == 401
    assert refused(client, "/v1/responses", key=key).status == 401


def test_a_client_secret_for_a_session_of_another_shape_is_400(client: Client) -> None:
    answer = client.post("/v1/realtime/client_secrets", {"session": {"type": "realtime", "audio": 3}}, limit=5)
    assert (answer.status, answer.json["error"]["param"]) == (400, "session.audio")


def test_items_of_any_shape_are_taken_for_what_can_be_read_of_them(client: Client) -> None:
    with websocket(client, REALTIME) as ws:
        for content in (3, [3], [{"type": "input_text", "text": 3}], [{"type": 3}], [{"type": "input_audio"}]):
            ws.send(type="conversation.item.create", item={"type": "message", "role": "user", "content": content})
            ws.until("conversation.item.done")
        assert respond(ws)[-1]["response"]["status"] == "completed"


def offered(client: Client, *headers: str, body: bytes = OFFER, key: str = "Authorization: Bearer sk-test") -> Answer:
    kind = () if any(header.startswith("Content-Type") for header in headers) else ("Content-Type: application/sdp",)
    return client.ask("POST", "/v1/realtime/calls", *kind, *headers, body=body, key=key)


def test_a_call_is_answered_with_sdp_and_its_place(client: Client) -> None:
    answer = offered(client)
    assert (answer.status, answer.header("content-type")) == (201, "application/sdp")
    assert answer.body.startswith(b"v=0\r\n")
    place = answer.header("location")
    assert place is not None and place.startswith("/v1/realtime/calls/rtc_")


def test_a_calls_sideband_hears_the_call_and_is_closed_at_its_end(client: Client) -> None:
    form = (
        b"--x\r\nContent-Disposition: form-data; name=sdp\r\nContent-Type: application/sdp\r\n\r\n" + OFFER + b"\r\n"
        b"--x\r\nContent-Disposition: form-data; name=session\r\nContent-Type: application/json\r\n\r\n"
        b'{"type": "realtime", "model": "gpt-realtime-mini"}\r\n--x--\r\n'
    )
    place = offered(client, "Content-Type: multipart/form-data; boundary=x", body=form).header("location") or ""
    with websocket(client, f"/v1/realtime?call_id={place.rpartition('/')[2]}") as ws:
        assert ws.event()["session"]["model"] == "gpt-realtime-mini"
        assert ws.until("response.done")[-1]["response"]["usage"]["input_token_details"]["audio_tokens"] == 30
        assert client.ask("POST", f"{place}/hangup").status == 200
        assert ws.closed() == (1000, "")


def test_a_call_that_nobody_made_is_404_and_an_offer_that_is_none_400(client: Client) -> None:
    assert refused(client, "/v1/realtime?call_id=rtc_none").status == 404
    assert offered(client, body=b"hello").status == 400
    key = f"Authorization: Bearer {secret(client)['value']}"
    assert offered(client, key=key).status == 201
