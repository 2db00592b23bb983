// One question put to /v1/chat/completions, with what can become of it.

import { said } from "./problem.js";

const MOST_PAUSE = 60; // seconds between two tries, whatever Retry-After says

/**
 * Ask, and fill `answer` with what comes. Resolves to `{state, error}`: the states of `Answer`, `refused` for an answer
 * that was none, and `stopped` when `signal` was used, which ends the engine's work as well.
 *
 * `tell` is called after each piece and, with `{waits, seconds}`, while a server that is not ready wants to be asked
 * again: such a request was not carried out, so it is repeated until it is answered or stopped.
 */
export async function ask(send, body, answer, signal, tell) {
  try {
    for (;;) {
      const response = await send(body, signal);
      const again = await refusal(response);
      if (again === null) return await read(response, answer, tell);
      if (again.seconds === null) return { state: "refused", error: again.waits };
      tell(again);
      await pause(again.seconds, signal);
    }
  } catch (error) {
    if (signal.aborted) return { state: "stopped", error: "" };
    if (error instanceof TypeError) return broken(answer, error);
    throw error;
  }
}

/** Why a response is no answer, and after how many seconds it may be; null for one that is. */
async function refusal(response) {
  if (response.ok) return null;
  const waits = said(response.status, await response.text());
  const after = Number(response.headers.get("retry-after") || NaN);
  const later = response.status === 503 && Number.isFinite(after);
  return { waits, seconds: later ? Math.min(Math.max(after, 1), MOST_PAUSE) : null };
}

async function read(response, answer, tell) {
  if (!(response.headers.get("content-type") ?? "").includes("event-stream")) {
    answer.whole(await response.text());
    return { state: answer.state, error: answer.error };
  }
  const reader = response.body.getReader();
  const characters = new TextDecoder();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    answer.feed(characters.decode(piece.value, { stream: true }));
    tell(null);
  }
  answer.feed(characters.decode());
  answer.end();
  return { state: answer.state, error: answer.error };
}

/** fetch knows one error for everything that happens to a connection. */
function broken(answer, error) {
  if (answer.error) return { state: "failed", error: answer.error };
  if (answer.first === null) return { state: "refused", error: `no answer came from the gateway (${error.message})` };
  return { state: "cut", error: "" };
}

async function pause(seconds, signal) {
  signal.throwIfAborted();
  return new Promise((done, stopped) => {
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      stopped(signal.reason);
    }, { once: true });
  });
}
