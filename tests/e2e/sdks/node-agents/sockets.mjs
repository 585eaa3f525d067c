// OpenAI's Agents SDK for JavaScript over WebSockets: a voice agent's session, and an agent on Responses.
import { Agent, OpenAIProvider, Runner, setTracingDisabled } from "@openai/agents";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents/realtime";
import OpenAI from "openai";
import { WebSocket } from "ws";
import { run } from "./harness.mjs";

globalThis.WebSocket ??= WebSocket; // which Node has from 22 on
setTracingDisabled(true);

async function realtime({ base_url, api_key }) {
  const url = `${base_url.replace("http", "ws")}/realtime?model=gpt-realtime`;
  const transport = new OpenAIRealtimeWebSocket({ url });
  const agent = new RealtimeAgent({ name: "Voice", instructions: "Be brief." });
  const session = new RealtimeSession(agent, { transport, model: "gpt-realtime", config: { outputModalities: ["text"] } });
  const events = [];
  const done = new Promise((resolve, reject) => {
    session.on("error", ({ error }) => reject(error));
    transport.on("*", (event) => {
      events.push(event);
      if (event.type === "response.done") resolve();
    });
  });
  await session.connect({ apiKey: api_key });
  session.sendMessage("Say this is a test");
  await done;
  session.close();
  return events.filter(({ type }) => type.startsWith("response."));
}

async function responses({ base_url, api_key, headers }) {
  const openAIClient = new OpenAI({ baseURL: base_url, apiKey: api_key, defaultHeaders: headers, maxRetries: 0 });
  const modelProvider = new OpenAIProvider({ openAIClient, useResponses: true, useResponsesWebSocket: true });
  const agent = new Agent({ name: "Teller", model: "gpt-4o-mini" });
  const { finalOutput, rawResponses } = await new Runner({ modelProvider }).run(agent, "Tell a story in one sentence");
  await modelProvider.close?.();
  return [finalOutput, rawResponses.map(({ usage, output }) => ({ usage, output }))];
}

await run({}, async (job) => ({ realtime: await realtime(job), responses: await responses(job) }));
