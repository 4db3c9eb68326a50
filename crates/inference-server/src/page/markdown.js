// Markdown as elements. Text only ever becomes text nodes, so nothing that a model writes can be markup of its own.

const element = (name, ...children) => {
  const made = document.createElement(name);
  made.append(...children);
  return made;
};

/** Renders a text into a list of elements. */
export function render(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}>\s?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+/;
const DEEPEST = 20;

function blocks(lines, depth) {
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const start = at;
    if (!line.trim()) {
      at += 1;
    } else if (FENCE.test(line)) {
      at = fence(lines, at, made);
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      made.push(element(`h${Math.min(6, marks.length + 1)}`, ...inline(title)));
      at += 1;
    } else if (RULE.test(line)) {
      made.push(element("hr"));
      at += 1;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      while (at < lines.length && QUOTE.test(lines[at])) at += 1;
      const inner = lines.slice(start, at).map((quoted) => quoted.replace(QUOTE, ""));
      made.push(element("blockquote", ...blocks(inner, depth + 1)));
    } else if (ITEM.test(line) && depth < DEEPEST) {
      at = list(lines, at, made, depth);
    } else if (isTable(lines, at)) {
      at = table(lines, at, made);
    } else {
      at = paragraph(lines, at, made);
    }
  }
  return made;
}

function fence(lines, at, made) {
  const [, mark, language] = FENCE.exec(lines[at]);
  const code = [];
  at += 1;
  const isEnd = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  while (at < lines.length && !isEnd(lines[at])) code.push(lines[at++]);
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.dataset.copy = "code";
  const body = element("code", code.join("\n"));
  if (language) body.dataset.language = language;
  const box = element("div", element("pre", body), copy);
  box.className = "code";
  made.push(box);
  return at + 1;
}

function list(lines, at, made, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = element(ordered ? "ol" : "ul");
  if (ordered && parseInt(mark, 10) !== 1) items.start = parseInt(mark, 10);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length !== indent.length || /\d/.test(item[2]) !== ordered) break;
    const width = item[0].length;
    const inner = [lines[at].slice(width)];
    at += 1;
    while (at < lines.length) {
      const line = lines[at];
      const deeper = line.search(/\S/) > indent.length;
      const blank = !line.trim() && at + 1 < lines.length && lines[at + 1].search(/\S/) > indent.length;
      if (!deeper && !blank) break;
      const spaces = line.search(/\S/);
      inner.push(spaces < 0 ? "" : line.slice(Math.min(width, spaces)));
      at += 1;
    }
    const children = blocks(inner, depth + 1);
    // An item of one paragraph is the paragraph's text.
    const [first] = children;
    items.append(first?.tagName === "P" ? element("li", ...first.childNodes, ...children.slice(1)) : element("li", ...children));
    while (at < lines.length && !lines[at].trim() && at + 1 < lines.length && ITEM.test(lines[at + 1])) at += 1;
  }
  made.push(items);
  return at;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function isTable(lines, at) {
  const next = lines[at + 1];
  return lines[at].includes("|") && next !== undefined && next.includes("-") && /^[\s|:-]+$/.test(next)
    && cells(lines[at]).length === cells(next).length;
}

function table(lines, at, made) {
  const row = (line, kind) => element("tr", ...cells(line).map((cell) => element(kind, ...inline(cell))));
  const head = element("thead", row(lines[at], "th"));
  const body = element("tbody");
  at += 2;
  while (at < lines.length && lines[at].includes("|")) body.append(row(lines[at++], "td"));
  made.push(element("table", head, body));
  return at;
}

function paragraph(lines, at, made) {
  const ends = (line) => !line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
  const text = [lines[at++]];
  while (at < lines.length && !ends(lines[at]) && !isTable(lines, at)) text.push(lines[at++]);
  const made_ = element("p");
  text.forEach((line, number) => {
    if (number > 0) made_.append(/ {2}$|\\$/.test(text[number - 1]) ? element("br") : "\n");
    made_.append(...inline(line.trim().replace(/\\$/, "")));
  });
  made.push(made_);
  return at;
}

// What may begin something: code, strong, emphasis, struck out, a link, a bare address, an escape.
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)\*\*|__(?=\S)(.+?)__|\*(?=\S)([^*]+?)\*|(?<!\w)_(?=\S)([^_]+?)_(?!\w)|~~(.+?)~~|\[([^\]]+)\]\(([^()\s]+)(?:\s+"[^"]*")?\)|(https?:\/\/[^\s<>"')\]]+)|\\([\\`*_{}[\]()#+.!|~>-])/;

function inline(text) {
  const made = [];
  while (text) {
    const found = INLINE.exec(text);
    if (!found) {
      made.push(text);
      break;
    }
    if (found.index > 0) made.push(text.slice(0, found.index));
    const [whole, , code, strong1, strong2, em1, em2, struck, label, target, address, escaped] = found;
    if (code !== undefined) made.push(element("code", code.replace(/^ (.+) $/, "$1")));
    else if (strong1 ?? strong2) made.push(element("strong", ...inline(strong1 ?? strong2)));
    else if (em1 ?? em2) made.push(element("em", ...inline(em1 ?? em2)));
    else if (struck) made.push(element("s", ...inline(struck)));
    else if (label) made.push(link(target, inline(label), whole));
    else if (address) made.push(link(address, [address], whole));
    else made.push(escaped);
    text = text.slice(found.index + whole.length);
  }
  return made;
}

/** A link to the web or to mail; any other target stays text. */
function link(target, children, whole) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return whole;
  const made = element("a", ...children);
  made.href = target;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}
