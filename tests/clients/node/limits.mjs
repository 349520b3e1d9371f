// OpenAI's own package with its own retries: prints what came of one request.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 2 });
let said;
try {
  const request = client.chat.completions.create({ model: "acme-echo", messages: [{ role: "user", content: "Hello there" }] });
  const { data, response } = await request.withResponse();
  said = { content: data.choices[0].message.content, remaining: response.headers.get("x-ratelimit-remaining-requests") };
} catch (error) {
  said = { status: error.status, code: error.code };
}
console.log(JSON.stringify(said));
