// OpenAI's SDK for Node with its own retries left on: what it does about a refusal.
import OpenAI from "openai";
import { run } from "./harness.mjs";

await run({}, async ({ base_url, api_key, headers }) => {
  const openai = new OpenAI({ baseURL: base_url, apiKey: api_key, defaultHeaders: headers, maxRetries: 3 });
  const begun = performance.now();
  await openai.chat.completions.create({ model: "gpt-4o-mini", messages: [{ role: "user", content: "Hello" }] });
  return (performance.now() - begun) / 1000;
});
