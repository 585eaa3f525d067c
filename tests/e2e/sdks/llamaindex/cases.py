"""LlamaIndex's ``OpenAI`` language model, by ``api_base`` and ``default_headers``."""

import asyncio

from harness import answer, run
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI

QUESTION = "Say this is a test of a proxy, word by word"


def model(settings):
    return OpenAI(
        model="gpt-4o-mini",
        api_base=settings["base_url"],
        api_key=settings["api_key"],
        default_headers=settings["headers"] | settings.get("faults", {}),
        max_retries=0,
        timeout=20,
    )


def seen(reply):
    return reply.model_dump(mode="json")


@answer
def complete(settings):
    return seen(model(settings).complete(QUESTION))


@answer
def chat(settings):
    return seen(model(settings).chat([ChatMessage(role="user", content=QUESTION)]))


@answer
def stream_chat(settings):
    return [seen(piece) for piece in model(settings).stream_chat([ChatMessage(role="user", content=QUESTION)])]


@answer
def stream_chat_async(settings):
    async def call():
        pieces = await model(settings).astream_chat([ChatMessage(role="user", content=QUESTION)])
        return [seen(piece) async for piece in pieces]

    return asyncio.run(call())


def attempt(job, pieces):
    if not job.get("stream"):
        return seen(model(job).complete(QUESTION))
    for piece in model(job).stream_complete(QUESTION):
        pieces.append(piece)
    return "the stream ended as if whole"


if __name__ == "__main__":
    run(attempt)
