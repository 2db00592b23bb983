// The page of the vector databases.

import { confirmed } from "./confirm.js";
import { make, parts } from "./dom.js";
import { fetchModels, option } from "./models.js";
import { call } from "./problem.js";
import {
  embeddersFirst, embeddings, examplePoints, misfit, numbersIn, pointsIn, queryBody, randomVector, shownPayload, spaces,
  textPoints, written,
} from "./vectors.js";

const MOST_TEXTS = 64; // that a model is given at once

class VectorSearch {
  constructor(root) {
    this.page = parts(root);
    this.name = ""; // of the collection that is shown
    this.choice = { name: "" }; // the one that was chosen last
    this.spaces = [];
    this.#listen();
    const first = this.#try(() => this.refresh());
    document.addEventListener("live:services", () => first.then(() => this.#renew()));
  }

  #listen() {
    const { page } = this;
    this.#on(page.refresh, "click", () => this.refresh());
    this.#on(page.service, "input", () => this.#choose(""));
    this.#on(page.space, "input", () => this.#settle());
    this.#on(page.query, "input", () => this.#settle());
    this.#on(page.random, "click", () => this.#fill(randomVector(this.space.size)));
    this.#on(page.embed, "click", async () => this.#fill((await this.#embedded([page.text.value]))[0]));
    this.#on(page.example, "click", () => (page.points.value = examplePoints(this.space)));
    this.#on(page.create, "submit", () => this.#create(new FormData(page.create)));
    this.#on(page.search, "submit", () => this.#search(numbersIn(page.query.value)));
    this.#on(page.adding, "submit", () => this.#add(pointsIn(page.points.value)));
    this.#on(page.texting, "submit", () => this.#addTexts());
    this.#on(page.remove, "click", () => this.#remove());
    page.text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      page.embed.click();
    });
  }

  /** Whatever is wrong with it is said at the top of the page. */
  #on(element, event, work) {
    element.addEventListener(event, (happened) => {
      if (event === "submit") happened.preventDefault();
      this.#try(work);
    });
  }

  async #try(work) {
    const { trouble } = this.page;
    trouble.hidden = true;
    try {
      await work();
    } catch (error) {
      trouble.textContent = error.message;
      trouble.hidden = false;
      trouble.scrollIntoView({ block: "nearest" });
    }
  }

  get base() {
    return `/api/v1/vector-db/${encodeURIComponent(this.page.service.value)}`;
  }

  get native() {
    return `${this.base}/qdrant/collections/${encodeURIComponent(this.name)}`;
  }

  get space() {
    return this.spaces.find(({ name }) => name === this.page.space.value) ?? { name: "", size: 0, distance: "", why: "" };
  }

  /** Ask for the databases again, and for what is in the chosen one. */
  async refresh() {
    if (await this.#list()) await Promise.all([this.#choose(this.choice.name), this.#listEmbedders()]);
  }

  /** A service has changed: perhaps a database. What the user reads is left as it is. */
  async #renew() {
    const before = this.page.service.value;
    try {
      if ((await this.#list()) && this.page.service.value !== before) await this.refresh();
    } catch (error) {
      this.page.told.textContent = error.message;
    }
  }

  /** List the databases. Whether there is one that answers. */
  async #list() {
    const { page } = this;
    const { vector_db_services: all } = await call("GET", "/api/v1/vector-db/services");
    const [ready, others] = [true, false].map((yes) => all.filter(({ status }) => (status === "running") === yes));
    const chosen = page.service.value;
    page.service.replaceChildren(...ready.map(({ id, name }) => make("option", { value: id, textContent: name })));
    if (ready.some(({ id }) => id === chosen)) page.service.value = chosen;
    const waits = others.map(({ name, status }) => `${name} is ${status}`).join(", ");
    page.told.textContent = ready.length ? waits
      : `No vector database answers. ${waits || "Start one from the recipe vector-db/qdrant."}`;
    page.told.hidden = page.told.textContent === "";
    page.database.hidden = !ready.length;
    page.service.disabled = !ready.length;
    return ready.length > 0;
  }

  async #listEmbedders() {
    const { embedder } = this.page;
    const { models } = await fetchModels();
    const wanted = embedder.value;
    embedder.replaceChildren(...embeddersFirst(models).map(option));
    if (models.some(({ id }) => id === wanted)) embedder.value = wanted;
    this.page.embed.disabled = !models.length;
  }

  /** Show the collections, and the one of that name; without it the first. What was chosen last is shown. */
  async #choose(name) {
    const choice = (this.choice = { name });
    const { collections } = await call("GET", `${this.base}/collections`);
    collections.sort();
    const infos = await Promise.all(collections.map((one) => this.#info(one)));
    if (this.choice !== choice) return;
    this.name = collections.includes(name) ? name : collections[0] ?? "";
    this.#showCollections(collections.map((one, index) => this.#item(one, infos[index])));
    this.page.creating.open = !collections.length;
    this.page.collection.hidden = !this.name;
    this.#clear();
    if (this.name) this.#open(infos[collections.indexOf(this.name)]);
  }

  async #info(name) {
    return (await call("GET", `${this.base}/collections/${encodeURIComponent(name)}`)).collection_info;
  }

  /** The focus stays in the list, where it was there. */
  #showCollections(items) {
    const list = this.page.collections;
    const focused = list.contains(document.activeElement);
    list.replaceChildren(...items);
    if (focused) list.querySelector('[aria-current="true"]')?.focus();
  }

  #item(name, info) {
    const sizes = spaces(info).map(({ name, size, distance }) => [name, size && `size ${size}`, distance].filter(Boolean).join(" "));
    const button = make("button", { type: "button", class: "collection", "aria-current": String(name === this.name) },
      make("strong", { textContent: name }),
      make("span", { class: "help", textContent: `${counted(info.points_count)} · ${sizes.join(", ")}` }));
    this.#on(button, "click", () => this.#choose(name));
    return make("li", {}, button);
  }

  #open(info) {
    const { page } = this;
    page.title.textContent = this.name;
    this.spaces = spaces(info);
    const wanted = page.space.value;
    page.space.replaceChildren(...this.spaces.map(({ name, why }) =>
      make("option", { value: name, disabled: why !== "", textContent: why ? `${name} (${why})` : name || "the only one" })));
    const usable = this.spaces.filter(({ why }) => !why);
    page.space.value = (usable.find(({ name }) => name === wanted) ?? usable[0])?.name ?? "";
    page.spaces.hidden = this.spaces.length === 1 && this.spaces[0].name === "";
    this.#settle();
  }

  #settle() {
    const { size, distance } = this.space;
    let given = "";
    try {
      given = this.page.query.value.trim() && misfit(numbersIn(this.page.query.value), size);
    } catch (error) {
      given = error.message;
    }
    this.page.size.textContent = given || `${size} numbers, ${distance}`;
  }

  #clear() {
    this.page.results.hidden = true;
    this.page.found.textContent = "";
    this.page.added.textContent = "";
  }

  #fill(numbers) {
    this.page.query.value = written(numbers);
    this.#settle();
  }

  async #embedded(texts) {
    const model = this.page.embedder.value;
    if (!texts.some((text) => text.trim())) throw new Error("There is no text yet.");
    const made = embeddings(await call("POST", "/v1/embeddings", { model, input: texts }));
    const wrong = made.length ? misfit(made[0], this.space.size) : "The model made no vector.";
    if (wrong) throw new Error(`${model}: ${wrong}`);
    return made;
  }

  /** `query`: a vector, or the id of a point. */
  async #search(query) {
    const { page } = this;
    const about = { query, using: this.space.name, limit: Number(page.limit.value), filter: page.filter.value };
    const began = performance.now();
    const { result } = await call("POST", `${this.native}/points/query`, queryBody(about));
    const took = Math.round(performance.now() - began);
    page.rows.replaceChildren(...result.points.map((point) => this.#row(point)));
    page.results.hidden = !result.points.length;
    page.found.textContent = `${counted(result.points.length)} in ${took} ms`;
  }

  #row({ id, score, payload }) {
    const like = make("button", { type: "button", class: "quiet", textContent: "More like it" });
    like.setAttribute("aria-label", `More like it: ${id}`);
    this.#on(like, "click", () => this.#search(id));
    return make("tr", {},
      make("td", { class: "score", textContent: score.toFixed(4) }),
      make("th", { scope: "row", class: "point", textContent: String(id) }),
      make("td", {}, make("pre", { class: "payload", textContent: shownPayload(payload) })),
      make("td", {}, like));
  }

  async #add(points) {
    await call("PUT", `${this.native}/points?wait=true`, { points });
    await this.#choose(this.name);
    this.page.added.textContent = `${counted(points.length)} added.`;
  }

  async #addTexts() {
    const texts = this.page.texts.value.split("\n").map((text) => text.trim()).filter(Boolean);
    const points = [];
    for (let at = 0; at < Math.max(texts.length, 1); at += MOST_TEXTS) {
      const some = texts.slice(at, at + MOST_TEXTS);
      points.push(...textPoints(some, await this.#embedded(some), this.space, identity));
    }
    await this.#add(points);
    this.page.texts.value = "";
  }

  async #create(form) {
    const about = { vector_size: Number(form.get("size")), distance: form.get("distance") };
    await call("PUT", `${this.base}/collections/${encodeURIComponent(form.get("name"))}`, about);
    this.page.create.reset();
    await this.#choose(form.get("name"));
  }

  async #remove() {
    const question = `Delete the collection ${this.name}?`;
    if (!(await confirmed({ question, detail: "All its points are gone then, for ever.", yes: "Delete" }))) return;
    await call("DELETE", `${this.base}/collections/${encodeURIComponent(this.name)}`);
    await this.#choose("");
  }
}

function counted(number) {
  return `${number ?? "?"} ${number === 1 ? "point" : "points"}`;
}

/** crypto.randomUUID is only for secure contexts. */
function identity() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

new VectorSearch(document.querySelector("#vector-search"));
