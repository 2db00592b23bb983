// The chat page.

import { Answer, pace } from "./answer.js";
import { ask } from "./asking.js";
import { ending, load, newTurn, request, save } from "./conversation.js";
import { copyButton, make, parts } from "./dom.js";
import { expectation, fetchModels, fill } from "./models.js";
import { Sentences } from "./sentences.js";
import { curl, python } from "./snippets.js";
import { TurnView } from "./turn.js";

const FIELDS = ["model", "system", "temperature", "most"];

class Chat {
  #models = null; // as they were listed last
  #views = [];
  #running = null; // {answer, abort, view, again} of the question that is being answered

  constructor(root) {
    this.root = root;
    this.page = parts(root);
    this.withKey = root.dataset.withKey === "true";
    this.conversation = load(sessionStorage);
    for (const name of FIELDS.slice(1)) this.page[name].value = this.conversation[name];
    for (const turn of this.conversation.turns) this.#show(turn);
    this.#listen();
    this.#settle();
    this.refresh();
  }

  #listen() {
    const { page } = this;
    page.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    page.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    page.question.addEventListener("input", () => this.#snippet());
    page.stop.addEventListener("click", () => this.#running?.abort.abort());
    page.clear.addEventListener("click", () => this.clear());
    this.root.addEventListener("keydown", (event) => event.key === "Escape" && this.#running?.abort.abort());
    document.addEventListener("live:services", () => this.refresh());
    for (const name of FIELDS) page[name].addEventListener("input", () => this.#set(name, page[name].value));
    page.language.addEventListener("input", () => this.#snippet());
    page.copy.append(copyButton(() => page.snippet.textContent));
  }

  /** Ask for the models again. */
  async refresh() {
    try {
      const { models, stale } = await fetchModels();
      if (JSON.stringify(models) !== JSON.stringify(this.#models)) {
        this.#models = models;
        fill(this.page.model, models, this.conversation.model);
        this.#set("model", this.page.model.value);
      }
      this.#expect(stale);
    } catch (error) {
      this.page.expect.textContent = `The models could not be listed: ${error.message}`;
    }
  }

  #expect(stale = null) {
    const { model } = this.conversation;
    const away = stale === null ? "" : `The cluster is away; these models were there ${stale} s ago. `;
    const none = this.#models?.length ? "" : "No model is there. Start one from a recipe, or with `sluice run MODEL`.";
    this.page.expect.textContent = away + (none || expectation(this.#models ?? [], model));
  }

  #set(name, value) {
    this.conversation[name] = value;
    if (name === "model") this.#expect();
    this.#settle();
  }

  send() {
    const { question } = this.page;
    const { model } = this.conversation;
    if (this.#running || !question.value.trim() || !this.page.form.reportValidity()) return;
    const turn = newTurn(question.value, model);
    question.value = "";
    this.conversation.turns.push(turn);
    this.#run(this.#show(turn));
  }

  retry() {
    const view = this.#views.at(-1);
    if (this.#running || !view) return;
    Object.assign(view.turn, newTurn(view.turn.question, this.conversation.model));
    this.#run(view);
  }

  clear() {
    this.#running?.abort.abort();
    this.conversation.turns = [];
    this.#views = [];
    this.page.turns.replaceChildren();
    this.page.spoken.replaceChildren();
    this.#settle();
    this.page.question.focus();
  }

  #show(turn) {
    const view = new TurnView(turn, () => this.retry());
    this.#views.push(view);
    this.page.turns.append(view.element);
    return view;
  }

  async #run(view) {
    const running = { view, answer: new Answer(() => performance.now()), abort: new AbortController(), again: null };
    this.#running = running;
    this.sentences = new Sentences();
    this.page.spoken.replaceChildren();
    view.clear();
    this.#settle();
    view.element.scrollIntoView({ block: "end" });
    const clock = setInterval(() => this.#second(running), 1000);
    this.#second(running);
    const body = { ...request(this.conversation), stream_options: { include_usage: true } };
    const outcome = await ask(post, body, running.answer, running.abort.signal, (again) => this.#piece(running, again));
    clearInterval(clock);
    this.#end(running, outcome);
  }

  /** Something has come, or the server wants to be asked again. */
  #piece(running, again) {
    running.again = again && { ...again, at: performance.now() + again.seconds * 1000 };
    running.frame ??= requestAnimationFrame(() => {
      running.frame = null;
      if (this.#running === running) this.#draw(running);
    });
  }

  #draw(running) {
    const { view, answer } = running;
    const follows = this.#atEnd();
    const { text, thinking, finish } = answer;
    Object.assign(view.turn, { text, thinking, finish, pace: answer.first === null ? null : pace(answer) });
    view.show();
    view.wait(answer.first === null ? this.#waiting(running) : "");
    this.#say(this.sentences.feed(text));
    if (follows) this.page.turns.lastElementChild?.scrollIntoView({ block: "end" });
  }

  #second(running) {
    this.#draw(running);
    save(sessionStorage, this.conversation);
  }

  /** In words what the first word waits for; what is new of it is said. */
  #waiting(running) {
    const { answer, again } = running;
    const waited = Math.round((answer.clock() - answer.began) / 1000);
    const why = again?.waits || answer.waits || expectation(this.#models ?? [], running.view.turn.model);
    if (why && running.told !== why) this.#say(why);
    running.told = why;
    if (!again) return why ? `${why} (${waited} s so far)` : `Waiting for the first word (${waited} s)`;
    const seconds = Math.max(0, Math.ceil((again.at - performance.now()) / 1000));
    return `${why} (${seconds ? `asking again in ${seconds} s` : "asking again"}; ${waited} s so far)`;
  }

  #end(running, { state, error }) {
    const { view, answer } = running;
    if (this.#running === running) this.#running = null;
    this.#draw(running);
    Object.assign(view.turn, { state, error });
    view.show();
    view.wait("");
    this.#say([this.sentences.end(answer.text), ending(view.turn)].filter(Boolean).join(" "));
    this.#settle();
    if (state !== "complete") this.refresh();
  }

  #say(words) {
    if (words) this.page.spoken.append(make("p", { textContent: words }));
  }

  #atEnd() {
    const { scrollHeight } = document.documentElement;
    return window.innerHeight + window.scrollY > scrollHeight - 80;
  }

  /** Everything that follows from the conversation and from whether an answer comes. */
  #settle() {
    const { page } = this;
    const running = this.#running !== null;
    page.send.hidden = running;
    page.stop.hidden = !running;
    page.clear.disabled = !this.conversation.turns.length;
    page.empty.hidden = this.conversation.turns.length > 0;
    this.#views.forEach((view, index) => view.offer(!running && index === this.#views.length - 1));
    page.full.hidden = save(sessionStorage, this.conversation);
    this.#snippet();
  }

  /** The request that the next question would be, else the last one. */
  #snippet() {
    const { page, conversation } = this;
    const turns = [...conversation.turns];
    if (page.question.value.trim() || !turns.length) turns.push({ question: page.question.value || "Hello" });
    const write = page.language.value === "python" ? python : curl;
    page.snippet.textContent = write(location.origin, request({ ...conversation, turns }), this.withKey);
  }
}

function post(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
}

new Chat(document.querySelector("#chat"));
