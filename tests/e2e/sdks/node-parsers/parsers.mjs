// Reads bodies as servers on Node do. A line of JSON in, {"type": the Content-Type, "body": base64}; a line out, by
// parser what a handler finds, [[name, value], …], or null where the parser refuses.

import { createInterface } from 'node:readline';
import { PassThrough } from 'node:stream';
import formidable from 'formidable';
import multer from 'multer';
import multiparty from 'multiparty';

function request(type, body) {
  const stream = new PassThrough();
  stream.headers = { 'content-type': type, 'content-length': String(body.length) };
  stream.end(body);
  return stream;
}

async function whole(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

// All that stands below a name: multer makes lists and objects of names with brackets.
function below(name, value) {
  if (value === null || typeof value !== 'object') return [[name, value]];
  return Object.values(value).flatMap((inner) => below(name, inner));
}

const upload = multer({
  storage: {
    _handleFile: (_, file, done) => void whole(file.stream).then((value) => done(null, { value }), done),
    _removeFile: (_, file, done) => done(null),
  },
}).any();

const forms = {
  multer: (type, body) =>
    new Promise((resolve, reject) => {
      const from = request(type, body);
      upload(from, {}, (error) => {
        if (error) return reject(error);
        const fields = Object.entries(from.body ?? {}).flatMap(([name, value]) => below(name, value));
        resolve([...fields, ...(from.files ?? []).map((file) => [file.fieldname, file.value])]);
      });
    }),
  formidable: async (type, body) => {
    const files = [];
    const form = formidable({
      allowEmptyFiles: true,
      minFileSize: 0,
      filename: (_name, _extension, part) => part.name,
      fileWriteStreamHandler: (file) => {
        const stream = new PassThrough();
        files.push(whole(stream).then((value) => [file.newFilename, value]));
        return stream;
      },
    });
    const [fields] = await form.parse(request(type, body));
    return [...Object.entries(fields).flatMap(([name, values]) => below(name, values)), ...(await Promise.all(files))];
  },
  multiparty: (type, body) =>
    new Promise((resolve, reject) => {
      const found = [];
      const form = new multiparty.Form();
      form.on('error', reject);
      form.on('field', (name, value) => found.push([name, value]));
      form.on('part', (part) => {
        part.on('error', () => {});
        found.push(whole(part).then((value) => [part.name, value]));
      });
      form.on('close', () => Promise.all(found).then(resolve, reject));
      form.parse(request(type, body));
    }),
  undici: async (type, body) => {
    const form = await new Response(body, { headers: { 'content-type': type } }).formData();
    return Promise.all([...form].map(async ([name, value]) => [name, value.text ? await value.text() : value]));
  },
};

const json = {
  'JSON.parse': async (_, body) =>
    Object.entries(JSON.parse(body.toString())).map(([name, value]) => [name, JSON.stringify(value)]),
  'Response.json': async (_, body) =>
    Object.entries(await new Response(body).json()).map(([name, value]) => [name, JSON.stringify(value)]),
};

// What a parser throws where nobody can catch it would end the server: it refuses, too.
let failed = () => {};
process.on('unhandledRejection', (error) => failed(error));
process.on('uncaughtException', (error) => failed(error));

for await (const line of createInterface({ input: process.stdin })) {
  const { type, body } = JSON.parse(line);
  const found = {};
  for (const [name, parser] of Object.entries(/json/i.test(type) ? json : forms)) {
    try {
      found[name] = await Promise.race([
        parser(type, Buffer.from(body, 'base64')),
        new Promise((_, reject) => {
          failed = reject;
        }),
      ]);
    } catch {
      found[name] = null;
    }
  }
  process.stdout.write(`${JSON.stringify(found)}\n`);
}
