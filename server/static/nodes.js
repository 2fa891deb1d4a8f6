// Which node does what: a card a node, and between the two sides the traffic of M2N.

import { byId, element } from "./dom.js";
import { bytes, count, integer, percent, seconds, short } from "./format.js";

const SHOWN_STAGES = 3;
const NEWS_SECONDS = 10; // for so long a node's return is said on its card
const byNumber = (one, other) => one.index - other.index;

export class Nodes {
  constructor() {
    this.cards = new Map();
    this.before = null;
    this.sides = { attention: byId("attention-nodes"), expert: byId("expert-nodes") };
  }

  show(state) {
    for (const node of state.nodes) this.card(node).show(node, state);
    const names = new Set(state.nodes.map(({ name }) => name));
    for (const [name, card] of this.cards) {
      if (names.has(name)) continue;
      card.root.remove(); // it has left
      this.cards.delete(name);
    }
    this.showRoad(state.nodes);
    const epoch = `epoch ${integer(state.epoch)}`;
    if (byId("epoch").textContent !== epoch) byId("epoch").textContent = epoch;
  }

  /** Nobody tells how they are. */
  forget() {
    for (const card of this.cards.values()) card.forget();
    byId("road").replaceChildren();
  }

  card(node) {
    if (!this.cards.has(node.name)) {
      const card = new Card(node);
      const after = [...this.cards.values()].filter(({ role, index }) => role === node.role && index > node.index).sort(byNumber)[0];
      this.sides[node.role].insertBefore(card.root, after?.root ?? null);
      this.cards.set(node.name, card);
    }
    return this.cards.get(node.name);
  }

  /** Nodes count once a second by their own clocks, so rates are those of the clocks. */
  showRoad(nodes) {
    const sides = { attention: [0, 0, 0], expert: [0, 0, 0] };
    for (const node of nodes) {
      const rates = this.cards.get(node.name).rates;
      sides[node.role] = sides[node.role].map((total, at) => total + rates[at]);
    }
    const [, rows, size] = sides.attention;
    const [, back, backSize] = sides.expert;
    byId("road").replaceChildren(
      element("span", { className: "way" }, element("b", {}, "dispatch →"), ` ${short(rows)} rows/s, ${bytes(size)}/s`),
      element("span", { className: "way" }, element("b", {}, "← combine"), ` ${short(back)} rows/s, ${bytes(backSize)}/s`),
    );
  }
}

class Card {
  constructor({ role, index }) {
    this.role = role;
    this.index = index;
    this.name = element("h3");
    this.job = element("p", { className: "job" });
    this.meter = element("div", { className: "meter" }, (this.bar = element("i")));
    this.busy = element("p", { className: "busy-share" });
    this.stages = element("p", { className: "stages" });
    this.root = element("div", { className: "node" }, this.name, this.job, this.meter, this.busy, this.stages);
    this.latest = null;
    this.rates = [0, 0, 0];
    this.shares = [];
    this.host = null; // the share of its host, where it is a GPU's
  }

  show(node, state) {
    this.compare(node);
    this.root.classList.remove("unknown");
    this.root.dataset.state = node.state;
    this.name.textContent = node.name;
    this.job.textContent = node.role === "attention" ? attentionJob(node) : expertJob(node, state);
    this.bar.style.width = `${100 * (1 - node.idle_share)}%`;
    const news = node.state === "serving" && node.back_seconds !== null && node.back_seconds < NEWS_SECONDS;
    this.root.classList.toggle("back", news);
    const serving = `${news ? `${node.restarts ? "back" : "new"}, ` : ""}${percent(1 - node.idle_share)} busy`;
    this.busy.textContent = node.state in STATES ? STATES[node.state](node) : serving;
    const parts = this.shares.map(([stage, share]) => `${stage} ${percent(share)}`);
    if (this.host !== null) parts.push(`its host ${percent(this.host)}`);
    const restarts = node.restarts ? `restarted ${node.restarts === 1 ? "once" : `${integer(node.restarts)} times`}` : "";
    this.stages.textContent = [parts.join(", ") || "idle", restarts].filter(Boolean).join(" · ");
  }

  forget() {
    this.latest = null;
    [this.rates, this.shares, this.host] = [[0, 0, 0], [], null];
    delete this.root.dataset.state;
    this.root.classList.remove("back");
    this.root.classList.add("unknown");
    this.bar.style.width = "0";
    this.busy.textContent = "unknown";
    this.stages.textContent = "";
  }

  /** What happened between this and what it said before. */
  compare(node) {
    const before = this.latest;
    const elapsed = before ? node.clock_seconds - before.clock_seconds : 0;
    if (before && elapsed === 0) return; // it has not spoken since
    this.latest = node;
    if (!(elapsed > 0)) return;
    const rate = (name) => (node[name] - before[name]) / elapsed;
    this.rates = ["messages_sent", "rows_sent", "bytes_sent"].map(rate);
    this.shares = Object.entries(node.stage_seconds)
      .map(([stage, total]) => [stage, (total - before.stage_seconds[stage]) / elapsed])
      .filter(([, share]) => share >= 0.005)
      .sort(([, one], [, other]) => other - one)
      .slice(0, SHOWN_STAGES);
    const told = node.host_seconds !== null && before.host_seconds !== null;
    this.host = told ? (node.host_seconds - before.host_seconds) / elapsed : null;
  }
}

/** What is said of those that don't simply serve. */
const STATES = {
  lost: (node) => `lost for ${since(node)}`,
  returning: (node) => `coming back, lost for ${since(node)}`,
  joining: () => "joining",
  apart: () => "takes no part",
  hung: (node) => `silent for ${seconds(node.silence)}`,
};

const since = ({ away_seconds: away }) => (away === null ? "some time" : `${Math.floor(away)} s`);

function attentionJob(node) {
  const batches = node.micro_batches === 1 ? "one micro-batch" : `${node.micro_batches} micro-batches`;
  return `${node.running} running, ${node.waiting} waiting, in ${batches}; KV cache ${percent(node.kv_usage)} of ${integer(node.num_blocks)} blocks`;
}

function expertJob(node, { expert_load: load }) {
  return `${node.experts} of ${count(load.experts.length, "expert")} in ${count(load.layers.length, "layer")}; ${short(node.batches ? node.rows / node.batches : 0)} rows a batch`;
}
