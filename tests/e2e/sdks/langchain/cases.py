"""LangChain's ``ChatOpenAI`` and ``OpenAIEmbeddings``, by ``base_url`` and ``default_headers``."""

import asyncio

from harness import answer, run
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

QUESTION = "Say this is a test of a proxy, word by word"


def chat_model(settings):
    return ChatOpenAI(
        model="gpt-4o-mini",
        base_url=settings["base_url"],
        api_key=settings["api_key"],
        default_headers=settings["headers"] | settings.get("faults", {}),
        max_retries=0,
        timeout=20,
    )


def seen(message):
    return message.model_dump(mode="json", exclude={"id"})


@answer
def invoke(settings):
    return seen(chat_model(settings).invoke(QUESTION))


@answer
def stream(settings):
    return [seen(chunk) for chunk in chat_model(settings).stream(QUESTION)]


@answer
def stream_async(settings):
    async def call():
        return [seen(chunk) async for chunk in chat_model(settings).astream(QUESTION)]

    return asyncio.run(call())


@answer
def embed(settings):
    """Texts as they are: counting tokens first would fetch a vocabulary from the internet."""
    return OpenAIEmbeddings(
        model="text-embedding-3-small",
        base_url=settings["base_url"],
        api_key=settings["api_key"],
        default_headers=settings["headers"],
        check_embedding_ctx_length=False,
    ).embed_query(QUESTION)


def attempt(job, pieces):
    if not job.get("stream"):
        return seen(chat_model(job).invoke(QUESTION))
    for chunk in chat_model(job).stream(QUESTION):
        pieces.append(chunk)
    return "the stream ended as if whole"


if __name__ == "__main__":
    run(attempt)
