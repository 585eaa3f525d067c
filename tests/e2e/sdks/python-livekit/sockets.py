"""LiveKit's plugin for OpenAI over WebSockets: its realtime model, and its model on Responses."""

import asyncio

import aiohttp
from harness import run
from livekit.agents import llm, utils
from livekit.plugins import openai


async def realtime(job):
    async with aiohttp.ClientSession() as http:
        model = openai.realtime.RealtimeModel(
            model="gpt-realtime",
            base_url=job["base_url"],
            api_key=job["api_key"],
            modalities=["text"],
            http_session=http,
        )
        session = model.session()
        done, events = asyncio.get_running_loop().create_future(), []

        def heard(event):
            if event["type"].startswith("response."):
                events.append(event)
            if event["type"] == "response.done" and not done.done():
                done.set_result(None)

        session.on("openai_server_event_received", heard)
        session.generate_reply(instructions="Say this is a test")
        await asyncio.wait_for(done, 20)
        await session.aclose()
        await model.aclose()
        return events


async def responses(job):
    # The URL is taken as it stands, path and all.
    model = openai.responses.LLM(model="gpt-4o-mini", base_url=f"{job['base_url']}/responses", api_key=job["api_key"])
    context = llm.ChatContext()
    context.add_message(role="user", content="Tell a story in one sentence")
    told = await model.chat(chat_ctx=context).collect()
    await model.aclose()
    return [told.text, told.usage.prompt_tokens, told.usage.completion_tokens]


async def both(job):
    async with utils.http_context.open():
        return {"realtime": await realtime(job), "responses": await responses(job)}


if __name__ == "__main__":
    run(lambda job, pieces: asyncio.run(both(job)))
