"""OpenAI's Agents SDK for Python over WebSockets: a voice agent's session, and an agent on Responses."""

import asyncio

from agents import Agent, OpenAIProvider, RunConfig, Runner, set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner
from harness import run
from openai import AsyncOpenAI

set_tracing_disabled(True)


async def realtime(job):
    config = {
        "url": job["base_url"].replace("http", "ws") + "/realtime?model=gpt-realtime",
        "api_key": job["api_key"],
        "initial_model_settings": {"model_name": "gpt-realtime", "modalities": ["text"]},
    }
    if job["headers"]:  # which replace the SDK's own, Authorization too
        config["headers"] = {"Authorization": f"Bearer {job['api_key']}", **job["headers"]}
    runner = RealtimeRunner(RealtimeAgent(name="Voice", instructions="Be brief."))
    events = []
    async with await runner.run(model_config=config) as session:
        await session.send_message("Say this is a test")
        async for event in session:
            if event.type == "error":
                raise RuntimeError(event.error)
            if event.type != "raw_model_event" or event.data.type != "raw_server_event":
                continue
            if event.data.data["type"].startswith("response."):
                events.append(event.data.data)
            if event.data.data["type"] == "response.done":
                return events


async def responses(job):
    client = AsyncOpenAI(
        base_url=job["base_url"], api_key=job["api_key"], default_headers=job["headers"], max_retries=0
    )
    provider = OpenAIProvider(openai_client=client, use_responses_websocket=True)
    agent = Agent(name="Teller", model="gpt-4o-mini")
    result = await Runner.run(agent, "Tell a story in one sentence", run_config=RunConfig(model_provider=provider))
    await provider.aclose()
    usage = result.context_wrapper.usage
    return [result.final_output, usage.input_tokens, usage.output_tokens]


async def both(job):
    return {"realtime": await realtime(job), "responses": await responses(job)}


if __name__ == "__main__":
    run(lambda job, pieces: asyncio.run(both(job)))
