// The dashboard's own modules, those that touch no page. `node --test` runs it beside a copy of them in static/.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import test from "node:test";

import { Answer, pace, paceSaid } from "./static/answer.js";
import { ask } from "./static/asking.js";
import { blocks, inline } from "./static/blocks.js";
import { ending, load, newTurn, request, save } from "./static/conversation.js";
import { expectation, named } from "./static/models.js";
import { said } from "./static/problem.js";
import { Sentences } from "./static/sentences.js";
import { curl, literal, python, shellWord } from "./static/snippets.js";
import { Events } from "./static/sse.js";
import * as vectors from "./static/vectors.js";

const encoder = new TextEncoder();
const chunk = (content, more = {}) => `data: ${JSON.stringify({ choices: [{ delta: { content }, ...more }] })}\n\n`;
const DONE = "data: [DONE]\n\n";

/** All that a parser tells of a text that comes in pieces of `size`. */
function told(text, size) {
  const events = new Events();
  const found = [];
  for (let at = 0; at < text.length; at += size) found.push(...events.feed(text.slice(at, at + size)));
  return found;
}

const STREAMS = {
  "data: a\n\ndata: b\n\n": ["a", "b"],
  "data: a\r\n\r\ndata: b\r\n\r\n": ["a", "b"],
  "data: a\r\rdata: b\r\r": ["a", "b"],
  "data: a\ndata: b\n\n": ["a\nb"],
  "data:a\n\n": ["a"],
  "data:  a\n\n": [" a"],
  "data\n\n": [""],
  ": keep-alive\n\ndata: a\n\n": [": keep-alive", "a"],
  ":\n\ndata: a\n\n": [": ", "a"],
  "event: error\ndata: a\n\ndata: b\n\n": ["error a", "b"],
  "id: 1\nretry: 10\nunknown: x\ndata: a\n\n": ["a"],
  "event: x\n\ndata: a\n\n": ["a"],
  "data: a: b\n\n": ["a: b"],
  "data: a\n\ndata: half": ["a"],
  "data: a\n": [],
  "\n\n\r\n\r\n": [],
};

for (const [text, wanted] of Object.entries(STREAMS)) {
  test(`events: ${JSON.stringify(text)}`, () => {
    for (const size of [1, 2, 3, 5, 1000]) {
      const seen = told(text, size).map(({ comment, event, data }) =>
        comment !== undefined ? `: ${comment}` : event === "message" ? data : `${event} ${data}`);
      assert.deepEqual(seen, wanted, `in pieces of ${size}`);
    }
  });
}

const ANSWERS = {
  complete: [chunk("one") + chunk(" two", { finish_reason: "stop" }) + DONE, "complete", "one two", ""],
  cut: [chunk("one"), "cut", "one", ""],
  nothing: ["", "cut", "", ""],
  "cut within an event": [chunk("one") + chunk(" two").slice(0, 30), "cut", "one", ""],
  "cut within [DONE]": [chunk("one") + "data: [DO", "cut", "one", ""],
  "without the last empty line": [chunk("one") + "data: [DONE]", "complete", "one", ""],
  "with CRLF": [(chunk("one") + DONE).replaceAll("\n", "\r\n"), "complete", "one", ""],
  "an error in band": [chunk("one") + 'data: {"error": {"message": "no memory"}}\n\n' + DONE, "failed", "one", "no memory"],
  "an error that is a word": ['data: {"error": "no"}\n\n', "failed", "", "no"],
  "an error without words": ['data: {"error": {}}\n\n', "failed", "", "the engine failed, and said nothing"],
  "no JSON": ["data: <html>\n\n" + DONE, "failed", "", "an event of the answer is not JSON: <html>"],
  "JSON that is no object": ["data: null\n\n" + DONE, "failed", "", "an event of the answer is not JSON: null"],
  "nothing behind the end": [chunk("one") + DONE + chunk(" two"), "complete", "one", ""],
  "no choices": ['data: {"choices": []}\n\n' + chunk("one") + DONE, "complete", "one", ""],
};

