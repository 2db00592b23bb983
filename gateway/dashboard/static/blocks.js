// A model's answer as blocks: paragraphs, headings and code. Pure, and no more than that: what is not understood stays
// the text that it is. `from` is where a block begins; with more text only the last block can still change.

const FENCE = /^(\s*)(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$/;
const INLINE =
  /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([^*]*[^*\s])\*\*|(?<![\w*])\*(?=[^\s*])([^*\n]*[^*\s])\*(?![\w*])/g;

/** [{kind: "text" | "heading" | "code", text, from, language?, closed?}, …] */
export function blocks(text) {
  const found = [];
  let open = null; // the fence of the code that we are in
  let from = 0;
  for (const line of text.split("\n")) {
    const last = found.at(-1);
    if (open !== null) {
      if (closes(line, open)) {
        last.closed = true;
        open = null;
      } else {
        last.lines.push(dedented(line, open.indent));
      }
    } else if ((open = opened(line)) !== null) {
      found.push({ kind: "code", lines: [], from, language: open.language, closed: false });
    } else if (HEADING.test(line)) {
      found.push({ kind: "heading", lines: [line.match(HEADING)[1]], from });
    } else if (line.trim() !== "" && last?.kind === "text" && last.open) {
      last.lines.push(line);
    } else if (line.trim() !== "") {
      found.push({ kind: "text", lines: [line], from, open: true });
    } else if (last) {
      last.open = false;
    }
    from += line.length + 1;
  }
  return found.map(({ lines, open: _, ...block }) => ({ ...block, text: lines.join("\n") }));
}

/** [{kind: "text" | "code" | "strong" | "em", text}, …] */
export function inline(text) {
  const found = [];
  let begin = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > begin) found.push({ kind: "text", text: text.slice(begin, match.index) });
    const [whole, , code, strong, em] = match;
    if (code !== undefined) found.push({ kind: "code", text: code });
    else found.push(strong === undefined ? { kind: "em", text: em } : { kind: "strong", text: strong });
    begin = match.index + whole.length;
  }
  if (begin < text.length) found.push({ kind: "text", text: text.slice(begin) });
  return found;
}

function opened(line) {
  const match = line.match(FENCE);
  return match && { indent: match[1].length, mark: match[2], language: match[3] };
}

function closes(line, { mark }) {
  const bare = line.trim();
  return bare.length >= mark.length && bare === mark[0].repeat(bare.length);
}

function dedented(line, indent) {
  let white = 0;
  while (white < indent && (line[white] === " " || line[white] === "\t")) white += 1;
  return line.slice(white);
}
