// OpenAI's Node SDK against the address in argv: what it gets, as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "not checked yet", maxRetries: 0 });
const asked = { model: "demo", messages: [{ role: "user", content: "What is a lease?" }], max_tokens: 20 };

const whole = await client.chat.completions.create(asked);
const pieces = [];
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  pieces.push(chunk.choices[0]?.delta?.content ?? "");
}
const embedded = await client.embeddings.create({ model: "minilm", input: ["A lane", "A lease"] });
const response = await client.responses.create({ model: "demo", input: "What is a lease?", max_output_tokens: 20 });
const events = [];
for await (const event of await client.responses.create({
  model: "demo",
  input: "What is a lease?",
  max_output_tokens: 20,
  stream: true,
})) {
  events.push(event);
}
let refused = null;
try {
  await client.chat.completions.create({ ...asked, temperature: 9 });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, param: error.param };
}
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    usage: { output_tokens: whole.usage.completion_tokens },
    pieces,
    response: response.output_text,
    events,
    vectors: embedded.data.map((one) => one.embedding),
    refused,
  }),
);
