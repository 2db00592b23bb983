// Server-sent events, out of text as it comes. As the HTML standard has it: a line ends with \r\n, \n or \r, one that
// begins with a colon is a comment, an empty one ends an event. Comments are told too, because our servers say in them
// what a request waits for.

const LINE_END = /[\r\n]/g;

export class Events {
  #rest = ""; // of a line whose end has not come
  #data = [];
  #name = "";
  #halved = false; // the text ended with \r, which may be the first half of \r\n

  /** What has become whole with `text`: `{comment}` or `{event, data}`, in their order. */
  feed(text) {
    const found = [];
    if (text === "") return found;
    let begin = this.#halved && text[0] === "\n" ? 1 : 0;
    this.#halved = text.endsWith("\r");
    LINE_END.lastIndex = begin;
    for (let end = LINE_END.exec(text); end !== null; end = LINE_END.exec(text)) {
      this.#take(this.#rest + text.slice(begin, end.index), found);
      this.#rest = "";
      begin = end.index + (text.startsWith("\r\n", end.index) ? 2 : 1);
      LINE_END.lastIndex = begin;
    }
    this.#rest += text.slice(begin);
    return found;
  }

  #take(line, found) {
    if (line === "") {
      if (this.#data.length) found.push({ event: this.#name || "message", data: this.#data.join("\n") });
      this.#data = [];
      this.#name = "";
    } else if (line[0] === ":") {
      found.push({ comment: line.slice(1).trim() });
    } else {
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") this.#data.push(value);
      else if (field === "event") this.#name = value;
    }
  }
}
