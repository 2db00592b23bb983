// Vectors as people write them, and what is asked of a Qdrant. No request is sent here.

/** The numbers in a text: JSON, or with blanks, commas or lines between them. Raises an Error that says what is wrong. */
export function numbersIn(text) {
  const bare = text.trim().replace(/^\[/, "").replace(/\]$/, "").trim();
  if (!bare) throw new Error("There is no vector yet: paste one, or let one be made.");
  return bare.split(/[\s,;]+/).filter(Boolean).map((word) => {
    const number = Number(word);
    if (!Number.isFinite(number)) throw new Error(`${JSON.stringify(word.slice(0, 40))} is no number.`);
    return number;
  });
}

/** Why a vector cannot be asked for; "" for one that can. */
export function misfit(numbers, size) {
  if (numbers.length === size) return "";
  return `The vector has ${numbers.length} numbers, but those of the collection have ${size}.`;
}

/** A direction that is as likely as any other one, of length 1. `random`: as Math.random. */
export function randomVector(size, random = Math.random) {
  const found = Array.from({ length: size }, () => normal(random));
  const length = Math.hypot(...found) || 1;
  return found.map((number) => Number((number / length).toFixed(4)));
}

function normal(random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** With as many digits as a Qdrant keeps. */
export function written(numbers) {
  return `[${numbers.map((number) => Number(number.toPrecision(7))).join(", ")}]`;
}

/** A payload as JSON, on one line where it is short. */
export function shownPayload(payload) {
  if (!payload || !Object.keys(payload).length) return "–";
  const line = JSON.stringify(payload, null, 1).replaceAll(/\n */g, " ");
  return line.length <= 100 ? line : JSON.stringify(payload, null, 2);
}

/**
 * The vectors that each point of a collection has, of Qdrant's own description: [{name, size, distance, why}]. The name
 * is "" for the only one; `why` says why it cannot be searched here, "" where it can.
 */
export function spaces(info) {
  const { vectors, sparse_vectors: sparse } = info.config?.params ?? {};
  const dense = vectors && "size" in vectors ? { "": vectors } : vectors ?? {};
  return [
    ...Object.entries(dense).map(([name, { size, distance, multivector_config: many }]) => ({
      name, size, distance, why: many ? "it is a list of vectors" : "",
    })),
    ...Object.keys(sparse ?? {}).map((name) => ({ name, size: null, distance: "", why: "it is sparse" })),
  ];
}

/** The body of Qdrant's `points/query`. `query`: a vector, or a point's id. */
export function queryBody({ query, using, limit, filter }) {
  const body = { query, limit, with_payload: true };
  if (using) body.using = using;
  if (filter.trim()) body.filter = json(filter, "The filter");
  return body;
}

/** The points in a text: a list, one of them, or Qdrant's `{"points": …}`. Raises an Error. */
export function pointsIn(text) {
  const content = json(text, "What you wrote");
  const points = content?.points ?? content;
  const list = Array.isArray(points) ? points : [points];
  if (!list.length || list.some((one) => one === null || typeof one !== "object" || Array.isArray(one))) {
    throw new Error('Write a list of points, each as {"id": 1, "vector": […], "payload": {…}}.');
  }
  return list;
}

function json(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is not JSON: ${error.message}.`);
  }
}

/** Points to begin with, of the size that the collection wants. */
export function examplePoints({ name, size }, random = Math.random) {
  const texts = ["A boat on a river", "Bread and butter", "Stars and planets"];
  const points = texts.map((text, index) => {
    const vector = randomVector(size, random);
    return { id: index + 1, vector: name ? { [name]: vector } : vector, payload: { text } };
  });
  return `[\n${points.map((point) => `  ${JSON.stringify(point)}`).join(",\n")}\n]`;
}

/** Texts, one a line, and what a model made of them, as points. `identity` gives each its id. */
export function textPoints(texts, embedded, { name }, identity) {
  return texts.map((text, index) => {
    const vector = embedded[index];
    return { id: identity(), vector: name ? { [name]: vector } : vector, payload: { text } };
  });
}

/** The vectors of an answer of /v1/embeddings, in the order of the texts. */
export function embeddings(answer) {
  const list = [...(answer.data ?? [])].sort((one, other) => one.index - other.index);
  return list.map(({ embedding }) => embedding);
}

/** Models that are likely to embed first, as no list says which do; and those that answer before those that sleep. */
export function embeddersFirst(models) {
  const likely = ({ id }) => /embed|bge|\be5\b|gte|minilm|nomic|jina|arctic|retriev/i.test(id);
  const rank = (model) => (likely(model) ? 0 : 2) + (model.state === "running" ? 0 : 1);
  return [...models].sort((one, other) => rank(one) - rank(other));
}
