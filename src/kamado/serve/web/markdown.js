// Markdown to DOM nodes. Text becomes text nodes and nothing else: no HTML is ever parsed, so there is nothing to
// sanitise. Covered: headings, paragraphs, emphasis, code, fences, lists (nested, tasks), quotes, tables, rules, links.
// Images become links, since the page asks no other host for anything.

const MAX_DEPTH = 8; // lists in quotes in lists …: deeper ones are plain text
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+(.*))?$/;
const QUOTE = /^ {0,3}>[ \t]?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?(?:[ \t]*:?-+:?[ \t]*\|)*[ \t]*:?-+:?[ \t]*\|?[ \t]*$/;
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;
const EMPHASIS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** An element with a class and children; strings become text nodes. */
export function el(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** The node with these properties; names with a hyphen are attributes. */
export function put(node, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  return node;
}

/** Keeps `root` showing the Markdown given to update(), rendering only the blocks that changed since the last call. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.root.classList.add("markdown");
    this.sources = [];
  }

  update(text) {
    const blocks = splitBlocks(text);
    let same = 0;
    while (same < blocks.length && same < this.sources.length && blocks[same] === this.sources[same]) same++;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const source of blocks.slice(same)) {
      const node = renderBlocks(source.split("\n"), el("div"), 0);
      this.root.append(node.childNodes.length === 1 ? node.firstChild : node);
    }
    this.sources = blocks;
  }
}

/** Cuts at blank lines outside of fences and lists, so that each part can be rendered alone. */
export function splitBlocks(text) {
  const blocks = [];
  let block = [];
  let fence = null;
  let isAfterBlank = false;
  let isList = false; // goes on after blank lines
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    if (fence) {
      block.push(line);
      if (closes(line, fence)) fence = null;
      continue;
    }
    if (!line.trim()) {
      isAfterBlank = true;
      if (block.length) block.push(line);
      continue;
    }
    if (isAfterBlank && block.length && !(isList && (/^\s/.test(line) || ITEM.test(line)))) {
      blocks.push(block.join("\n").trimEnd());
      block = [];
    }
    isAfterBlank = false;
    if (!block.length) isList = ITEM.test(line);
    const opened = FENCE.exec(isList ? line.trimStart() : line);
    if (opened) fence = opened[1];
    block.push(line);
  }
  if (block.length) blocks.push(fence ? block.join("\n") : block.join("\n").trimEnd());
  return blocks;
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

const indentOf = (line) => Math.max(0, line.search(/\S|$/));

function renderBlocks(lines, parent, depth) {
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    let match;
    if (!line.trim()) {
      i++;
    } else if ((match = FENCE.exec(line))) {
      const indent = indentOf(line);
      let end = i + 1;
      while (end < lines.length && !closes(lines[end], match[1])) end++;
      const code = lines.slice(i + 1, end).map((l) => l.slice(Math.min(indent, indentOf(l))));
      parent.append(codeBlock(code.join("\n"), match[2]));
      i = end + 1;
    } else if ((match = HEADING.exec(line))) {
      parent.append(renderInline((match[2] ?? "").trim().replace(/\s#+$/, ""), el(`h${match[1].length}`)));
      i++;
    } else if (RULE.test(line)) {
      parent.append(el("hr"));
      i++;
    } else if (depth < MAX_DEPTH && QUOTE.test(line)) {
      const inner = [];
      for (; i < lines.length && (match = QUOTE.exec(lines[i])); i++) inner.push(match[1]);
      parent.append(renderBlocks(inner, el("blockquote"), depth + 1));
    } else if (depth < MAX_DEPTH && ITEM.test(line)) {
      i = renderList(lines, i, parent, depth);
    } else if (line.includes("|") && i + 1 < lines.length && lines[i + 1].includes("|") && TABLE_RULE.test(lines[i + 1])) {
      i = renderTable(lines, i, parent);
    } else {
      const text = [line];
      i++;
      while (i < lines.length && lines[i].trim() && !interrupts(lines[i])) text.push(lines[i++]);
      parent.append(renderInline(text.map((l) => l.trim()).join("\n"), el("p")));
    }
  }
  return parent;
}

function interrupts(line) {
  const isItem = /^ {0,3}(?:[-*+]|1[.)])[ \t]+\S/.test(line);
  return isItem || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

function renderList(lines, start, parent, depth) {
  const first = ITEM.exec(lines[start]);
  const isOrdered = /\d/.test(first[2]);
  const list = el(isOrdered ? "ol" : "ul");
  if (isOrdered) list.start = parseInt(first[2], 10);
  let i = start;
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || /\d/.test(match[2]) !== isOrdered || RULE.test(lines[i])) break;
    const indent = match[1].length + match[2].length + 1;
    const inner = [match[3] ?? ""];
    i++;
    let isAfterBlank = false;
    while (i < lines.length) {
      const line = lines[i];
      if (!line.trim()) isAfterBlank = true;
      else if (indentOf(line) >= 2) isAfterBlank = false;
      else if (isAfterBlank || interrupts(line) || ITEM.test(line)) break;
      inner.push(line.slice(Math.min(indent, indentOf(line))));
      i++;
    }
    const item = el("li");
    const task = /^\[([ xX])\][ \t]+(.*)$/.exec(inner[0]);
    if (task) {
      const isDone = task[1] !== " ";
      item.append(put(el("input"), { type: "checkbox", disabled: true, checked: isDone, "aria-label": "done" }), " ");
      inner[0] = task[2];
    }
    renderBlocks(inner, item, depth + 1);
    const paragraphs = item.querySelectorAll(":scope > p");
    if (paragraphs.length === 1) paragraphs[0].replaceWith(...paragraphs[0].childNodes); // a tight list
    list.append(item);
  }
  parent.append(list);
  return i;
}

function cells(line) {
  const out = [];
  let cell = "";
  const text = line.trim().replace(/^\|/, "");
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      cell += text[++i];
    } else if (text[i] === "|") {
      out.push(cell.trim());
      cell = "";
    } else {
      cell += text[i];
    }
  }
  if (cell.trim()) out.push(cell.trim());
  return out;
}

