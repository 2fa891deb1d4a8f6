// Throughput and latency over the last three minutes, a small chart each.

import { colour, prepare, ticks } from "./canvas.js";
import { byId, element } from "./dom.js";
import { percent, seconds, short } from "./format.js";

const HEIGHT = 96;
const ROOM = 18;
const CHARTS = [
  { title: "Throughput", unit: (value) => `${short(value)}/s`, least: 10, lines: { generated: "tokens generated", prompt: "of prompts" } },
  { title: "Time to first token", unit: seconds, least: 0.01, dots: true, lines: { firstMean: "mean" } },
  { title: "Between tokens", unit: seconds, least: 0.01, lines: { nextMean: "mean", nextHigh: "95th percentile, by buckets" } },
  { title: "Requests", unit: short, least: 4, lines: { running: "running", waiting: "waiting" } },
  { title: "Busy", unit: percent, least: 0.9, lines: { attentionBusy: "attention nodes", expertBusy: "expert nodes" } },
  { title: "KV cache", unit: percent, least: 0.05, lines: { kv: "in use" } },
];
const COLOURS = ["--line-0", "--line-1"];

export class Curves {
  constructor() {
    this.charts = CHARTS.map((what) => new Chart(what));
    this.title = byId("curves").querySelector("h2");
    byId("curves").querySelector(".charts").append(...this.charts.map((chart) => chart.root));
  }

  show(history) {
    const span = history.seconds;
    this.title.textContent = span < 120 ? `The last ${span} seconds` : `The last ${Math.round(span / 60)} minutes`;
    for (const chart of this.charts) chart.draw(history);
  }
}

class Chart {
  constructor(what) {
    this.what = what;
    this.canvas = element("canvas", { role: "img" });
    this.legend = element("figcaption");
    this.root = element("figure", {}, this.legend, this.canvas);
  }

  draw({ samples, at: now, seconds: span }) {
    const { context, width, height } = prepare(this.canvas, HEIGHT);
    const names = Object.keys(this.what.lines);
    const values = samples.flatMap((sample) => names.map((name) => sample[name])).filter(Number.isFinite);
    const most = Math.max(this.what.least, ...values) * 1.1;
    const to = (sample, name) => [width * (1 - (now - sample.at) / span), heightOf(sample[name] / most, height)];
    this.drawGrid(context, most, width, height);
    names.forEach((name, number) => drawLine(context, samples, name, to, colour(COLOURS[number]), this.what.dots));
    this.describe(samples, names);
  }

  drawGrid(context, most, width, height) {
    for (const value of ticks(most, 2.5)) {
      const y = heightOf(value / most, height);
      context.fillStyle = colour("--line");
      context.fillRect(0, y, width, 1);
      context.fillStyle = colour("--soft");
      if (value) context.fillText(this.what.unit(value), 0, y - 7);
    }
  }

  describe(samples, names) {
    const latest = names.map((name) => samples.findLast((sample) => Number.isFinite(sample[name]))?.[name] ?? NaN);
    const parts = names.map((name, at) =>
      element("span", {}, element("i", { className: `key line-${at}` }), `${this.what.lines[name]} `, element("b", {}, this.what.unit(latest[at]))),
    );
    this.legend.replaceChildren(element("strong", {}, this.what.title), ...parts);
    this.canvas.ariaLabel = this.legend.textContent;
  }
}

/** Of a share of the most, leaving room above for the label of a line. */
const heightOf = (share, height) => height - 1 - share * (height - ROOM);

/** A line broken where there is no value; dots: values stand alone, such as first tokens. */
function drawLine(context, samples, name, to, stroke, dots) {
  context.strokeStyle = context.fillStyle = stroke;
  context.lineWidth = 1.75;
  context.lineJoin = "round";
  context.beginPath();
  let drawing = false;
  for (const sample of samples) {
    const known = Number.isFinite(sample[name]);
    if (known && dots) dot(context, to(sample, name));
    else if (known) context[drawing ? "lineTo" : "moveTo"](...to(sample, name));
    drawing = known;
  }
  context.stroke();
}

function dot(context, [x, y]) {
  context.moveTo(x + 2, y);
  context.arc(x, y, 2, 0, 2 * Math.PI);
  context.fill();
}