for (const [name, [text, state, words, error]] of Object.entries(ANSWERS)) {
  test(`answer: ${name}`, () => {
    const answer = new Answer(() => 0);
    for (const piece of text) answer.feed(piece);
    answer.end();
    assert.deepEqual([answer.state, answer.text, answer.error], [state, words, error]);
  });
}

test("answer: what it waits for, what it thinks, and its numbers", () => {
  let now = 1000;
  const answer = new Answer(() => now);
  answer.feed(": keep-alive\n\n");
  assert.equal(answer.waits, "");
  answer.feed(": the model 'm' is being loaded: job 7 is PENDING\n\n");
  assert.equal(answer.waits, "the model 'm' is being loaded: job 7 is PENDING");
  assert.deepEqual([pace(answer).wait, paceSaid(pace(answer))], [null, ""]);
  now = 3000;
  answer.feed('data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n');
  now = 4000;
  answer.feed(chunk("one", { finish_reason: "length" }));
  assert.equal(paceSaid(pace(answer)), "≈ 1.00 tokens/s · ≈ 2 tokens · first after 2.00 s · 3.00 s in all");
  answer.feed('data: {"choices": [], "usage": {"completion_tokens": 21}}\n\n' + DONE);
  assert.equal(paceSaid(pace(answer)), "20.0 tokens/s · 21 tokens · first after 2.00 s · 3.00 s in all");
  assert.deepEqual([answer.thinking, answer.text, answer.finish, answer.state], ["hm", "one", "length", "complete"]);
});

test("answer: one that came whole", () => {
  const answer = new Answer(() => 0);
  answer.whole('{"choices": [{"message": {"content": "one"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}');
  assert.deepEqual([answer.state, answer.text, answer.tokens], ["complete", "one", 1]);
});

/** What becomes of a question to which `responses` are given in turn; an Error is thrown. */
async function asked(...responses) {
  const answer = new Answer(() => 0);
  const waits = [];
  const send = async () => {
    const next = responses.shift();
    if (next instanceof Error) throw next;
    return next;
  };
  const abort = new AbortController();
  const outcome = await ask(send, {}, answer, abort.signal, (again) => {
    if (!again) return;
    waits.push(again);
    if (!responses.length) abort.abort();
  });
  return { ...outcome, text: answer.text, waits };
}

function stream(...pieces) {
  const body = new ReadableStream({
    pull(controller) {
      const next = pieces.shift();
      if (next instanceof Error) controller.error(next);
      else if (next === undefined) controller.close();
      else controller.enqueue(typeof next === "string" ? encoder.encode(next) : next);
    },
  });
  return new Response(body, { headers: { "content-type": "text/event-stream; charset=utf-8" } });
}

const refused = (status, body, headers = {}) => new Response(body, { status, headers });

test("asking: a character that is cut in two", async () => {
  const bytes = encoder.encode(chunk("ß漢😀") + DONE);
  for (let at = 1; at < bytes.length; at += 1) {
    const { state, text } = await asked(stream(bytes.slice(0, at), bytes.slice(at)));
    assert.deepEqual([state, text], ["complete", "ß漢😀"]);
  }
});

test("asking: a connection that breaks is a cut answer, or none at all", async () => {
  const broken = new TypeError("network error");
  assert.equal((await asked(stream(chunk("one"), broken))).state, "cut");
  assert.equal((await asked(stream(broken))).state, "refused");
  assert.deepEqual(await asked(broken), {
    state: "refused", error: "no answer came from the gateway (network error)", text: "", waits: [],
  });
  assert.equal((await asked(stream(chunk("one") + 'data: {"error": "no"}\n\n', broken))).state, "failed");
});

test("asking: a refusal in its own words", async () => {
  const outcome = await asked(refused(400, '{"error": {"message": "too long", "type": "x"}}'));
  assert.deepEqual([outcome.state, outcome.error], ["refused", "too long"]);
  assert.equal((await asked(refused(503, '{"error": {"message": "no"}}'))).error, "no");
  assert.equal((await asked(refused(429, '{"error": {"message": "no"}}', { "retry-after": "1" }))).error, "no");
});

