"""The newest ``openai`` for Python: sync and async, JSON, streams, uploads and downloads."""

import asyncio
import hashlib
import io
import time

from harness import answer, run
from openai import AsyncOpenAI, OpenAI

QUESTION = [{"role": "user", "content": "Say this is a test of a proxy, word by word"}]
MODEL = "gpt-4o-mini"
AUDIO = b"RIFF" + bytes(range(256)) * 64
LINES = b'{"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n' * 40


def client(settings, kind=OpenAI):
    return kind(
        base_url=settings["base_url"],
        api_key=settings["api_key"],
        default_headers=settings["headers"],
        max_retries=0,
        timeout=20,
    )


@answer
def chat(settings):
    return client(settings).chat.completions.create(model=MODEL, messages=QUESTION).to_dict()


@answer
def chat_async(settings):
    async def call():
        async with client(settings, AsyncOpenAI) as openai:
            return (await openai.chat.completions.create(model=MODEL, messages=QUESTION)).to_dict()

    return asyncio.run(call())


@answer
def chat_stream(settings):
    stream = client(settings).chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    return [chunk.to_dict() for chunk in stream]


@answer
def chat_stream_with_usage(settings):
    stream = client(settings).chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk.to_dict() for chunk in stream]
    assert chunks[-1]["usage"]["total_tokens"] > 0, chunks[-1]
    return chunks


@answer
def chat_stream_async(settings):
    async def call():
        async with client(settings, AsyncOpenAI) as openai:
            stream = await openai.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            return [chunk.to_dict() async for chunk in stream]

    return asyncio.run(call())


@answer
def chat_streams_at_once(settings):
    async def one(openai, number):
        messages = [{"role": "user", "content": f"Stream number {number}"}]
        stream = await openai.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return [chunk.to_dict() async for chunk in stream]

    async def call():
        async with client(settings, AsyncOpenAI) as openai:
            return await asyncio.gather(*(one(openai, number) for number in range(20)))

    return asyncio.run(call())


@answer
def chat_with_a_large_prompt(settings):
    """A large prompt, far past one read of a socket, up and (as an echo) down."""
    text = "".join(f"line {number} of a long prompt\n" for number in range(20_000))
    messages = [{"role": "user", "content": text}]
    answered = client(settings).chat.completions.create(model=MODEL, messages=messages).to_json()
    return hashlib.sha256(answered.encode()).hexdigest()


@answer
def completion(settings):
    return client(settings).completions.create(model="gpt-3.5-turbo-instruct", prompt="Once upon a time").to_dict()


@answer
def response(settings):
    return client(settings).responses.create(model=MODEL, input="Tell a story in one sentence").to_dict()


@answer
def response_stream(settings):
    events = client(settings).responses.create(model=MODEL, input="Tell a story in one sentence", stream=True)
    seen = [event.to_dict() for event in events]
    assert seen[-1]["type"] == "response.completed", seen[-1]
    return seen


@answer
def embedding(settings):
    """The SDK asks for base64 by itself; the explicit form is the other one."""
    openai = client(settings)
    texts = ["The quick brown fox", "jumped over the lazy dog"]
    return [
        openai.embeddings.create(model="text-embedding-3-small", input=texts).to_dict(),
        openai.embeddings.create(model="text-embedding-3-small", input=texts, encoding_format="float").to_dict(),
    ]


@answer
def models(settings):
    openai = client(settings)
    listed = [model.to_dict() for model in openai.models.list()]
    assert listed
    return [listed, openai.models.retrieve(listed[0]["id"]).to_dict()]


@answer
def files(settings):
    openai = client(settings)
    made = openai.files.create(file=("batch.jsonl", io.BytesIO(LINES)), purpose="batch")
    content = openai.files.content(made.id).read()
    listed = made.id in [file.id for file in openai.files.list()]
    deleted = openai.files.delete(made.id)
    # The upstream numbers its files: the ids of two runs differ.
    return [
        made.to_dict() | {"id": None},
        hashlib.sha256(content).hexdigest() == hashlib.sha256(LINES).hexdigest(),
        listed,
        deleted.deleted and deleted.id == made.id,
    ]


@answer
def speech(settings):
    openai = client(settings)
    whole = openai.audio.speech.create(model="tts-1", voice="alloy", input="Hello there").content
    with openai.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="Hello there") as reply:
        streamed = b"".join(reply.iter_bytes())
    assert whole == streamed and len(whole) > 1000
    return hashlib.sha256(whole).hexdigest()


@answer
def transcription(settings):
    return client(settings).audio.transcriptions.create(model="whisper-1", file=("talk.wav", AUDIO)).to_dict()


@answer
def moderation(settings):
    return client(settings).moderations.create(model="omni-moderation-latest", input="I am a friendly text").to_dict()


@answer
def image(settings):
    return client(settings).images.generate(model="gpt-image-1", prompt="A proxy, in oil").to_dict()


@answer
def batch(settings):
    openai = client(settings)
    file = openai.files.create(file=("batch.jsonl", io.BytesIO(LINES)), purpose="batch")
    made = openai.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    again = openai.batches.retrieve(made.id).to_dict()
    openai.files.delete(file.id)
    assert again["input_file_id"] == file.id and again["id"] == made.id
    return again | {"id": None, "input_file_id": None}


@answer
def upstream_headers(settings):
    """All response headers: the test says which may differ."""
    raw = client(settings).chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
    return {"headers": dict(raw.headers), "request_id": raw.request_id, "answer": raw.parse().to_dict()}


@answer
def first_piece_early(settings):
    """Whether the pieces came one by one, over a second; what a slow start takes does not count."""
    stream = client(settings).chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, extra_headers={"Stand-In": "chunks=10;gap=0.1"}
    )
    arrived = [time.monotonic() for chunk in stream]
    return arrived[-1] - arrived[0] > 0.4


def attempt(job, pieces):
    openai = client(job)
    answered = openai.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=job.get("stream", False), extra_headers=job.get("faults", {})
    )
    if not job.get("stream"):
        return answered.to_dict()
    for chunk in answered:
        pieces.append(chunk)
    return "the stream ended as if whole"


if __name__ == "__main__":
    run(attempt)
