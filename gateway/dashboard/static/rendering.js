// An answer's blocks as elements, while it grows. What stands before the last block is never touched again, so that it
// can be selected, and a long answer costs no more than a short one.

import { blocks, inline } from "./blocks.js";
import { copyButton, make } from "./dom.js";

export class Rendered {
  #from = 0; // of the last block
  #last = null; // {kind, element, inner}

  constructor(element) {
    this.element = element;
  }

  /** `text` is all of the answer so far. */
  show(text) {
    const fresh = blocks(text.slice(this.#from));
    if (fresh.length === 0) return;
    this.#replace(fresh[0]);
    for (const block of fresh.slice(1)) this.#add(block);
    this.#from += fresh.at(-1).from;
  }

  #replace(block) {
    if (this.#last?.kind === block.kind) {
      this.#last.fill(block);
    } else {
      this.#last?.element.remove();
      this.#add(block);
    }
  }

  #add(block) {
    this.#last = { kind: block.kind, ...(block.kind === "code" ? code(block) : paragraph(block)) };
    this.#last.fill(block);
    this.element.append(this.#last.element);
  }
}

function paragraph({ kind }) {
  const element = make("p", { class: kind === "heading" ? "said-heading" : "said-text" });
  return { element, fill: ({ text }) => element.replaceChildren(...inline(text).map(piece)) };
}

function piece({ kind, text }) {
  return kind === "text" ? document.createTextNode(text) : make(kind, { textContent: text });
}

function code({ language }) {
  const inner = make("code");
  const scrolls = { class: "said-code", tabIndex: 0, role: "region", ariaLabel: `Code ${language}`.trim() };
  const head = make("div", { class: "said-code-head" }, make("span", { textContent: language }));
  head.append(copyButton(() => inner.textContent));
  const element = make("div", { class: "said-code-box" }, head, make("pre", scrolls, inner));
  return { element, fill: ({ text }) => (inner.textContent = text) };
}