test("asking: what is not ready is asked again, until it is stopped", async () => {
  const busy = () => refused(503, '{"error": {"message": "it loads"}}', { "retry-after": "0.01" });
  const outcome = await asked(busy(), stream(chunk("one") + DONE));
  assert.deepEqual(outcome, { state: "complete", error: "", text: "one", waits: [{ waits: "it loads", seconds: 1 }] });
  const long = refused(503, '{"error": {"message": "it loads"}}', { "retry-after": "3600" });
  assert.deepEqual((await asked(long)).waits, [{ waits: "it loads", seconds: 60 }]);
  assert.equal((await asked(busy())).state, "stopped");
});

test("refusals of all forms", () => {
  for (const [body, words] of [
    ['{"error": {"message": "openai"}}', "openai"],
    ['{"error": "flat"}', "flat"],
    ['{"detail": "ours", "success": false, "error": "ours"}', "ours"],
    ['{"detail": [{"loc": ["body", "config", "gpu"], "msg": "too many"}, {"loc": [], "msg": "no"}]}', "config.gpu: too many; no"],
    ['{"status": {"error": "Wrong input: Vector dimension error"}, "time": 0}', "Wrong input: Vector dimension error"],
    ["<h1>it crashed</h1>", "<h1>it crashed</h1>"],
    ["", "it answered with status 500 and said nothing"],
    ["{}", "it answered with status 500 and said nothing"],
    ["null", "it answered with status 500 and said nothing"],
  ]) assert.equal(said(500, body), words, body);
});

const PROSE = "One **two** and `three`.\nStill one.\n\n## Next ##\n\n```python\nprint(1)\n\nx\n```\nLast";
const SHAPES = [
  [PROSE, ["text One **two** and `three`.\nStill one.", "heading Next", "code print(1)\n\nx", "text Last"]],
  ["", []],
  ["\n\n  \n", []],
  ["a\n```\nopen", ["text a", "code open"]],
  ["~~~\n```\n~~~\n", ["code ```"]],
  ["````\n```\n````", ["code ```"]],
  ["```\na\n`````", ["code a"]],
  ["1. so\n   ```sh\n   ls\n     -l\n   ```\n2. then", ["text 1. so", "code ls\n  -l", "text 2. then"]],
  ["# a\nb\nc", ["heading a", "text b\nc"]],
  ["#no heading", ["text #no heading"]],
  ["```not a fence``` of code", ["text ```not a fence``` of code"]],
  ["<script>alert(1)</script>", ["text <script>alert(1)</script>"]],
];

for (const [text, wanted] of SHAPES) {
  test(`blocks: ${JSON.stringify(text)}`, () => {
    const found = blocks(text);
    assert.deepEqual(found.map(({ kind, text }) => `${kind} ${text}`), wanted);
    const last = found.at(-1);
    if (last) assert.deepEqual({ ...blocks(text.slice(last.from))[0], from: last.from }, last, "it begins where it says");
  });
}

test("within a line", () => {
  const seen = (text) => inline(text).map((part) => `${part.kind} ${part.text}`);
  assert.deepEqual(seen("a `b` **c d** e"), ["text a ", "code b", "text  ", "strong c d", "text  e"]);
  assert.deepEqual(seen("``a`b`` 2 ** 3 ** 4"), ["code a`b", "text  2 ** 3 ** 4"]);
  assert.deepEqual(seen("`open **open"), ["text `open **open"]);
  assert.deepEqual(seen("`**a**`"), ["code **a**"]);
  assert.deepEqual(seen("*a b* c *d"), ["em a b", "text  c *d"]);
  for (const text of ["* one\n* two", "2*3*4", "a * b * c", "**", "****"]) assert.deepEqual(seen(text), [`text ${text}`]);
});

test("sentences come when they have ended, each once", () => {
  const sentences = new Sentences();
  const text = 'One. Two is 3.5 "long." Three\nand `four`';
  const heard = [];
  for (let end = 1; end <= text.length; end += 1) heard.push(sentences.feed(text.slice(0, end)));
  heard.push(sentences.end(text));
  assert.deepEqual(heard.filter(Boolean), ["One.", 'Two is 3.5 "long."', "Three", "and four"]);
});

