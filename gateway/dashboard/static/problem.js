// What a refusal says, in all the forms that there are: OpenAI's, ours, FastAPI's list, Qdrant's. And requests that
// raise it.

/** The sentence in an error's body, which may be JSON or text; else the status. */
export function said(status, body) {
  let content = body;
  try {
    content = JSON.parse(body);
  } catch {
    // An engine that crashes may answer with anything.
  }
  return words(content).slice(0, 2000) || `it answered with status ${status} and said nothing`;
}

export function words(content) {
  if (typeof content === "string") return content.trim();
  if (Array.isArray(content)) return content.map(complaint).filter(Boolean).join("; ");
  if (content === null || typeof content !== "object") return "";
  for (const name of ["error", "message", "detail"]) {
    if (content[name]) return words(content[name]);
  }
  return words(content.status?.error ?? "");
}

/** One of FastAPI's list, with where in the body it is. */
function complaint(one) {
  if (typeof one?.msg !== "string") return words(one);
  const where = (one.loc ?? []).filter((part) => part !== "body").join(".");
  return where ? `${where}: ${one.msg}` : one.msg;
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The JSON of an answer. Raises Refused, with status 0 where nobody answered. */
export async function call(method, path, body) {
  const asked = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    asked.headers["Content-Type"] = "application/json";
    asked.body = JSON.stringify(body);
  }
  let answer, text;
  try {
    answer = await fetch(path, asked);
    text = await answer.text();
  } catch (error) {
    throw new Refused(0, `the gateway does not answer (${error.message})`);
  }
  if (!answer.ok) throw new Refused(answer.status, said(answer.status, text));
  try {
    return JSON.parse(text);
  } catch {
    throw new Refused(answer.status, `${path} did not answer with JSON: ${text.slice(0, 200)}`);
  }
}
