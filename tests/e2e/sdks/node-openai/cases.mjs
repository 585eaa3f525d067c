// OpenAI's SDK for Node; the same cases run on its newest major and on 4.
import OpenAI, { toFile } from "openai";
import { run, sha256 } from "./harness.mjs";

const model = "gpt-4o-mini";
const messages = [{ role: "user", content: "Say this is a test of a proxy, word by word" }];
const lines = Buffer.from('{"custom_id": "one"}\n'.repeat(40));

const client = ({ base_url, api_key, headers }) =>
  new OpenAI({ baseURL: base_url, apiKey: api_key, defaultHeaders: headers, maxRetries: 0, timeout: 20_000 });

async function all(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

const answers = {
  chat: (settings) => client(settings).chat.completions.create({ model, messages }),

  chat_stream: async (settings) => all(await client(settings).chat.completions.create({ model, messages, stream: true })),

  chat_stream_with_usage: async (settings) => {
    const chunks = await all(
      await client(settings).chat.completions.create({
        model, messages, stream: true, stream_options: { include_usage: true },
      }),
    );
    if (!(chunks.at(-1).usage.total_tokens > 0)) throw new Error("the last chunk carries no usage");
    return chunks;
  },

  chat_streams_at_once: (settings) => {
    const openai = client(settings);
    return Promise.all(
      [...Array(20).keys()].map(async (number) =>
        all(
          await openai.chat.completions.create({
            model, messages: [{ role: "user", content: `Stream number ${number}` }], stream: true,
          }),
        ),
      ),
    );
  },

  response: async (settings) => {
    const { output_text, ...response } = await client(settings).responses.create({ model, input: "Tell a story" });
    if (!output_text) throw new Error("no text");
    return response;
  },

  response_stream: async (settings) =>
    all(await client(settings).responses.create({ model, input: "Tell a story", stream: true })),

  embedding: (settings) =>
    client(settings).embeddings.create({ model: "text-embedding-3-small", input: ["The quick brown fox"] }),

  models: async (settings) => {
    const openai = client(settings);
    const listed = await all(openai.models.list());
    return [listed, await openai.models.retrieve(listed[0].id)];
  },

  files: async (settings) => {
    const openai = client(settings);
    const made = await openai.files.create({ file: await toFile(lines, "batch.jsonl"), purpose: "batch" });
    const content = Buffer.from(await (await openai.files.content(made.id)).arrayBuffer());
    const remove = openai.files.delete ?? openai.files.del;
    const deleted = await remove.call(openai.files, made.id);
    // The upstream numbers its files: the ids of two runs differ.
    return [{ ...made, id: null }, content.equals(lines), deleted.deleted && deleted.id === made.id];
  },

  speech: async (settings) => {
    const reply = await client(settings).audio.speech.create({ model: "tts-1", voice: "alloy", input: "Hello there" });
    return sha256(Buffer.from(await reply.arrayBuffer()));
  },

  transcription: async (settings) =>
    client(settings).audio.transcriptions.create({ model: "whisper-1", file: await toFile(lines, "talk.wav") }),

  upstream_headers: async (settings) => {
    const { data, response } = await client(settings).chat.completions.create({ model, messages }).withResponse();
    return { headers: Object.fromEntries(response.headers.entries()), request_id: data._request_id, answer: data };
  },

  first_piece_early: async (settings) => {
    const stream = await client(settings).chat.completions.create(
      { model, messages, stream: true },
      { headers: { "Stand-In": "chunks=10;gap=0.1" } },
    );
    const arrived = [];
    for await (const _ of stream) arrived.push(performance.now());
    return arrived.at(-1) - arrived[0] > 400;
  },
};

await run(answers, async (job, pieces) => {
  const answered = await client(job).chat.completions.create(
    { model, messages, stream: job.stream ?? false },
    { headers: job.faults ?? {} },
  );
  if (!job.stream) return answered;
  for await (const piece of answered) pieces.push(piece);
  return "the stream ended as if whole";
});
