// OpenAI's own package: whole answers, streams, tools, errors, models. Prints what it saw.
import OpenAI from "openai";

const options = { baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 };
const client = new OpenAI(options);
const messages = [{ role: "user", content: "Hello there" }];
const tools = [
  { type: "function", function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } } },
];

async function whole() {
  const { data, response, request_id } = await client.chat.completions.create({ model: "acme-chat", messages }).withResponse();
  return {
    content: data.choices[0].message.content,
    finish: data.choices[0].finish_reason,
    model: data.model,
    usage: data.usage.total_tokens,
    request_id,
    version: response.headers.get("openai-version"),
  };
}

async function streamed() {
  const stream = await client.chat.completions.create({
    model: "acme-chat",
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  const said = { text: "", finish: null, usage: null, role: null };
  for await (const chunk of stream) {
    const choice = chunk.choices[0];
    said.text += choice?.delta?.content ?? "";
    said.role ??= choice?.delta?.role ?? null;
    said.finish = choice?.finish_reason ?? said.finish;
    said.usage = chunk.usage?.completion_tokens ?? said.usage;
  }
  return said;
}

async function toolCalls() {
  const answer = await client.chat.completions.create({ model: "acme-chat", messages, tools });
  const calls = answer.choices[0].message.tool_calls;
  const runner = client.chat.completions.stream({ model: "acme-chat", messages, tools });
  const final = await runner.finalChatCompletion();
  return {
    whole: calls.map((call) => [call.id, call.function.name, JSON.parse(call.function.arguments).city]),
    content: answer.choices[0].message.content,
    streamed: final.choices[0].message.tool_calls.map((call) => [call.id, JSON.parse(call.function.arguments).city]),
    finish: final.choices[0].finish_reason,
  };
}

async function fault(promise) {
  try {
    await promise;
  } catch (error) {
    return {
      kind: error.constructor.name,
      status: error.status ?? null,
      code: error.code ?? null,
      param: error.param ?? null,
      type: error.type ?? null,
      request: /^req_[0-9a-f]{32}$/.test(error.requestID ?? ""),
    };
  }
  return null;
}

async function errors() {
  const create = (changes, other = client) => other.chat.completions.create({ model: "acme-chat", messages, ...changes });
  return {
    key: await fault(create({}, new OpenAI({ ...options, apiKey: "sk-wrong" }))),
    model: await fault(create({ model: "nobody" })),
    value: await fault(create({ temperature: 3 })),
    limit: await fault(create({})),
    provider: await fault(create({ stream: true })),
  };
}

async function lost() {
  return await fault(client.chat.completions.create({ model: "acme-chat", messages }));
}

async function broken() {
  const stream = await client.chat.completions.create({ model: "acme-chat", messages, stream: true });
  let text = "";
  const read = async () => {
    for await (const chunk of stream) text += chunk.choices[0].delta.content ?? "";
  };
  return { ...(await fault(read())), text };
}

async function left() {
  const stream = await client.chat.completions.create({ model: "acme-chat", messages, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break; // the package aborts the request
  }
  return true;
}

async function retried() {
  const patient = new OpenAI({ ...options, maxRetries: 2 });
  const answer = await patient.chat.completions.create({ model: "acme-chat", messages });
  return answer.choices[0].message.content;
}

async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return {
    ids,
    one: (await client.models.retrieve("acme/chat:7b")).id,
    lost: await fault(client.models.retrieve("globex-secret")),
  };
}

const parts = { whole, streamed, toolCalls, errors, lost, broken, left, retried, models };
const said = {};
for (const name of process.env.PARTS.split(" ")) said[name] = await parts[name]();
console.log(JSON.stringify(said));
