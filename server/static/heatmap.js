// Tokens of each expert of each layer: columns are layers, rows are experts.

import { colour, onPointer, prepare } from "./canvas.js";
import { byId, choice } from "./dom.js";
import { sum, total } from "./expert_tokens.js";
import { count, integer } from "./format.js";

const MOST_HEIGHT = 340;
const ROW = { least: 2, most: 26 };
const LEFT = 50;
const BELOW = 18;
const HOT = 2; // times the mean of the layer

export class Heatmap {
  constructor() {
    const root = byId("load");
    this.canvas = root.querySelector("canvas");
    this.note = byId("load-note");
    this.recent = true;
    choice(root, "span", (span) => {
      this.recent = span === "recent";
      this.draw();
    });
    onPointer(this.canvas, (at) => this.point(at));
  }

  /** looks: of `ExpertTokens`, which has taken in what the server says. */
  show(looks) {
    this.looks = looks;
    this.load = looks.looks.at(-1);
    this.draw();
  }

  draw() {
    if (!this.load?.experts.length) return;
    this.tokens = this.looks.columns(this.recent);
    const { experts, layers } = this.load;
    const row = Math.min(ROW.most, Math.max(ROW.least, Math.floor(MOST_HEIGHT / experts.length)));
    const { context, width } = prepare(this.canvas, row * experts.length + BELOW);
    this.cell = { width: (width - LEFT) / layers.length, height: row };
    this.tokens.forEach((column, at) => this.drawColumn(context, column, at));
    this.drawNames(context, width);
    this.describe();
  }

  drawColumn(context, column, at) {
    const mean = sum(column) / column.length;
    const apart = this.cell.width > 5 ? 1 : 0;
    column.forEach((tokens, expert) => {
      context.fillStyle = heat(mean ? tokens / mean / HOT : 0);
      const [x, y] = [LEFT + at * this.cell.width, expert * this.cell.height];
      context.fillRect(x, y, this.cell.width - apart, this.cell.height - (this.cell.height > 5 ? 1 : 0));
    });
  }

  /** Nodes beside the rows of their experts, layers below. */
  drawNames(context, width) {
    const { experts, homes, layers } = this.load;
    context.fillStyle = colour("--soft");
    homes.forEach((home, at) => {
      if (at && homes[at - 1] === home) return;
      const y = at * this.cell.height;
      if (at) context.fillRect(0, y - 0.5, width, 1);
      context.fillText(`node ${home}`, 0, y + Math.min(this.cell.height * experts.length, 14) / 2 + 2);
    });
    const every = Math.ceil(26 / this.cell.width);
    const below = this.cell.height * experts.length + BELOW / 2 + 2;
    context.fillText("layer", 0, below);
    layers.forEach((layer, at) => {
      if (at % every === 0) context.fillText(`${layer}`, LEFT + at * this.cell.width, below);
    });
  }

  describe() {
    const all = total(this.tokens);
    this.canvas.ariaLabel = `${integer(all)} tokens over ${count(this.load.layers.length, "layer")} of ${count(this.load.experts.length, "expert")}`;
    this.note.textContent = all ? this.summary() : "No token has gone to an expert yet.";
  }

  summary() {
    const ratios = this.tokens.map((column) => (Math.max(...column) * column.length) / sum(column));
    const worst = ratios.reduce((found, ratio, at) => (ratio > ratios[found] ? at : found), 0);
    return `The most uneven layer is ${this.load.layers[worst]}: its busiest expert has ${ratios[worst].toFixed(1)} times the mean.`;
  }

  point(at) {
    if (!this.cell || !total(this.tokens)) return;
    const layer = at ? Math.floor((at.x - LEFT) / this.cell.width) : -1;
    const expert = at ? Math.floor(at.y / this.cell.height) : -1;
    const tokens = this.tokens[layer]?.[expert];
    this.note.textContent = tokens === undefined ? this.summary() : this.told(layer, expert, tokens);
  }

  told(layer, expert, tokens) {
    const { layers, experts, homes } = this.load;
    const mean = sum(this.tokens[layer]) / experts.length;
    const ratio = mean ? `, ${(tokens / mean).toFixed(2)} times the mean` : "";
    return `layer ${layers[layer]}, expert ${experts[expert]} on expert node ${homes[expert]}: ${count(tokens, "token")}${ratio}`;
  }
}

/** From nothing (0) over the mean (0.5) to twice the mean and beyond (1). */
export function heat(share) {
  const at = Math.min(1, share);
  const [low, high] = at < 0.5 ? ["--heat-0", "--heat-1"] : ["--heat-1", "--heat-2"];
  const part = Math.round((at < 0.5 ? at * 2 : at * 2 - 1) * 100);
  return `color-mix(in oklab, ${colour(high)} ${part}%, ${colour(low)})`;
}
