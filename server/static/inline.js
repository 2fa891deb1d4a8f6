// Marks within a line: code, bold, italic, struck through, links. Makes nodes, never HTML.

import { element } from "./dom.js";

const MARKS =
  /(?<ticks>`+)(?<code>.+?)\k<ticks>(?!`)|\*\*(?<bold>\S.*?)\*\*|~~(?<struck>\S.*?)~~|(?<![\w*])\*(?<italic>[^\s*][^*]*?)\*(?![\w*])|(?<!\w)_(?<slanted>[^\s_][^_]*?)_(?!\w)|\[(?<label>[^\]]+)\]\((?<url>[^\s)]+)\)/su;

const TAGS = { bold: "strong", struck: "s", italic: "em", slanted: "em" };

/** The nodes of a piece of text. */
export function inline(text) {
  const nodes = [];
  for (let rest = text; rest; ) {
    const found = MARKS.exec(rest);
    if (found === null) {
      nodes.push(rest);
      break;
    }
    if (found.index) nodes.push(rest.slice(0, found.index));
    nodes.push(marked(found));
    rest = rest.slice(found.index + found[0].length);
  }
  return nodes;
}

function marked({ 0: whole, groups }) {
  if (groups.code !== undefined) return element("code", { textContent: groups.code.trim() });
  if (groups.label !== undefined) return link(groups.label, groups.url) ?? whole;
  const kind = Object.keys(TAGS).find((name) => groups[name] !== undefined);
  return element(TAGS[kind], {}, ...inline(groups[kind]));
}

/** Only to the web: a model's text must not reach other schemes. */
function link(label, url) {
  if (!/^https?:\/\//iu.test(url) || !URL.canParse(url)) return null;
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer", title: url }, ...inline(label));
}
