// openai for Node and the AI SDK: as carry.py says, with the client's name as the second argument.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const [baseURL, client, modules] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(createRequire(`${modules}/`).resolve(name)).href);
const QUESTION = "What is the capital of France? Answer in one sentence.";
const messages = (one) => [{ role: "user", content: one.prompt ?? QUESTION }];
const seconds = (one) => (one.timeout ?? 60) * 1000;

async function openaiNode() {
  const { default: OpenAI } = await load("openai");
  const api = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const limits = (one) => ({ timeout: seconds(one), maxRetries: one.retries ?? 0 });
  return {
    async chat(one) {
      const asked = { model: one.model, messages: messages(one), ...one.options };
      if (!one.stream) {
        const answer = await api.chat.completions.create(asked, limits(one));
        return { text: answer.choices[0].message.content, usage: answer.usage.completion_tokens };
      }
      const signal = AbortSignal.timeout(seconds(one)); // its own time limit ends with the head of the answer
      const stream = await api.chat.completions.create(
        { ...asked, stream: true, stream_options: { include_usage: true } }, { ...limits(one), signal });
      let text = "", usage = null;
      for await (const chunk of stream) {
        text += chunk.choices[0]?.delta?.content ?? "";
        usage = chunk.usage?.completion_tokens ?? usage;
      }
      if (signal.aborted) throw new Error("aborted"); // it takes an abort for the end of the stream
      return { text, usage };
    },
    async completion(one) {
      const answer = await api.completions.create({ model: one.model, prompt: "Once upon a", max_tokens: 4 }, limits(one));
      return { text: answer.choices[0].text };
    },
    async embedding(one) {
      const answer = await api.embeddings.create({ model: one.model, input: ["a cat", "a dog"] }, limits(one));
      return { sizes: answer.data.map((item) => item.embedding.length) };
    },
    async response(one) {
      const asked = { model: one.model, input: messages(one)[0].content, max_output_tokens: 30 };
      return { text: (await api.responses.create(asked, limits(one))).output_text };
    },
    async models(one) {
      const ids = [];
      for await (const model of api.models.list(limits(one))) ids.push(model.id);
      return { ids };
    },
    async model(one) {
      return { id: (await api.models.retrieve(one.model, limits(one))).id };
    },
  };
}

async function aiSdk() {
  const { generateText, streamText } = await load("ai");
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const provider = createOpenAICompatible({ name: "sluicegate", baseURL, apiKey: "none", includeUsage: true });
  return {
    async chat(one) {
      const asked = {
        model: provider.chatModel(one.model), messages: messages(one), maxRetries: one.retries ?? 0,
        abortSignal: AbortSignal.timeout(seconds(one)), temperature: one.options?.temperature,
        maxOutputTokens: one.options?.max_tokens,
      };
      if (!one.stream) {
        const answer = await generateText(asked);
        return { text: answer.text, usage: answer.usage.outputTokens };
      }
      let text = "", usage = null;
      const stream = streamText({ ...asked, onError: () => {} });
      for await (const part of stream.fullStream) {
        if (part.type === "error") throw part.error;
        if (part.type === "abort") throw new Error("aborted");
        if (part.type === "text-delta") text += part.text;
        if (part.type === "finish" && part.finishReason === "error") throw new Error("finished with an error");
        if (part.type === "finish") usage = part.totalUsage.outputTokens;
      }
      return { text, usage };
    },
  };
}

async function carryOut(actions, one) {
  try {
    return await actions[one.do](one);
  } catch (error) {
    const kind = error?.constructor?.name ?? typeof error;
    const status = error?.status ?? error?.statusCode ?? null;
    const text = `${error?.message ?? JSON.stringify(error)} ${error?.responseBody ?? ""}`;
    return { error: { kind: [kind], status, text: text.slice(0, 2000) } };
  }
}

const actions = client === "ai" ? await aiSdk() : await openaiNode();
const cases = JSON.parse(readFileSync(0, "utf8"));
const seen = await Promise.all(cases.map(async (one) => [one.name, await carryOut(actions, one)]));
process.stdout.write(JSON.stringify(Object.fromEntries(seen)));
