// The plan's terms: what the nodes measured in the latest second, beside what was expected of it.

import { byId, element } from "./dom.js";
import { seconds } from "./format.js";

const NAMES = {
  attention: "attention (T_a)",
  experts: "experts (T_e)",
  transfer: "one way between them (T_c)",
  outside: "a step beside its layers",
  token: "between two tokens",
};
const FAR = 1.25; // from here a ratio, or its inverse, is marked

export class Terms {
  /** The latest that there were stay while nothing is generated. */
  show({ terms }) {
    if (!terms.length) return;
    byId("terms").hidden = false;
    byId("terms-rows").replaceChildren(...terms.map(row));
    byId("terms-note").textContent = terms.some(({ expected }) => expected)
      ? "Over the latest second with tokens, under its load."
      : "Nothing is expected: the start measured no stages, and no --hardware was described.";
  }

  /** Nobody tells how they are. */
  forget() {
    byId("terms").hidden = true;
  }
}

function row({ term, measured, expected }) {
  const ratio = expected ? measured / expected : NaN;
  const far = ratio > FAR || ratio < 1 / FAR;
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, NAMES[term]),
    element("td", {}, seconds(measured)),
    element("td", {}, expected ? seconds(expected) : "–"),
    element("td", { data: { drift: far ? "far" : "near" } }, expected ? `${ratio.toFixed(2)}${far ? " (far)" : ""}` : "–"),
  );
}
