// Vercel's AI SDK: createOpenAI({ baseURL, headers }), by the chat and by the responses API.
import { createOpenAI } from "@ai-sdk/openai";
import { embed, generateText, streamText } from "ai";
import { run } from "./harness.mjs";

const prompt = "Say this is a test of a proxy, word by word";

const provider = ({ base_url, api_key, headers, faults }) =>
  createOpenAI({ baseURL: base_url, apiKey: api_key, headers: { ...headers, ...faults } });

const seen = ({ text, finishReason, usage }) => ({ text, finishReason, usage });

async function stream(model) {
  const result = streamText({ model, prompt, maxRetries: 0, onError: () => {} });
  const pieces = [];
  for await (const piece of result.textStream) pieces.push(piece);
  return { pieces, finishReason: await result.finishReason, usage: await result.usage };
}

const answers = {
  generate_by_chat: async (settings) =>
    seen(await generateText({ model: provider(settings).chat("gpt-4o-mini"), prompt, maxRetries: 0 })),

  generate_by_responses: async (settings) =>
    seen(await generateText({ model: provider(settings)("gpt-4o-mini"), prompt, maxRetries: 0 })),

  stream_by_chat: (settings) => stream(provider(settings).chat("gpt-4o-mini")),

  stream_by_responses: (settings) => stream(provider(settings)("gpt-4o-mini")),

  embed: async (settings) => {
    const model = provider(settings).textEmbeddingModel?.("text-embedding-3-small")
      ?? provider(settings).embeddingModel("text-embedding-3-small");
    const { embedding, usage } = await embed({ model, value: prompt, maxRetries: 0 });
    return { embedding, usage };
  },
};

await run(answers, async (job, pieces) => {
  const model = provider(job).chat("gpt-4o-mini");
  if (!job.stream) return seen(await generateText({ model, prompt, maxRetries: 0 }));
  const result = streamText({ model, prompt, maxRetries: 0, onError: () => {} });
  for await (const part of result.fullStream) {
    // The SDK does not throw from a stream: it hands the error over as a part of it.
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") pieces.push(part);
  }
  return "the stream ended as if whole";
});
