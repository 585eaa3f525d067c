"""``openai`` 0.28.1: the module-level client of 2023, with ``api_base`` and a ``headers`` argument."""

import asyncio
import hashlib
import io
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import requests
from harness import answer, run

QUESTION = [{"role": "user", "content": "Say this is a test of a proxy, word by word"}]
MODEL = "gpt-3.5-turbo"
LINES = b'{"prompt": "a", "completion": "b"}\n' * 40


def use(settings):
    openai.api_base = settings["base_url"]
    openai.api_key = settings["api_key"]
    return {"headers": settings["headers"], "request_timeout": 20}


def in_session(settings, call):
    """File and Model take no ``headers``: there a session with default headers carries the key.

    It is set before the first call, as the SDK looks for it once in a thread.
    """
    use(settings)
    session = requests.Session()
    session.headers.update(settings["headers"])
    openai.requestssession = session
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call).result()
    finally:
        openai.requestssession = None


@answer
def chat(settings):
    return openai.ChatCompletion.create(model=MODEL, messages=QUESTION, **use(settings))


@answer
def chat_async(settings):
    extra = use(settings)
    return asyncio.run(openai.ChatCompletion.acreate(model=MODEL, messages=QUESTION, **extra))


@answer
def chat_stream(settings):
    return list(openai.ChatCompletion.create(model=MODEL, messages=QUESTION, stream=True, **use(settings)))


@answer
def chat_stream_async(settings):
    async def call():
        stream = await openai.ChatCompletion.acreate(model=MODEL, messages=QUESTION, stream=True, **use(settings))
        return [chunk async for chunk in stream]

    return asyncio.run(call())


@answer
def completion(settings):
    return openai.Completion.create(model="gpt-3.5-turbo-instruct", prompt="Once upon a time", **use(settings))


@answer
def embedding(settings):
    return openai.Embedding.create(model="text-embedding-ada-002", input="The quick brown fox", **use(settings))


@answer
def models_by_session(settings):
    def call():
        listed = openai.Model.list()
        assert listed["data"]
        return [listed, openai.Model.retrieve(listed["data"][0]["id"])]

    return in_session(settings, call)


@answer
def files_by_session(settings):
    def call():
        made = openai.File.create(file=io.BytesIO(LINES), purpose="fine-tune", user_provided_filename="lines.jsonl")
        content = openai.File.download(made["id"])
        deleted = openai.File.delete(made["id"])
        # The upstream numbers its files: the ids of two runs differ.
        return [
            dict(made) | {"id": None},
            hashlib.sha256(content).hexdigest() == hashlib.sha256(LINES).hexdigest(),
            deleted["deleted"] and deleted["id"] == made["id"],
        ]

    return in_session(settings, call)


@answer
def moderation_by_session(settings):
    return in_session(settings, lambda: openai.Moderation.create(input="I am a friendly text"))


@answer
def first_piece_early(settings):
    extra = use(settings)
    extra["headers"] = extra["headers"] | {"Stand-In": "chunks=10;gap=0.1"}
    stream = openai.ChatCompletion.create(model=MODEL, messages=QUESTION, stream=True, **extra)
    arrived = [time.monotonic() for chunk in stream]
    return arrived[-1] - arrived[0] > 0.4


def attempt(job, pieces):
    extra = use(job)
    extra["headers"] = extra["headers"] | job.get("faults", {})
    # Without this, the SDK repeats a call that was answered 409 for ever.
    extra["timeout"] = 0
    answered = openai.ChatCompletion.create(model=MODEL, messages=QUESTION, stream=job.get("stream", False), **extra)
    if not job.get("stream"):
        return answered
    for chunk in answered:
        pieces.append(chunk)
    return "the stream ended as if whole"


if __name__ == "__main__":
    run(attempt)
