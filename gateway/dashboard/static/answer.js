// An answer of a model as it comes: text in; what was said, how it ended, and how fast it was. No request is sent here.
//
// A stream is complete when its last event has come, [DONE]. An error in it stays one whatever follows, and one that
// only ends has been cut off: it is never shown as the whole answer.

import { words } from "./problem.js";
import { Events } from "./sse.js";

const SILENT = new Set(["", "keep-alive"]);

export class Answer {
  text = "";
  thinking = ""; // what reasoning models say before
  waits = ""; // what the server says that it waits for
  error = "";
  finish = null; // the engine's word for why it stopped
  tokens = null; // as the engine has counted them
  pieces = 0; // that had text
  first = null; // when the first of them came, and the last one; milliseconds of `clock`
  last = null;
  #events = new Events();
  #done = false;

  constructor(clock) {
    this.clock = clock;
    this.began = clock();
  }

  /** The state of an answer whose end has come: `complete`, `failed` or `cut`. */
  get state() {
    if (this.error) return "failed";
    return this.#done ? "complete" : "cut";
  }

  feed(text) {
    for (const event of this.#events.feed(text)) this.#take(event);
  }

  /** Nothing more comes. Some engines leave out the empty line behind their last event. */
  end() {
    this.#done ||= this.#events.feed("\n\n").some((event) => event.data === "[DONE]");
  }

  /** An answer that came whole, from an engine that does not stream. */
  whole(body) {
    this.#chunk(body);
    this.#done = true;
  }

  #take(event) {
    if (this.#done || this.error) return;
    if (event.comment !== undefined) this.waits = SILENT.has(event.comment) ? "" : event.comment;
    else if (event.data === "[DONE]") this.#done = true;
    else this.#chunk(event.data);
  }

  #chunk(data) {
    const chunk = parsed(data);
    if (chunk === null) this.error = `an event of the answer is not JSON: ${data.slice(0, 100)}`;
    else if (chunk.error) this.error = words(chunk) || "the engine failed, and said nothing";
    else this.#add(chunk);
  }

  #add(chunk) {
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    const choice = chunk.choices?.[0] ?? {};
    const said = choice.delta ?? choice.message ?? {};
    const [text, thought] = [said.content ?? "", said.reasoning_content ?? said.reasoning ?? ""];
    this.finish = choice.finish_reason ?? this.finish;
    if (text || thought) {
      this.text += text;
      this.thinking += thought;
      this.pieces += 1;
      this.last = this.clock();
      this.first ??= this.last;
    }
  }
}

function parsed(data) {
  try {
    const chunk = JSON.parse(data);
    return chunk !== null && typeof chunk === "object" ? chunk : null;
  } catch {
    return null;
  }
}

/**
 * How fast it was. `seconds`: to the last piece; `wait`: to the first one, null before it; `rate`: tokens a second
 * behind the first, null for fewer than two; `exact`: whether the engine has counted them, else each piece counts one.
 */
export function pace(answer) {
  const tokens = answer.tokens ?? answer.pieces;
  const { began, first, last } = answer;
  const between = first === null ? 0 : (last - first) / 1000;
  return {
    seconds: ((last ?? answer.clock()) - began) / 1000,
    wait: first === null ? null : (first - began) / 1000,
    tokens,
    exact: answer.tokens !== null,
    rate: tokens > 1 && between > 0 ? (tokens - 1) / between : null,
  };
}

/** The same for people. */
export function paceSaid({ seconds, wait, tokens, exact, rate }) {
  if (wait === null) return "";
  const about = exact ? "" : "≈ ";
  const parts = [`${about}${tokens} ${tokens === 1 ? "token" : "tokens"}`, `first after ${decimals(wait)} s`];
  if (rate !== null) parts.unshift(`${about}${decimals(rate)} tokens/s`);
  return [...parts, `${decimals(seconds)} s in all`].join(" · ");
}

function decimals(value) {
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}
