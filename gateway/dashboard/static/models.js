// The models that can be asked, for a <select>.

import { make } from "./dom.js";
import { Refused, said } from "./problem.js";

const STATES = {
  loading: "is being loaded: an answer takes until then",
  waiting: "waits for its turn: an answer takes until it is loaded",
  stopping: "makes room for another one: asking for it starts it again",
  sleeping: "is asleep: your first question starts its job, which can take minutes",
  failed: "did not load the last time: asking for it tries again",
};

/** {models: [{id, state}], stale: seconds since they were seen, or null}; raises Refused. */
export async function fetchModels() {
  let answer, text;
  try {
    answer = await fetch("/v1/models");
    text = await answer.text();
  } catch (error) {
    throw new Refused(0, `the gateway does not answer (${error.message})`);
  }
  if (!answer.ok) throw new Refused(answer.status, said(answer.status, text));
  const stale = answer.headers.get("x-sluice-stale");
  return { models: named(JSON.parse(text)), stale: stale === null ? null : Number(stale) };
}

/** Each name once; a model that says nothing of its state answers. */
export function named(list) {
  const found = new Map();
  for (const { id, state } of list.data ?? []) {
    if (!found.has(id) || state === "running") found.set(id, { id, state: state ?? "running" });
  }
  return [...found.values()];
}

/** Put them into `select`, those that answer first, and choose `wanted` again, also if it is not there any more. */
export function fill(select, models, wanted) {
  const [awake, others] = [true, false].map((yes) => models.filter(({ state }) => (state === "running") === yes));
  const groups = [["Answering now", awake], ["Started when you ask", others]].filter(([, all]) => all.length);
  const absent = wanted && !models.some(({ id }) => id === wanted);
  if (absent) groups.push(["Not there now", [{ id: wanted, state: "" }]]);
  select.replaceChildren(...groups.map(([label, all]) => make("optgroup", { label }, ...all.map(option))));
  select.value = wanted || (awake[0] ?? others[0])?.id || "";
}

export function option({ id, state }) {
  return make("option", { value: id, textContent: state && state !== "running" ? `${id} (${state})` : id });
}

/** What to expect of a model before it is asked. */
export function expectation(models, id) {
  const model = models.find((one) => one.id === id);
  if (!model) return models.length && id ? `${id} is not offered now` : "";
  return model.state in STATES ? `${id} ${STATES[model.state]}.` : "";
}
