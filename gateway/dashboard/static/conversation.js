// A conversation: turns of a question and its answer, what is sent of them, and how they are kept in the tab.
//
// A turn: {question, model, text, thinking, state, error, finish, pace}. `state` is "" while it runs, then `complete`,
// `failed`, `cut`, `refused` or `stopped`.

const KEPT = "sluice.chat";
const EMPTY = { model: "", system: "", temperature: "", most: "", turns: [] };

/** A turn whose answer is about to be asked for. */
export function newTurn(question, model) {
  return { question, model, text: "", thinking: "", state: "", error: "", finish: null, pace: null };
}

/** The body for the question of the last turn. What was refused is left out, as many models want turns in order. */
export function request({ model, system, temperature, most, turns }) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  turns.forEach((turn, index) => {
    const last = index === turns.length - 1;
    if (!last && !turn.text) return;
    messages.push({ role: "user", content: turn.question });
    if (!last) messages.push({ role: "assistant", content: turn.text });
  });
  const body = { model, messages, stream: true };
  if (temperature !== "") body.temperature = Number(temperature);
  if (most !== "") body.max_tokens = Number(most);
  return body;
}

/** What is said of how an answer ended; "" for one that is as it should be. */
export function ending({ state, error, finish, text }) {
  if (state === "cut") return "The answer was cut off: it ends here, but its end never came.";
  if (state === "failed") return `The answer failed: ${error}`;
  if (state === "refused") return error;
  if (state === "stopped") return "You stopped it.";
  if (finish === "length") return "It ends here because it has as many tokens as were allowed.";
  if (state === "complete" && !text) return "The model answered without a word.";
  return "";
}

export function isBad(state) {
  return state === "cut" || state === "failed" || state === "refused";
}

/** What was kept, or an empty conversation. An answer that was under way when its page was left has been cut off. */
export function load(storage) {
  let kept = null;
  try {
    kept = JSON.parse(storage.getItem(KEPT));
  } catch {
    // Not ours, or from another version: begin anew.
  }
  if (!Array.isArray(kept?.turns)) return structuredClone(EMPTY);
  const turns = kept.turns.map((turn) => (turn.state ? turn : { ...turn, state: "cut" }));
  return { ...EMPTY, ...kept, turns };
}

/** False where the tab has no room for it. */
export function save(storage, conversation) {
  try {
    storage.setItem(KEPT, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}
