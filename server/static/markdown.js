// A small part of Markdown, as much as models write: made of elements and text, never of HTML.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/u;
const HEADING = /^(#{1,6})\s+(.*)$/u;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/u;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/u;
const QUOTE = /^\s*>\s?(.*)$/u;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/u;

/** Shows a text that grows: what has not changed stays as it is. */
export class Markdown {
  constructor(root) {
    this.root = root;
    this.shown = [];
  }

  show(text) {
    const sources = blocks(text);
    sources.forEach((source, position) => {
      if (this.shown[position] === source) return;
      const made = render(source);
      const old = this.root.children[position];
      if (old) old.replaceWith(made);
      else this.root.append(made);
    });
    while (this.root.children.length > sources.length) this.root.lastElementChild.remove();
    this.shown = sources;
  }
}

/** The texts of the blocks, in order. */
export function blocks(text) {
  const found = [];
  const rows = text.split("\n");
  for (let at = 0; at < rows.length; ) {
    if (!rows[at].trim()) {
      at += 1;
      continue;
    }
    const end = endOfBlock(rows, at);
    found.push(rows.slice(at, end).join("\n"));
    at = end;
  }
  return found;
}

function endOfBlock(rows, start) {
  const fence = FENCE.exec(rows[start]);
  if (fence) return endOfFence(rows, start + 1, fence[1]);
  if (HEADING.test(rows[start]) || RULE.test(rows[start])) return start + 1;
  const isList = ITEM.test(rows[start]);
  let end = start + 1;
  while (end < rows.length && rows[end].trim() && !opensAnother(rows[end], isList)) end += 1;
  return end;
}

function endOfFence(rows, start, mark) {
  for (let at = start; at < rows.length; at += 1) {
    if (rows[at].trim().startsWith(mark)) return at + 1;
  }
  return rows.length; // it is still being written
}

function opensAnother(row, inList) {
  return FENCE.test(row) || HEADING.test(row) || (!inList && (RULE.test(row) || ITEM.test(row)));
}

function render(source) {
  const rows = source.split("\n");
  const fence = FENCE.exec(rows[0]);
  if (fence) return code(rows, fence[1], fence[2]);
  const heading = HEADING.exec(rows[0]);
  if (heading) return element(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2]));
  if (RULE.test(rows[0])) return element("hr");
  if (ITEM.test(rows[0])) return list(rows);
  if (QUOTE.test(rows[0])) return quote(rows);
  if (rows.length > 1 && rows[0].includes("|") && TABLE_RULE.test(rows[1])) return table(rows);
  return element("p", {}, ...inline(source));
}

function code(rows, mark, language) {
  const closed = rows.length > 1 && rows.at(-1).trim().startsWith(mark);
  const text = rows.slice(1, closed ? -1 : undefined).join("\n");
  const bar = element("div", { className: "bar" }, language || "text", copyButton(() => text));
  return element("div", { className: "code" }, bar, element("pre", {}, element("code", { textContent: text })));
}

function quote(rows) {
  const text = rows.map((row) => QUOTE.exec(row)?.[1] ?? row).join("\n");
  return element("blockquote", {}, ...blocks(text).map(render));
}

/** Items by their indentation; a row without a mark goes on with the item before. */
function list(rows) {
  const root = element("div");
  const open = [{ indent: -1, node: root }];
  for (const row of rows) {
    const item = ITEM.exec(row);
    if (item === null) {
      open.at(-1).last.append(" ", ...inline(row.trim()));
      continue;
    }
    const [, { length: indent }, number, text] = item;
    while (open.length > 2 && indent < open.at(-1).indent) open.pop();
    if (indent > open.at(-1).indent) open.push(openList(open.at(-1), indent, number));
    const level = open.at(-1);
    level.last = element("li", {}, ...inline(text));
    level.node.append(level.last);
  }
  return root.children.length === 1 ? root.firstElementChild : root;
}

function openList(parent, indent, number) {
  const node = element(number === undefined ? "ul" : "ol");
  if (number !== undefined) node.start = Number(number);
  (parent.last ?? parent.node).append(node);
  return { indent, node };
}

function table([head, , ...body]) {
  const cells = (row) => row.trim().replace(/^\||\|$/gu, "").split("|").map((cell) => cell.trim());
  const line = (row, tag) =>
    element("tr", {}, ...cells(row).map((cell) => element(tag, {}, ...inline(cell))));
  const rows = [line(head, "th"), ...body.map((row) => line(row, "td"))];
  return element("div", { className: "table" }, element("table", {}, ...rows));
}
