// What experts have served lately: from totals since the start to growth over the last looks.

const RECENT = 10; // looks at which something had happened

export class ExpertTokens {
  constructor() {
    this.looks = [];
    this.fell = false; // a process and its counts are gone: what is left is no share of anything
  }

  /** Takes in the server's totals; counts that fell are those of other processes. */
  take(load) {
    const before = this.looks.at(-1);
    if (before && !follows(before, load)) [this.looks, this.fell] = [[], true];
    if (!this.looks.length || total(before.tokens) !== total(load.tokens)) this.looks.push(load);
    else this.looks[this.looks.length - 1] = load; // what else it says may be news
    this.looks = this.looks.slice(-RECENT - 1);
  }

  /** [layer][column] since the start, or lately: as far as it was seen. */
  columns(recent) {
    const [first, last] = [this.looks[0], this.looks.at(-1)];
    if (!recent || (this.looks.length < 2 && !this.fell)) return last.tokens;
    return last.tokens.map((row, layer) => row.map((tokens, at) => tokens - first.tokens[layer][at]));
  }

  /** What a layer's experts served lately. layer: its position. Returns functions: of an expert, and
   *  of an expert and the node that was sent its tokens, undefined where one node had all. */
  lately(layer) {
    const { experts, shared } = this.looks.at(-1);
    const all = new Map(this.columns(true)[layer].map((tokens, at) => [experts[at], tokens]));
    const before = this.looks.length < 2 ? [] : this.looks[0].shared[layer];
    const since = new Map(before.map(([expert, node, tokens]) => [`${expert} ${node}`, tokens]));
    const parts = new Map(shared[layer].map(([expert, node, tokens]) => [`${expert} ${node}`, tokens - (since.get(`${expert} ${node}`) ?? 0)]));
    const split = new Set(shared[layer].map(([expert]) => expert));
    return {
      all: (expert) => all.get(expert) ?? 0,
      at: (expert, node) => (split.has(expert) ? (parts.get(`${expert} ${node}`) ?? 0) : undefined),
    };
  }
}

function follows(before, after) {
  return (
    `${before.experts}` === `${after.experts}` &&
    `${sharers(before)}` === `${sharers(after)}` &&
    after.tokens.every((row, layer) => row.every((tokens, at) => tokens >= before.tokens[layer][at]))
  );
}

const sharers = ({ shared }) => shared.map((layer) => layer.map(([expert, node]) => `${expert} ${node}`));

export const sum = (values) => values.reduce((all, value) => all + value, 0);
export const total = (rows) => sum(rows.map(sum));
