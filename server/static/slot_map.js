// A layer's experts, node by node: a cell for each slot that holds one.

import { colour, prepare } from "./canvas.js";
import { heat } from "./heatmap.js";

const HEAD = 20; // a node's name, above its cells
const BELOW = 6;
const NUMBERED = { width: 27, height: 21 };
const PLAIN = { width: 15, height: 15 };
const MOST_NUMBERED = 160; // slots of a layer whose experts are named in their cells

export class SlotMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.cells = [];
  }

  /** rows: [{node, told, slots: [{expert, ways, times, copies}]}]; times: its tokens by the mean.
   *  marked: the expert whose places are framed. */
  draw(rows, marked) {
    const width = this.canvas.clientWidth;
    const size = isNumbered(rows, width) ? NUMBERED : PLAIN;
    const perLine = Math.max(1, Math.floor(width / size.width));
    this.cells = placed(rows, size, perLine);
    const end = this.cells.at(-1)?.bottom ?? 0;
    const { context } = prepare(this.canvas, end + BELOW);
    for (const { row, top } of this.heads) {
      context.fillStyle = colour("--ink");
      context.textAlign = "left";
      context.fillText(row.told, 0, top + HEAD / 2);
    }
    for (const cell of this.cells) {
      context.globalAlpha = marked === null || cell.slot.expert === marked ? 1 : 0.35;
      drawCell(context, cell, size, size === NUMBERED, cell.slot.expert === marked);
    }
  }

  get heads() {
    const seen = new Map();
    for (const cell of this.cells) if (!seen.has(cell.row)) seen.set(cell.row, cell.y - HEAD);
    return [...seen].map(([row, top]) => ({ row, top }));
  }

  at({ x, y }) {
    return this.cells.find((cell) => x >= cell.x && x < cell.right && y >= cell.y && y < cell.bottom);
  }
}

/** Where that takes no more lines, or there are few. */
function isNumbered(rows, width) {
  const own = rows.map((row) => row.slots.length);
  return own.reduce((all, slots) => all + slots, 0) <= MOST_NUMBERED || Math.max(...own) * NUMBERED.width <= width;
}

function placed(rows, { width, height }, perLine) {
  const cells = [];
  let top = 0;
  for (const row of rows) {
    if (!row.slots.length) continue;
    top += HEAD;
    row.slots.forEach((slot, at) => {
      const [x, y] = [(at % perLine) * width, top + Math.floor(at / perLine) * height];
      cells.push({ row, slot, x, y, right: x + width, bottom: y + height });
    });
    top += Math.ceil(row.slots.length / perLine) * height + BELOW;
  }
  return cells;
}

/** A replica has a notch in its corner; a spare is an empty frame, since nothing is sent there. */
function drawCell(context, { slot, x, y }, { width, height }, numbered, marked) {
  const [wide, high] = [width - 2, height - 2];
  const spare = slot.ways === 0;
  context.fillStyle = spare ? colour("--card") : heat(slot.times / 2);
  context.fillRect(x, y, wide, high);
  if (spare) frame(context, x, y, wide, high, "--soft", 1, [2, 2]);
  if (slot.copies > 1 && !spare) notch(context, x + wide, y, numbered ? 7 : 6);
  if (marked) frame(context, x, y, wide, high, "--ink", 2, []);
  if (!numbered) return;
  const cool = slot.times < Number(colour("--heat-turn"));
  context.fillStyle = colour(spare ? "--ink" : cool ? "--on-cool" : "--on-hot");
  context.textAlign = "center";
  context.fillText(`${slot.expert}`, x + wide / 2, y + high / 2 + 1);
}

function frame(context, x, y, width, height, name, thickness, dashes) {
  context.strokeStyle = colour(name);
  context.lineWidth = thickness;
  context.setLineDash(dashes);
  context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
  context.setLineDash([]);
}

function notch(context, right, top, size) {
  context.fillStyle = colour("--replica");
  context.beginPath();
  context.moveTo(right - size, top);
  context.lineTo(right, top);
  context.lineTo(right, top + size);
  context.fill();
}