const turn = (question, text, state = "complete") => ({ ...newTurn(question, "m"), text, state });

test("a conversation becomes a request, without what was refused", () => {
  const settings = { model: "m", system: " ", temperature: "", most: "" };
  const turns = [turn("a", "A"), turn("b", "", "refused"), turn("c", "C half", "cut"), newTurn("d", "m")];
  const messages = [["user", "a"], ["assistant", "A"], ["user", "c"], ["assistant", "C half"], ["user", "d"]]
    .map(([role, content]) => ({ role, content }));
  assert.deepEqual(request({ ...settings, turns }), { model: "m", messages, stream: true });
  const all = request({ ...settings, system: "be brief", temperature: "0", most: "20", turns: [turn("a", "A")] });
  assert.deepEqual([all.temperature, all.max_tokens], [0, 20]);
  assert.deepEqual(all.messages, [{ role: "system", content: "be brief" }, { role: "user", content: "a" }]);
});

test("each end has its words", () => {
  const words = (state, more = {}) => ending({ ...turn("a", "A", state), ...more });
  assert.equal(words("complete"), "");
  assert.match(words("complete", { finish: "length" }), /as many tokens as were allowed/);
  assert.match(words("complete", { text: "" }), /without a word/);
  assert.match(words("cut"), /cut off/);
  assert.match(words("failed", { error: "no memory" }), /failed: no memory/);
  assert.equal(words("refused", { error: "no" }), "no");
  assert.match(words("stopped"), /You stopped it/);
});

test("a conversation is kept, and what was under way when the page was left is cut off", () => {
  const kept = new Map();
  const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  assert.deepEqual(load(storage).turns, []);
  const conversation = { model: "m", system: "s", temperature: "", most: "", turns: [turn("a", "A"), turn("b", "B", "")] };
  assert.ok(save(storage, conversation));
  assert.deepEqual(load(storage).turns.map(({ state }) => state), ["complete", "cut"]);
  kept.set([...kept.keys()][0], "{");
  assert.deepEqual(load(storage).turns, []);
  assert.equal(save({ setItem: () => { throw new DOMException("full", "QuotaExceededError"); } }, conversation), false);
});

test("models are named once, and what to expect of each", () => {
  const list = named({ data: [{ id: "a" }, { id: "b", state: "sleeping" }, { id: "a" }, { id: "c", state: "strange" }] });
  assert.deepEqual(list, [{ id: "a", state: "running" }, { id: "b", state: "sleeping" }, { id: "c", state: "strange" }]);
  assert.equal(expectation(list, "a"), "");
  assert.match(expectation(list, "b"), /b is asleep/);
  assert.equal(expectation(list, "c"), "");
  assert.match(expectation(list, "gone"), /gone is not offered now/);
});

const BODY = { model: "a/b", messages: [{ role: "user", content: "it's \"$x\" `y` \\ ß\n" }], stream: true, temperature: 0.5 };

test("snippets", () => {
  assert.equal(shellWord("it's"), "'it'\\''s'");
  assert.ok(curl("http://x", BODY, false).startsWith("curl -N http://x/v1/chat/completions \\\n  -H"));
  assert.ok(!curl("http://x", BODY, false).includes("Authorization"));
  assert.ok(curl("http://x", BODY, true).includes('-H "Authorization: Bearer $SLUICE_KEY"'));
  assert.ok(python("http://x", BODY, true).includes('api_key=os.environ["SLUICE_KEY"]'));
  assert.equal(literal({ a: [true, false, null, 1.5, "x"] }), '{"a": [True, False, None, 1.5, "x"]}');
  const written = { body: BODY, curl: curl("http://x", BODY, true), python: python("http://x", BODY, true) };
  if (process.env.SNIPPETS) writeFileSync(process.env.SNIPPETS, JSON.stringify(written)); // a shell and Python read them
});

