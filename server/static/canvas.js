// Drawing sharply at any pixel density, in the page's own colours.

/** A context in CSS pixels over the whole canvas, cleared; the height in CSS pixels. */
export function prepare(canvas, height) {
  const width = canvas.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  return { context, width, height };
}

const STYLE = getComputedStyle(document.documentElement); // stays up to date by itself

/** A colour of the page's style, such as `--ink`, as it is now: dark or light. */
export const colour = (name) => STYLE.getPropertyValue(name).trim();

/** Micro-batches go by letters, as traces have them. */
export const letter = (microBatch) => String.fromCharCode(65 + microBatch);

export const batchColour = (microBatch) => colour(`--batch-${microBatch % 8}`);

/** Steps of 1, 2 or 5 times a power of ten, about `wanted` of them up to `most`. */
export function ticks(most, wanted) {
  if (!(most > 0)) return [0];
  const rough = most / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, at) => at * step);
}

/** Where in a canvas a pointer is, in CSS pixels. */
export function position(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

/** Tells of the pointer over a canvas, by mouse or finger, and of its leaving (null). */
export function onPointer(canvas, tell) {
  for (const kind of ["pointermove", "pointerdown"]) {
    canvas.addEventListener(kind, (event) => tell(position(canvas, event)));
  }
  canvas.addEventListener("pointerleave", () => tell(null));
}
