// Runs the cases of one SDK for Node; speaks as harness.py does.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

export async function run(answers, attempt) {
  const job = JSON.parse(await text(process.stdin));
  if (job.answers) {
    for (const [name, answer] of Object.entries(answers)) {
      await report(name, () => answer(job.client));
    }
  }
  for (const one of job.attempts ?? []) {
    const pieces = [];
    await report(one.name, () => attempt(one, pieces), pieces);
  }
}

async function report(name, call, pieces) {
  const line = { case: name };
  try {
    line.value = (await call()) ?? null;
  } catch (error) {
    line.raised = describe(error);
  }
  if (pieces) line.pieces = pieces.length;
  console.log(JSON.stringify(line));
}

// What a program that catches the error can see of it. OpenAI's SDK and the AI SDK name the same things differently.
function describe(error) {
  const types = [];
  for (let kind = error.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) types.push(kind.name);
  const fault = error.data?.error ?? error.error ?? {};
  const headers = error.responseHeaders ?? error.headers ?? {};
  return {
    types,
    message: error.message,
    status: error.statusCode ?? error.status ?? null,
    code: fault.code ?? null,
    type: fault.type ?? null,
    headers: Object.fromEntries(headers.entries?.() ?? Object.entries(headers)),
  };
}
