// The live view: asks the server once a second, and only while somebody can see it.

import { getJson, KeyNeeded } from "./api.js";
import { Curves } from "./curves.js";
import { byId } from "./dom.js";
import { Events } from "./events.js";
import { ExpertTokens } from "./expert_tokens.js";
import { count, integer, percent, short } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { History } from "./history.js";
import { Nodes } from "./nodes.js";
import { Placement } from "./placement.js";
import { Terms } from "./terms.js";
import { Timeline } from "./timeline.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 2000; // with one answer

export class Live {
  constructor() {
    this.section = byId("live");
    this.history = new History();
    this.nodes = new Nodes();
    this.timeline = new Timeline();
    this.tokens = new ExpertTokens();
    this.heatmap = new Heatmap();
    this.placement = new Placement();
    this.events = new Events();
    this.terms = new Terms();
    this.curves = new Curves();
    this.asking = null;
    this.locked = false;
    this.known = false;
  }

  /** Goes on for as long as the page is open. */
  start() {
    this.refresh();
    setInterval(() => this.isSeen() && !this.locked && this.look(), EVERY_MS);
    document.addEventListener("tabchange", () => this.isSeen() && this.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(this.section);
  }

  isSeen() {
    return document.visibilityState === "visible" && this.section.offsetParent !== null;
  }

  look() {
    const waited = performance.now() - this.since;
    if (this.asking && waited > PATIENCE_MS && !byId("key-dialog").open) {
      this.tell("lost", `The server has not answered for ${Math.floor(waited / 1000)} s.`);
      this.forget();
    }
    this.refresh();
  }

  /** Asks once; a slow server is asked again only when it has answered. */
  refresh() {
    if (!this.asking) this.since = performance.now();
    this.asking ??= this.ask()
      .catch((error) => this.fail(error))
      .finally(() => (this.asking = null));
    return this.asking;
  }

  async ask() {
    const state = await getJson("page/state");
    this.locked = false;
    this.known = true;
    this.history.take(state, performance.now() / 1000);
    this.tokens.take(state.expert_load);
    this.showHead(state);
    if (!this.isSeen()) return;
    this.redraw();
    if (this.placement.wants(state.epoch)) this.placement.take(await getJson("page/placement"));
    this.askTimeline();
  }

  /** Apart: nodes that have just died may keep its answer waiting. */
  askTimeline() {
    if (!this.timeline.wanted) return;
    this.glancing ??= getJson("page/timeline")
      .then((document) => this.timeline.show(document))
      .catch(() => {}) // what is the matter, the next look tells
      .finally(() => (this.glancing = null));
  }

  redraw() {
    const { state } = this.history;
    if (!state || !this.isSeen()) return;
    if (this.known) {
      this.showFigures(state);
      this.nodes.show(state);
      this.events.show(state);
      this.terms.show(state);
    }
    this.heatmap.show(this.tokens);
    this.placement.show(this.tokens);
    this.curves.show(this.history);
    this.timeline.draw();
  }

  showHead(state) {
    byId("model").textContent = state.model;
    byId("version").textContent = `MegaInfer ${state.version}`;
    document.title = `${state.model} · MegaInfer`;
    const recovers = state.health === "recovering";
    this.tell(recovers ? "recovering" : state.problem ? "down" : "up", recovers ? waiting(state) : state.problem ?? lacking(state));
  }

  /** Who has declined to give a key isn't asked again each second. */
  fail(error) {
    this.locked = error instanceof KeyNeeded;
    this.tell(this.locked ? "locked" : "lost", error.message);
    this.forget();
  }

  /** What was shown of the server is not so any more, as far as anybody knows. */
  forget() {
    this.known = false;
    for (const figure of this.section.querySelectorAll("[data-figure]")) figure.textContent = "–";
    this.nodes.forget();
    this.placement.forget();
    this.terms.forget();
  }

  tell(status, problem) {
    const words = { up: "serving", recovering: "recovering", down: "not serving", lost: "no connection", locked: "locked" };
    byId("status").dataset.state = status;
    byId("status").textContent = words[status];
    const notice = byId("notice");
    notice.hidden = !problem;
    notice.dataset.state = status;
    if (notice.textContent !== (problem ?? "")) notice.textContent = problem ?? "";
  }

  showFigures(state) {
    const { generated, prompt } = this.history.samples.at(-1);
    const figures = { generated: short(generated), prompt: short(prompt), running: state.running, waiting: state.waiting, kv: percent(state.kv_usage) };
    for (const [name, value] of Object.entries(figures)) {
      this.section.querySelector(`[data-figure=${name}]`).textContent = value;
    }
  }
}

/** What is away while others do its work. */
const lacking = ({ lacking: what }) => what && `${what}; others do its work until it is back`;

/** What requests wait for. */
function waiting({ problem, in_flight: flying, waits_seconds: most }) {
  const who = flying ? `${count(flying, "request")} ${flying === 1 ? "waits" : "wait"}` : "requests would wait";
  return `${problem}; ${who}, for ${integer(most)} s at most`;
}
