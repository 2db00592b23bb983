// The same request for a terminal and for a program.

const KEY = "SLUICE_KEY";

/** `withKey`: whether this gateway wants one; it is taken from the environment, so that none is shown. */
export function curl(base, body, withKey) {
  const lines = [`curl -N ${base}/v1/chat/completions`, '-H "Content-Type: application/json"'];
  if (withKey) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  lines.push(`-d ${shellWord(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

export function python(base, body, withKey) {
  const given = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, "    ")},`);
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI  # pip install openai",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${base}/v1`)}, api_key=${withKey ? `os.environ["${KEY}"]` : '"none"'})`,
    "stream = client.chat.completions.create(",
    ...given,
    ")",
    "for chunk in stream:",
    "    if chunk.choices:",
    '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
    "print()",
  ].join("\n");
}

export function shellWord(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A value of JSON as Python writes it. */
export function literal(value, indent = "") {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}    `;
  const parts = Array.isArray(value)
    ? value.map((one) => literal(one, deeper))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length < 80 && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => `${deeper}${part},\n`).join("")}${indent}${close}`;
}
