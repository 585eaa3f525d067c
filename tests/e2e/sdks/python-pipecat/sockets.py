"""Pipecat's services for OpenAI over WebSockets: Realtime, and Responses."""

import asyncio

from harness import run
from pipecat.frames.frames import EndFrame, ErrorFrame, LLMContextFrame, LLMFullResponseEndFrame, LLMTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime.events import SessionProperties
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.services.openai.responses.llm import OpenAIResponsesLLMService


class Heard(FrameProcessor):
    """Keeps the text of one response, and ends the pipeline behind it."""

    def __init__(self):
        super().__init__()
        self.pieces = []
        self.faults = []
        self.task = None

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.pieces.append(frame.text)
        elif isinstance(frame, LLMFullResponseEndFrame):
            await self.task.queue_frame(EndFrame())
        await self.push_frame(frame, direction)


async def told(service):
    heard = Heard()
    task = PipelineTask(Pipeline([service, heard]), cancel_on_idle_timeout=False)
    heard.task = task

    @service.event_handler("on_error")
    async def failed(service, error: ErrorFrame):
        heard.faults.append(str(error.error))
        await task.cancel()

    context = LLMContext(messages=[{"role": "user", "content": "Say this is a test"}])
    await task.queue_frame(LLMContextFrame(context))
    await asyncio.wait_for(PipelineRunner(handle_sigint=False).run(task), 30)
    if heard.faults:
        raise RuntimeError(heard.faults)
    return heard.pieces


async def both(job):
    socket = job["base_url"].replace("http", "ws")
    realtime = OpenAIRealtimeLLMService(
        api_key=job["api_key"],
        base_url=f"{socket}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model="gpt-realtime", session_properties=SessionProperties(output_modalities=["text"])
        ),
    )
    responses = OpenAIResponsesLLMService(
        api_key=job["api_key"],
        ws_url=f"{socket}/responses",
        settings=OpenAIResponsesLLMService.Settings(model="gpt-4o-mini"),
    )
    return {"realtime": await told(realtime), "responses": await told(responses)}


if __name__ == "__main__":
    run(lambda job, pieces: asyncio.run(both(job)))
