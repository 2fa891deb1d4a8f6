// Which expert node holds which expert of a layer, how often it was wanted lately, and how evenly.

import { onPointer } from "./canvas.js";
import { byId, element } from "./dom.js";
import { count, integer } from "./format.js";
import { SlotMap } from "./slot_map.js";
import { sum } from "./expert_tokens.js";

const WAYS = 16;

export class Placement {
  constructor() {
    this.root = byId("placement");
    this.select = byId("placement-layer");
    this.note = byId("placement-note");
    this.table = byId("placement-table");
    this.details = this.root.querySelector("details");
    this.map = new SlotMap(this.root.querySelector("canvas"));
    this.document = null;
    this.marked = null;
    this.visible = false;
    this.listen();
  }

  listen() {
    this.select.addEventListener("change", () => this.mark(null));
    onPointer(this.map.canvas, (at) => this.mark((at && this.map.at(at)?.slot.expert) ?? null));
    this.map.canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.map.canvas.addEventListener("blur", () => this.mark(null));
    this.details.addEventListener("toggle", () => this.draw());
    new IntersectionObserver(([entry]) => (this.visible = entry.isIntersecting)).observe(this.root);
  }

  /** Whether the server's placement of this epoch has to be asked for. */
  wants(epoch) {
    return this.visible && this.document?.epoch !== epoch;
  }

  /** The server is gone, and may come back with another one. */
  forget() {
    if (this.document) this.document.epoch = null;
  }

  take(document) {
    if (document === null) return; // nothing serves yet
    this.document = document;
    const chosen = this.select.selectedIndex;
    this.select.replaceChildren(...document.layers.map(([number]) => element("option", { value: number })));
    this.select.selectedIndex = Math.min(Math.max(chosen, 0), document.layers.length - 1);
    this.marked = null;
    this.draw();
  }

  show(tokens) {
    this.tokens = tokens;
    this.draw();
  }

  draw() {
    if (!this.visible || !this.document || !this.tokens?.looks.length) return;
    this.ratios = this.document.layers.map((_, layer) => slowest(this.rowsOf(layer)));
    this.name();
    this.rows = this.rowsOf(this.select.selectedIndex);
    this.map.draw(this.rows, this.marked);
    this.describe();
    if (this.details.open) this.tabulate();
  }

  /** Layers by their numbers, each with how much more its busiest node had to do. */
  name() {
    if (document.activeElement === this.select && this.select.options[0].text) return; // it may be open
    [...this.select.options].forEach((option, layer) => {
      const [number] = this.document.layers[layer];
      option.textContent = `layer ${number} · ${timesMean(this.ratios[layer])}`;
    });
  }

  rowsOf(layer) {
    const { layers, tables, nodes, experts } = this.document;
    const lately = this.tokens.lately(layer);
    const held = tables[layers[layer][1]];
    const copies = new Map();
    const first = new Map(); // who is sent most of an expert's tokens
    held.forEach((own, at) => {
      for (const [expert, ways] of own) {
        copies.set(expert, (copies.get(expert) ?? 0) + 1);
        if (ways > (first.get(expert)?.ways ?? -1)) first.set(expert, { at, ways });
      }
    });
    const all = sum([...copies.keys()].map(lately.all));
    const rows = held.map((own, at) => {
      const slots = own.map(([expert, ways]) => {
        const alone = first.get(expert).at === at ? lately.all(expert) : 0;
        const tokens = copies.get(expert) > 1 ? (lately.at(expert, nodes[at]) ?? alone) : lately.all(expert);
        return { expert, ways, tokens, copies: copies.get(expert), times: all ? (tokens * experts) / all : 0 };
      });
      slots.sort((one, other) => one.expert - other.expert);
      return { slots, node: nodes[at], tokens: sum(slots.map((slot) => slot.tokens)) };
    });
    for (const row of rows) row.told = `expert node ${row.node} · ${count(row.slots.length, "expert")} · ${shareOf(row.tokens, all)}`;
    return rows;
  }

  mark(expert) {
    if (this.marked === expert && expert !== null) return;
    this.marked = expert;
    this.draw();
  }

  /** Arrows go from expert to expert, Home and End to the first and last. */
  onKey(event) {
    if (!this.document) return;
    const last = this.document.experts - 1;
    const now = this.marked ?? -1;
    const next = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape" && this.marked !== null) {
      event.stopPropagation(); // it would stop an answer
      this.mark(null);
    }
    if (next === undefined) return;
    event.preventDefault();
    this.mark(Math.min(Math.max(next, 0), last));
  }

  describe() {
    const told = this.summary();
    this.map.canvas.ariaLabel = told;
    const note = this.marked === null ? told : this.told(this.marked);
    if (this.note.textContent !== note) this.note.textContent = note;
  }

  summary() {
    const [number] = this.document.layers[this.select.selectedIndex];
    const slots = this.rows.flatMap((row) => row.slots);
    const { experts } = this.document;
    const spares = slots.filter((slot) => slot.ways === 0).length;
    const more = slots.length - experts;
    const replicas = more ? `, ${count(more, "replica")} beyond one of each${spares ? ` (${count(spares, "spare")})` : ""}` : ", each once";
    const ratio = this.ratios[this.select.selectedIndex];
    const even = Number.isFinite(ratio) ? `Lately its busiest node served ${ratio.toFixed(2)} times as many tokens as the mean.` : "No token came lately.";
    return `Layer ${number}: ${count(experts, "expert")} on ${count(this.rows.length, "node")}${replicas}. ${even}`;
  }

  told(expert) {
    const places = this.rows.flatMap(({ node, slots }) => slots.filter((slot) => slot.expert === expert).map((slot) => ({ node, ...slot })));
    const parts = places.map(({ node, ways, tokens }) => (ways ? `node ${node} (${ways} of ${WAYS} ways, ${count(tokens, "token")})` : `node ${node} (spare)`));
    const times = sum(places.map((place) => place.times));
    return `Expert ${expert}: ${parts.join(", ")}; ${times.toFixed(2)} times the mean lately.`;
  }

  /** The picture in words, for who asks for it. */
  tabulate() {
    const head = element("tr", {}, ...["Expert node", "Tokens lately", "Experts (replicas*, spares°)"].map((text) => element("th", { scope: "col" }, text)));
    const rows = this.rows.map(({ node, tokens, slots }) => {
      const held = slots.map(({ expert, ways, copies }) => `${expert}${ways === 0 ? "°" : copies > 1 ? "*" : ""}`);
      return element("tr", {}, element("th", { scope: "row" }, `${node}`), element("td", {}, integer(tokens)), element("td", {}, held.join(", ")));
    });
    this.table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }
}

function slowest(rows) {
  const tokens = rows.map((row) => row.tokens);
  return (Math.max(...tokens) * rows.length) / sum(tokens); // NaN without any
}

const timesMean = (ratio) => (Number.isFinite(ratio) ? `${ratio.toFixed(2)} × the mean` : "no tokens");

const shareOf = (tokens, all) => (all ? `${Math.round((100 * tokens) / all)} % of the tokens` : "no tokens");
