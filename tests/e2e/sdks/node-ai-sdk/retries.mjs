// Vercel's AI SDK with the retries that it makes by default: what it does about a refusal.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";
import { run } from "./harness.mjs";

await run({}, async ({ base_url, api_key, headers }) => {
  const openai = createOpenAI({ baseURL: base_url, apiKey: api_key, headers });
  try {
    return (await generateText({ model: openai.chat("gpt-4o-mini"), prompt: "Hello" })).text;
  } catch (error) {
    throw error.lastError ?? error; // what it retried is wrapped
  }
});
