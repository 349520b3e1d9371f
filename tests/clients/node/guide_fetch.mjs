// The guide's JavaScript clients: fetch, plain and with a reader.
const API_URL = `${process.env.BASE_URL}/chat/completions`;
const API_KEY = process.env.API_KEY;

async function chat() {
  const response = await fetch(API_URL, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${API_KEY}` },
    body: JSON.stringify({
      model: "acme-chat",
      messages: [{ role: "user", content: "Hello, who are you?" }],
    }),
  });
  const data = await response.json();
  return { status: response.status, content: data.choices[0].message.content, object: data.object };
}

async function open() {
  const response = await fetch(API_URL, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${API_KEY}` },
    body: JSON.stringify({
      model: "acme-chat",
      messages: [{ role: "user", content: "Hello, who are you?" }],
      stream: true,
    }),
  });
  return response.body.getReader();
}

function take(line, said) {
  if (!line.startsWith("data: ")) return;
  const data = line.slice(6);
  if (data === "[DONE]") {
    said.done = true;
    return;
  }
  const choice = JSON.parse(data).choices[0];
  said.text += choice.delta.content || "";
  said.finish = choice.finish_reason ?? said.finish;
}

async function unbuffered() {
  const reader = await open();
  const decoder = new TextDecoder();
  const said = { text: "", done: false, finish: null };
  while (true) {
    const { done, value } = await reader.read();
    if (done) break;
    for (const line of decoder.decode(value).split("\n")) take(line, said);
  }
  return said;
}

async function buffered() {
  const reader = await open();
  const decoder = new TextDecoder();
  const said = { text: "", done: false, finish: null };
  let buffer = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) break;
    buffer += decoder.decode(value, { stream: true });
    const lines = buffer.split("\n");
    buffer = lines.pop();
    for (const line of lines) take(line, said);
  }
  return said;
}

async function refused() {
  const response = await fetch(API_URL, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: "Bearer sk-wrong" },
    body: JSON.stringify({ model: "acme-chat", messages: [{ role: "user", content: "Hi" }] }),
  });
  return { status: response.status, code: (await response.json()).error.code };
}

const plain = await chat();
console.log(JSON.stringify({ plain, buffered: await buffered(), unbuffered: await unbuffered(), error: await refused() }));
