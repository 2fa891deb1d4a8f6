// From totals since the start to what happened between two looks, kept for three minutes.

const KEPT_SECONDS = 180;
const LEAST_SECONDS = 30;
const GAP_SECONDS = 5; // a longer pause is a hole in the curves, not a line across it

export class History {
  constructor() {
    this.samples = [];
    this.state = null;
  }

  /** How long a time the samples cover, at least half a minute. */
  get seconds() {
    const since = this.samples[0]?.at ?? this.at;
    return Math.max(LEAST_SECONDS, Math.ceil(this.at - since));
  }

  /** Takes in a state of the server at a time in seconds; the sample made of it, if any. */
  take(state, at) {
    const [before, since] = [this.state, this.at];
    [this.state, this.at] = [state, at];
    const restarted = before !== null && state.generation_tokens < before.generation_tokens;
    if (before === null || restarted || at - since > GAP_SECONDS) {
      this.samples.push({ at, gap: true });
      return null;
    }
    const sample = { at, ...now(state), ...between(before, state, at - since) };
    this.samples = [...this.samples.filter((each) => at - each.at <= KEPT_SECONDS), sample];
    return sample;
  }
}

function now({ running, waiting, kv_usage: kv, nodes }) {
  const busy = (role) => {
    const own = nodes.filter((node) => node.role === role).map((node) => 1 - node.idle_share);
    return sum(own) / own.length;
  };
  return { running, waiting, kv, attentionBusy: busy("attention"), expertBusy: busy("expert") };
}

function between(before, after, seconds) {
  const first = grown(before.first_token, after.first_token);
  const next = grown(before.between_tokens, after.between_tokens);
  return {
    generated: (after.generation_tokens - before.generation_tokens) / seconds,
    prompt: (after.prompt_tokens - before.prompt_tokens) / seconds,
    firstMean: mean(first),
    nextMean: mean(next),
    nextHigh: quantile(next, 0.95),
  };
}

function grown(before, after) {
  const counts = after.counts.map((count, at) => count - before.counts[at]);
  return { bounds: after.bounds, counts, total: after.total - before.total };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

const mean = ({ counts, total }) => total / sum(counts); // NaN where there was none

/** As Prometheus's histogram_quantile: linear within the bucket. */
export function quantile({ bounds, counts }, share) {
  const wanted = share * sum(counts);
  let below = 0;
  for (let at = 0; at < bounds.length; at += 1) {
    if (counts[at] > 0 && below + counts[at] >= wanted) {
      const low = at ? bounds[at - 1] : 0;
      return low + ((bounds[at] - low) * (wanted - below)) / counts[at];
    }
    below += counts[at];
  }
  return wanted > 0 ? bounds.at(-1) : NaN;
}
