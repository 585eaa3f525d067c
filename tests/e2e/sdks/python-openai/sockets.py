"""The newest ``openai`` for Python over WebSockets, as its documentation has it: Realtime and Responses."""

import asyncio
import base64
import json

from harness import answer, run
from openai import AsyncOpenAI, OpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

MODEL = "gpt-realtime"
REALTIME = TypeAdapter(RealtimeServerEvent)
SECOND = base64.b64encode(b"\1" * 48000).decode()
TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say this is a test"}]}
OFFER = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"


def client(settings, kind=OpenAI, **more):
    headers = settings["headers"]
    return kind(
        **{"base_url": settings["base_url"], "api_key": settings["api_key"], "default_headers": headers, **more}
    )


def to_the_end(connection, end="response.done"):
    """The events up to and with the one of this type; those of Realtime as strictly as the SDK declares them."""
    events = []
    for event in connection:
        assert event.type != "error", event
        events.append(event.to_dict())
        if end == "response.done":
            REALTIME.validate_json(json.dumps(events[-1]))
        if event.type == end:
            return events
    raise AssertionError("the connection ended before its response")


@answer
def realtime_text(settings):
    with client(settings).realtime.connect(model=MODEL) as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        connection.conversation.item.create(item=TEXT)
        connection.response.create()
        return to_the_end(connection)


@answer
def realtime_text_async(settings):
    async def call():
        async with client(settings, AsyncOpenAI) as openai, openai.realtime.connect(model=MODEL) as connection:
            await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            await connection.conversation.item.create(item=TEXT)
            await connection.response.create()
            events = []
            async for event in connection:
                events.append(event.to_dict())
                if event.type == "response.done":
                    return events

    return asyncio.run(call())


@answer
def realtime_speech(settings):
    with client(settings).realtime.connect(model=MODEL) as connection:
        heard = {"transcription": {"model": "gpt-4o-transcribe"}, "turn_detection": {"type": "server_vad"}}
        connection.session.update(session={"type": "realtime", "audio": {"input": heard}})
        connection.input_audio_buffer.append(audio=SECOND)
        connection.input_audio_buffer.commit()
        return to_the_end(connection)


@answer
def realtime_cancelled(settings):
    slow = {"Stand-In": "chunks=1000; gap=0.01"}
    with client(settings).realtime.connect(model=MODEL, extra_headers=slow) as connection:
        connection.response.create(response={"output_modalities": ["text"]})
        to_the_end(connection, "response.output_text.delta")
        connection.response.cancel()
        response = to_the_end(connection)[-1]["response"]
        return [response["status"], response["usage"]["output_tokens"] < 1000]


@answer
def realtime_error(settings):
    with client(settings).realtime.connect(model=MODEL) as connection:
        connection.send({"type": "nonsense", "event_id": "mine"})
        for event in connection:
            if event.type == "error":
                return event.to_dict()


@answer
def realtime_with_a_client_secret(settings):
    session = {"type": "realtime", "model": MODEL, "output_modalities": ["text"]}
    made = client(settings).realtime.client_secrets.create(session=session)
    assert made.session.model == MODEL
    with client(settings, api_key=made.value).realtime.connect(model=MODEL) as connection:
        return next(iter(connection)).session.to_dict()["output_modalities"]


@answer
def realtime_call(settings):
    answered = client(settings).realtime.calls.create(sdp=OFFER, session={"type": "realtime", "model": MODEL})
    call = answered.response.headers["location"].rpartition("/")[2]
    with client(settings).realtime.connect(call_id=call) as connection:
        usage = to_the_end(connection)[-1]["response"]["usage"]
    client(settings).realtime.calls.hangup(call)
    return [answered.text, usage]


@answer
def responses(settings):
    with client(settings).responses.connect() as connection:
        connection.response.create(model="gpt-4o-mini", input="Tell a story in one sentence")
        first = to_the_end(connection, "response.completed")
        before = first[-1]["response"]["id"]
        connection.response.create(model="gpt-4o-mini", input="And another", previous_response_id=before)
        return first + to_the_end(connection, "response.completed")


@answer
def responses_in_lanes(settings):
    with client(settings).responses.connect() as connection:
        for lane in ("one", "two"):
            connection.response.create(model="gpt-4o-mini", input=f"This is lane {lane}", stream_id=lane)
        return to_the_end(connection, "response.completed") + to_the_end(connection, "response.completed")


@answer
def responses_not_found(settings):
    with client(settings).responses.connect() as connection:
        connection.response.create(model="gpt-4o-mini", input="x", previous_response_id="resp_unknown")
        return next(iter(connection)).to_dict()


def attempt(job, pieces):
    """A handshake that is to fail."""
    with client(job).realtime.connect(model=MODEL, extra_headers=job.get("faults", {})) as connection:
        return [event.to_dict() for event in connection]


if __name__ == "__main__":
    run(attempt)
