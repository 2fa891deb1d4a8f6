// The ping-pong timeline: a lane a node, coloured by micro-batch, its kind of work by its shape.

import { batchColour, colour, letter, onPointer, prepare, ticks } from "./canvas.js";
import { byId, choice, element } from "./dom.js";
import { count, seconds } from "./format.js";
import { lastSteps } from "./spans.js";

const LANE = 30; // pixels high
const LABEL = 18;
const AXIS = 20;
const NARROW = 560;
const LABELLED = 30; // a span this wide has its name in it
// Top and height of a kind's shape in its lane, and how strongly it is drawn.
const SHAPES = {
  attention: [0, 1, 1],
  expert: [0, 1, 1],
  layers: [0, 1, 1],
  shared: [0, 1, 0.6],
  combine: [0, 0.36, 0.8],
  dispatch: [0.64, 0.36, 0.8],
  reply: [0.64, 0.36, 0.8],
};
const OTHER = [0.22, 0.56, 0.35];

const byNumber = new Intl.Collator("en", { numeric: true }).compare;

export class Timeline {
  constructor() {
    this.root = byId("timeline");
    this.canvas = this.root.querySelector("canvas");
    this.note = byId("timeline-note");
    this.steps = this.root.clientWidth < NARROW ? 1 : 2;
    this.held = false;
    this.visible = false;
    this.drawn = [];
    this.listen();
  }

  listen() {
    this.root.querySelector(`[data-steps="${this.steps}"]`).ariaPressed = "true";
    choice(this.root, "steps", (steps) => {
      this.steps = Number(steps);
      this.draw();
    });
    byId("pause").addEventListener("click", ({ currentTarget: button }) => {
      this.held = !this.held;
      button.ariaPressed = String(this.held);
    });
    onPointer(this.canvas, (at) => this.point(at));
    new IntersectionObserver(([entry]) => (this.visible = entry.isIntersecting)).observe(this.root);
  }

  /** Spans are asked for only while somebody can see them. */
  get wanted() {
    return this.visible && !this.held;
  }

  show(document) {
    if (this.held) return;
    this.document = document;
    this.draw();
  }

  draw() {
    const shown = this.document && lastSteps(this.document, this.steps);
    if (!shown) return;
    const lanes = Object.keys(this.document.nodes).sort(byNumber);
    const { context, width } = prepare(this.canvas, lanes.length * (LANE + LABEL) + AXIS);
    this.scale = width / (shown.end - shown.begin || 1);
    this.drawn = [];
    lanes.forEach((name, at) => this.drawLane(context, name, at * (LANE + LABEL), shown, width));
    drawAxis(context, shown, width, lanes.length * (LANE + LABEL));
    this.describe(shown);
  }

  drawLane(context, name, top, shown, width) {
    context.fillStyle = colour("--soft");
    context.fillText(name, 0, top + LABEL / 2);
    context.fillStyle = colour("--lane");
    context.fillRect(0, top + LABEL, width, LANE);
    for (const span of this.document.nodes[name]) {
      const [, , , start, duration] = span;
      if (start + duration >= shown.begin && start <= shown.end) {
        this.drawSpan(context, name, span, (start - shown.begin) * this.scale, top + LABEL);
      }
    }
  }

  drawSpan(context, name, span, x, top) {
    const [kind, batch, layer, , duration] = span;
    const word = this.document.kinds[kind];
    const [from, height, strength] = SHAPES[word] ?? OTHER;
    const box = { x, y: top + from * LANE, width: Math.max(duration * this.scale, 0.75), height: height * LANE };
    context.globalAlpha = strength;
    context.fillStyle = batch < 0 ? colour("--soft") : batchColour(batch);
    // A hair's breadth apart, so that neighbours of one colour can be told from each other.
    context.fillRect(box.x, box.y, box.width > 3 ? box.width - 0.75 : box.width, box.height);
    context.globalAlpha = 1;
    if (box.width >= LABELLED && height === 1 && layer >= 0) {
      context.fillStyle = colour("--on-batch");
      context.fillText(`${letter(batch)}${layer}`, Math.max(x, 0) + 5, top + LANE / 2);
    }
    this.drawn.push({ ...box, name, word, batch, layer, duration });
  }

  describe({ begin, end }) {
    const batches = [...new Set(this.drawn.map(({ batch }) => batch))].filter((batch) => batch >= 0).sort();
    this.length = (end - begin) / 1e6;
    this.batches = batches;
    this.note.textContent = this.document.problem ?? this.summary();
    this.canvas.ariaLabel = `${this.summary()}, ${count(this.drawn.length, "span")}`;
    byId("timeline-legend").replaceChildren(...legend(batches));
  }

  summary() {
    const batches = this.batches.length === 1 ? "one micro-batch" : `micro-batches ${this.batches.map(letter).join(", ")}`;
    const gpus = this.document.devices.length ? "; a GPU’s lane is when it worked, its node’s when it was given that" : "";
    return `${seconds(this.length)} of ${batches}; empty is idle${gpus}`;
  }

  point(at) {
    if (!this.drawn.length) return;
    const hit = at && this.drawn.findLast((box) => contains(box, at));
    this.note.textContent = hit ? told(hit) : this.summary();
  }
}

const contains = (box, { x, y }) =>
  x >= box.x - 1 && x <= box.x + box.width + 1 && y >= box.y && y <= box.y + box.height;

function told({ name, word, batch, layer, duration }) {
  const where = [batch >= 0 ? `micro-batch ${letter(batch)}` : "", layer >= 0 ? `layer ${layer}` : ""];
  return [name, word, ...where.filter(Boolean), seconds(duration / 1e6)].join(" · ");
}

function drawAxis(context, { begin, end }, width, top) {
  const length = (end - begin) / 1000;
  context.fillStyle = colour("--soft");
  for (const at of ticks(length, width / 90)) {
    const x = (at / length) * width;
    if (x > width - 40) break;
    context.fillRect(x, top + 2, 1, 4);
    context.fillText(`${Number(at.toPrecision(6))} ms`, x + 4, top + 12);
  }
}

function legend(batches) {
  const batch = (number) =>
    element("li", {}, element("i", { className: `swatch batch-${number % 8}` }), `micro-batch ${letter(number)}`);
  const shape = (name, text) => element("li", {}, element("i", { className: `swatch ${name}` }), text);
  return [
    ...batches.map(batch),
    shape("full", "attention, experts"),
    shape("low", "dispatch, reply"),
    shape("high", "combine"),
    shape("middle", "a step’s begin and end"),
  ];
}
