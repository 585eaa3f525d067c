// OpenAI's SDK for Node over WebSockets, as its documentation has it: Realtime and Responses.
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { ResponsesWS } from "openai/resources/responses/ws";
import { run } from "./harness.mjs";

const item = { type: "message", role: "user", content: [{ type: "input_text", text: "Say this is a test" }] };

const client = ({ base_url, api_key, headers }) =>
  new OpenAI({ baseURL: base_url, apiKey: api_key, defaultHeaders: headers, maxRetries: 0 });

const realtime = (openai) =>
  new Promise((resolve, reject) => {
    const events = [];
    const rt = new OpenAIRealtimeWS({ model: "gpt-realtime" }, openai);
    rt.on("error", reject);
    rt.on("event", (event) => events.push(event));
    rt.socket.on("open", () => {
      rt.send({ type: "session.update", session: { type: "realtime", output_modalities: ["text"] } });
      rt.send({ type: "conversation.item.create", item });
      rt.send({ type: "response.create" });
    });
    rt.on("response.done", () => rt.close());
    rt.socket.on("close", (code) => resolve([...events, code]));
  });

async function responses(openai) {
  const events = [];
  const ws = new ResponsesWS(openai);
  ws.send({ type: "response.create", model: "gpt-4o-mini", input: "Tell a story in one sentence" });
  for await (const event of ws.stream()) {
    if (event.type === "error") throw event.error;
    if (event.type !== "message") continue;
    events.push(event.message);
    if (event.message.type === "response.completed") ws.close();
  }
  return events;
}

await run({}, async (job) => ({ realtime: await realtime(client(job)), responses: await responses(client(job)) }));