function renderTable(lines, start, parent) {
  const names = cells(lines[start]);
  const sides = cells(lines[start + 1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "center" : "right") : ""));
  const cell = (tag, text, side) => renderInline(text ?? "", el(tag, side ?? ""));
  const row = (tag, texts) => el("tr", "", ...names.map((_, column) => cell(tag, texts[column], sides[column])));
  const body = el("tbody");
  let i = start + 2;
  while (i < lines.length && lines[i].trim() && lines[i].includes("|")) body.append(row("td", cells(lines[i++])));
  parent.append(el("div", "table", el("table", "", el("thead", "", row("th", names)), body)));
  return i;
}

function codeBlock(text, language) {
  const copy = put(el("button", "quiet", "Copy"), { type: "button", "data-copy": "code" });
  const pre = put(el("pre", "", el("code", "", text)), { tabIndex: 0 }); // wide code can be scrolled by keyboard
  return el("div", "code", el("div", "", el("span", "", language || "code"), copy), pre);
}

/** Inline marks of one paragraph, below `parent`. For every kind of mark it is remembered when no closing one follows, so that many
 *  opening ones cost no more than a few. */
export function renderInline(text, parent, depth = 0) {
  const missing = new Set(); // closers known not to follow
  const find = (closer, from) => {
    if (missing.has(closer)) return -1;
    const at = text.indexOf(closer, from);
    if (at < 0) missing.add(closer);
    return at;
  };
  let plain = "";
  const add = (...nodes) => {
    if (plain) parent.append(plain);
    plain = "";
    parent.append(...nodes);
  };
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === "\\" && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
    } else if (c === "\n") {
      add(el("br"));
      i++;
    } else if (c === "`") {
      const end = codeSpan(text, i, find);
      let n = 1;
      while (text[i + n] === "`") n++;
      if (end < 0) {
        plain += text.slice(i, i + n);
        i += n;
      } else {
        const code = text.slice(i + n, end).replace(/\n/g, " ");
        add(el("code", "", /^ .*\S.* $/.test(code) ? code.slice(1, -1) : code));
        i = end + n;
      }
    } else {
      const span = depth < MAX_DEPTH && (emphasis(text, i, find, depth) ?? linked(text, i, find));
      if (span) {
        add(span.node);
        i = span.end;
      } else {
        plain += c;
        i++;
      }
    }
  }
  add();
  return parent;
}

/** Where the ticks that close the code span at `i` begin; -1: none. */
function codeSpan(text, i, find) {
  let n = 1;
  while (text[i + n] === "`") n++;
  const ticks = "`".repeat(n);
  let end = find(ticks, i + n);
  while (end >= 0 && text[end + n] === "`") {
    let past = end + n;
    while (text[past] === "`") past++;
    end = find(ticks, past); // a longer run is no closer
  }
  return end;
}

function emphasis(text, i, find, depth) {
  const found = EMPHASIS.find(([mark]) => text.startsWith(mark, i));
  if (!found) return null;
  const [mark, tag] = found;
  const after = text[i + mark.length];
  if (!after || /\s/.test(after) || after === mark[0]) return null;
  if (mark[0] === "_" && /\w/.test(text[i - 1] ?? "")) return null;
  let end = find(mark, i + mark.length);
  for (let tries = 0; end >= 0 && tries < 16; tries++) {
    const isDouble = mark.length === 1 && text[end + 1] === mark;
    const isInWord = mark[0] === "_" && /\w/.test(text[end + mark.length] ?? "");
    if (!isDouble && !isInWord && !/\s/.test(text[end - 1])) {
      const node = renderInline(text.slice(i + mark.length, end), el(tag), depth + 1);
      return { node, end: end + mark.length };
    }
    end = find(mark, end + (isDouble ? 2 : mark.length));
  }
  return null;
}

function linked(text, i, find) {
  if (text[i] === "[" || (text[i] === "!" && text[i + 1] === "[")) {
    const from = text[i] === "!" ? i + 2 : i + 1;
    const middle = find("](", from);
    const end = middle < 0 ? -1 : find(")", middle + 2);
    if (end < 0) return null;
    const label = text.slice(from, middle);
    const target = text.slice(middle + 2, end).trim().split(/\s/)[0];
    if (!SAFE_LINK.test(target) || label.includes("[")) return null;
    return { node: link(target, label || target), end: end + 1 };
  }
  if ((text[i] === "h" || text[i] === "H") && !/\w/.test(text[i - 1] ?? "")) {
    const url = /^https?:\/\/[^\s<>"'`\])]+/i.exec(text.slice(i, i + 2000));
    const target = url?.[0].replace(/[.,;:!?*_~]+$/, "");
    if (target) return { node: link(target, target), end: i + target.length };
  }
  return null;
}

function link(target, label) {
  const node = put(el("a"), { href: target, target: "_blank", rel: "noopener noreferrer nofollow" });
  return renderInline(label, node, MAX_DEPTH);
}
