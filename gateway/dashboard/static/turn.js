// One turn on the page: the question, its answer as it comes, and how it ended.

import { paceSaid } from "./answer.js";
import { ending, isBad } from "./conversation.js";
import { copyButton, make } from "./dom.js";
import { Rendered } from "./rendering.js";

export class TurnView {
  #rendered;

  constructor(turn, retry) {
    this.turn = turn;
    this.who = make("h3");
    this.said = make("div", { class: "said" });
    this.thought = make("pre", { class: "thought", tabIndex: 0, ariaLabel: "What the model thought" });
    this.thinking = make("details", { hidden: true }, make("summary", { textContent: "Thinking" }), this.thought);
    this.waits = make("p", { class: "waits", hidden: true });
    this.end = make("p", { class: "ending", hidden: true });
    this.pace = make("span", { class: "pace" });
    this.retry = make("button", { type: "button", class: "quiet", textContent: "Retry", hidden: true });
    this.retry.addEventListener("click", retry);
    this.copy = copyButton(() => turn.text);
    this.element = this.#element();
    this.#rendered = new Rendered(this.said);
    this.show();
  }

  #element() {
    const { question } = this.turn;
    const asked = make("div", { class: "said" }, make("p", { class: "said-text", textContent: question }));
    const feet = make("div", { class: "feet" }, this.pace, this.copy, this.retry);
    return make("li", { class: "turn" },
      make("div", { class: "message question" }, make("h3", { class: "visually-hidden", textContent: "You" }), asked),
      make("div", { class: "message answer" }, this.who,
        this.thinking, this.said, this.waits, this.end, feet));
  }

  /** The turn as it stands. */
  show() {
    const { model, text, thinking, state, pace } = this.turn;
    this.who.textContent = model;
    this.#rendered.show(text);
    this.thinking.hidden = !thinking;
    if (this.thought.textContent.length !== thinking.length) this.thought.textContent = thinking;
    this.copy.hidden = !text;
    this.pace.textContent = pace ? paceSaid(pace) : "";
    this.element.dataset.state = state || "running";
    this.#end(state ? ending(this.turn) : "");
  }

  #end(words) {
    this.end.hidden = !words;
    this.end.textContent = words;
    this.end.classList.toggle("bad", isBad(this.turn.state));
  }

  /** What the answer waits for; "" for nothing. */
  wait(words) {
    this.waits.hidden = !words;
    if (this.waits.textContent !== words) this.waits.textContent = words;
  }

  /** Only the last turn can be asked again, and only when it has ended. */
  offer(retry) {
    this.retry.hidden = !retry;
  }

  /** The answer is given again from its beginning. */
  clear() {
    this.said.replaceChildren();
    this.#rendered = new Rendered(this.said);
    this.show();
  }
}