test("vectors as people write them", () => {
  assert.deepEqual(vectors.numbersIn("[1, -2.5, 3e-1]"), [1, -2.5, 0.3]);
  assert.deepEqual(vectors.numbersIn("1 2\n3;4"), [1, 2, 3, 4]);
  assert.throws(() => vectors.numbersIn(" [ ] "), /no vector yet/);
  assert.throws(() => vectors.numbersIn("1 two"), /"two" is no number/);
  assert.throws(() => vectors.numbersIn("1 NaN"), /is no number/);
  assert.equal(vectors.misfit([1, 2], 2), "");
  assert.equal(vectors.misfit([1], 2), "The vector has 1 numbers, but those of the collection have 2.");
  const made = vectors.randomVector(50);
  assert.equal(made.length, 50);
  assert.ok(Math.abs(Math.hypot(...made) - 1) < 0.01);
  assert.deepEqual(vectors.numbersIn(vectors.written(made)), made);
});

test("the vectors of a collection", () => {
  const params = (vectors, more = {}) => ({ config: { params: { vectors, ...more } } });
  assert.deepEqual(vectors.spaces(params({ size: 4, distance: "Dot" })), [{ name: "", size: 4, distance: "Dot", why: "" }]);
  const many = { a: { size: 2, distance: "Cosine" }, b: { size: 3, distance: "Dot", multivector_config: {} } };
  assert.deepEqual(vectors.spaces(params(many, { sparse_vectors: { w: {} } })).map(({ name, why }) => [name, why]),
    [["a", ""], ["b", "it is a list of vectors"], ["w", "it is sparse"]]);
  assert.deepEqual(vectors.spaces({}), []);
});

test("what is asked of a Qdrant", () => {
  const asked = { query: [1], using: "", limit: 3, filter: "" };
  assert.deepEqual(vectors.queryBody(asked), { query: [1], limit: 3, with_payload: true });
  const body = vectors.queryBody({ ...asked, query: 7, using: "text", filter: '{"must": []}' });
  assert.deepEqual(body, { query: 7, using: "text", filter: { must: [] }, limit: 3, with_payload: true });
  assert.throws(() => vectors.queryBody({ ...asked, filter: "{" }), /The filter is not JSON/);
  assert.deepEqual(vectors.pointsIn('{"points": [{"id": 1}]}'), [{ id: 1 }]);
  assert.deepEqual(vectors.pointsIn('{"id": 1}'), [{ id: 1 }]);
  for (const wrong of ["[]", "1", "[1]", "[[]]", "null"]) assert.throws(() => vectors.pointsIn(wrong), /Write a list of points/);
  const example = vectors.pointsIn(vectors.examplePoints({ name: "t", size: 3 }));
  assert.deepEqual(example.map(({ id, vector }) => [id, vector.t.length]), [[1, 3], [2, 3], [3, 3]]);
});

test("payloads on one line where they are short", () => {
  assert.equal(vectors.shownPayload(null), "–");
  assert.equal(vectors.shownPayload({}), "–");
  assert.equal(vectors.shownPayload({ a: "x", b: [1] }), '{ "a": "x", "b": [ 1 ] }');
  assert.ok(vectors.shownPayload({ text: "long ".repeat(40) }).startsWith('{\n  "text"'));
  assert.equal(vectors.shownPayload({ a: "two\nlines" }), '{ "a": "two\\nlines" }');
});

test("texts become points", () => {
  const answer = { data: [{ index: 1, embedding: [2] }, { index: 0, embedding: [1] }] };
  const points = vectors.textPoints(["a", "b"], vectors.embeddings(answer), { name: "" }, () => "id");
  assert.deepEqual(points, [
    { id: "id", vector: [1], payload: { text: "a" } }, { id: "id", vector: [2], payload: { text: "b" } },
  ]);
  const models = [["llama", "running"], ["bge-m3", "sleeping"], ["asleep", "sleeping"], ["qwen3-embedding", "running"]];
  const list = models.map(([id, state]) => ({ id, state }));
  assert.deepEqual(vectors.embeddersFirst(list).map(({ id }) => id), ["qwen3-embedding", "bge-m3", "llama", "asleep"]);
});
