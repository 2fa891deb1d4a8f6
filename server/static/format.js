// Numbers as people read them.

export const integer = (value) => Math.round(value).toLocaleString("en");

/** Three significant digits at most: 0, 0.4, 12.3, 1,234. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 100 || value === 0 ? integer(value) : value.toFixed(value < 10 && value % 1 ? 1 : 0);
}

export function percent(share) {
  const shown = 100 * share;
  return `${shown > 0 && shown < 9.95 ? shown.toFixed(1) : Math.round(shown)}\u00a0%`;
}

export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return `${value.toFixed(value < 10 ? 1 : 0)} s`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(value) / 3));
  return `${short(value / 1000 ** power)} ${units[power]}`;
}

export const count = (number, noun) => `${integer(number)} ${noun}${number === 1 ? "" : "s"}`;
