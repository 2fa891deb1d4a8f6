// Which part of the nodes' spans is shown. Rows are [kind, micro-batch, layer, start, duration],
// times in microseconds.

const GAP = 100_000; // nobody worked for longer than this: what was before is another story

const end = ([, , , start, duration]) => start + duration;
const start = ([, , , at]) => at;

/** {begin, end} of the last `steps` steps of each micro-batch, or null without any span. Of less
 *  than a step it is the middle, where layer follows layer. */
export function lastSteps({ kinds, nodes, devices, kept }, wanted) {
  const steps = Math.ceil(wanted);
  const all = Object.values(nodes).flat().sort((one, other) => start(one) - start(other));
  if (!all.length) return null;
  const last = Math.max(...all.map(end));
  // A device does again what its host has begun: steps are counted by hosts.
  const hosts = Object.keys(nodes).filter((name) => !devices.includes(name));
  const begin = Math.max(firstOf(hosts.flatMap((name) => nodes[name]), kinds, steps), completeSince(nodes, kept));
  return middle({ begin: afterGap(all, begin), end: last }, wanted / steps);
}

function middle({ begin, end }, share) {
  const cut = ((end - begin) * (1 - share)) / 2;
  return { begin: begin + cut, end: end - cut };
}

/** When the earliest of these steps began: a step begins by embedding its tokens. */
function firstOf(own, kinds, steps) {
  const embed = kinds.indexOf("embed");
  const begins = new Map();
  const all = own.sort((one, other) => start(one) - start(other));
  for (const span of all) {
    if (span[0] === embed) begins.set(span[1], [...(begins.get(span[1]) ?? []), start(span)]);
  }
  const latest = Math.max(...[...begins.values()].flat());
  const active = [...begins.values()].filter((own) => latest - own.at(-1) < GAP);
  const firsts = active.map((own) => own.at(-Math.min(steps, own.length)));
  return firsts.length ? Math.min(...firsts) : 0;
}

/** A node keeps its latest spans only, so that its earlier ones may be missing. */
function completeSince(nodes, kept) {
  const full = Object.values(nodes).filter((spans) => spans.length >= kept);
  return Math.max(0, ...full.map((spans) => start(spans[0])));
}

function afterGap(all, begin) {
  let since = begin;
  let busyUntil = begin;
  for (const span of all) {
    if (end(span) < begin) continue;
    if (start(span) - busyUntil > GAP) since = start(span);
    busyUntil = Math.max(busyUntil, end(span));
  }
  return since;
}
