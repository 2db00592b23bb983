// An answer for those who listen: whole sentences, since each word alone would be a torrent. Pure.

const END = /[.!?…][)\]"'”’»*`]*(?=\s)|\n/g;

export class Sentences {
  #said = 0; // of the text

  /** The sentences that have ended since, of all the text so far. */
  feed(text) {
    let end = this.#said;
    END.lastIndex = end;
    for (let match = END.exec(text); match !== null; match = END.exec(text)) end = END.lastIndex;
    return this.#until(text, end);
  }

  /** The rest. */
  end(text) {
    return this.#until(text, text.length);
  }

  #until(text, end) {
    const part = text.slice(this.#said, end).replaceAll(/[`*#]+/g, "").trim();
    this.#said = end;
    return part;
  }
}
