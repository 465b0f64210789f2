// OpenAI's client for JavaScript against a server: `node client.mjs ADDRESS`. Prints what it saw as JSON, for test_javascript.py.

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Hi" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const seen = {};

const answer = await client.chat.completions.create({ model: "fake", messages, n: 2 });
seen.chat = answer.choices.map((choice) => [choice.index, choice.message.content, choice.finish_reason]);
seen.usage = answer.usage.total_tokens;
seen.seedIsExact = Number.isSafeInteger(answer.seed);

let text = "";
let counted = null;
const stream = await client.chat.completions.create({
  model: "fake",
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  counted = chunk.usage ?? counted;
}
seen.stream = [text, counted.completion_tokens];

const called = await client.chat.completions.stream({ model: "caller", messages, tools }).finalChatCompletion();
seen.calls = called.choices[0].message.tool_calls.map((call) => [call.id, call.function.name, JSON.parse(call.function.arguments)]);
seen.reason = called.choices[0].finish_reason;

const parsed = await client.chat.completions.parse({
  model: "writer",
  messages,
  response_format: {
    type: "json_schema",
    json_schema: { name: "city", strict: true, schema: { type: "object", properties: { name: { type: "string" } } } },
  },
});
seen.parsed = parsed.choices[0].message.parsed ?? JSON.parse(parsed.choices[0].message.content);

const left = await client.chat.completions.create({ model: "endless", messages, stream: true });
for await (const chunk of left) {
  if (chunk.choices[0]?.delta?.content) break;
}
seen.left = true;

const completion = await client.completions.create({ model: "fake", prompt: ["a", "b"], echo: true });
seen.completions = completion.choices.map((choice) => choice.text);

const embedded = await client.embeddings.create({ model: "fake", input: "x" });
seen.embedding = Array.from(embedded.data[0].embedding).map((value) => Math.round(value * 1000) / 1000);

seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);
seen.model = (await client.models.retrieve("fake")).id;

seen.flagged = (await client.moderations.create({ input: "x" })).results[0].flagged;

async function failure(request) {
  try {
    await request();
    return null;
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null, error.param ?? null];
  }
}

seen.wrong = await failure(() => client.chat.completions.create({ model: "fake", messages, temperature: 3 }));
seen.unknown = await failure(() => client.chat.completions.create({ model: "nothing", messages }));
seen.broken = await failure(async () => {
  for await (const chunk of await client.chat.completions.create({ model: "broken", messages, stream: true })) void chunk;
});

console.log(JSON.stringify(seen));
