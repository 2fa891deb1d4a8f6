"""What runs have learnt, and what they have spent for it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from megainfer.rl.simulation.engine import DecodeTimes

Row = Mapping[str, Any]
"""A line of a run's metrics."""
Point = dict[str, float]
SOLVED = 0.75
"""The share of held-out problems whose price is asked for."""
LAST = 2
"""Evaluations at the end that a result is the mean of."""
METRICS = {
    "decode_steps": "rollout/longest",
    "tokens": "rollout/tokens",
    "context_tokens": "rollout/context_tokens",
    "seconds": "seconds/step",
    "rollout_seconds": "seconds/rollout",
}
"""A batch decodes in step, so that a training step takes as many decode steps as its longest window
has tokens."""
GPU = ("gpu_decode_seconds", "gpu_context_seconds")
SPENT = (*METRICS, *GPU)


def curve(rows: Sequence[Row], start: Mapping[str, float], engine: DecodeTimes) -> list[Point]:
    """How good before the first step (start: `pass@1` and `greedy`) and at each evaluation, with
    what had been spent by then; of `engine` see `gpu_seconds`."""
    spent = dict.fromkeys(SPENT, 0.0)
    points = [{"step": 0.0, **spent, "pass@1": start["pass@1"], "greedy": start["greedy"]}]
    for row in rows:
        for name, metric in METRICS.items():
            spent[name] += row[metric]
        for name, seconds in zip(GPU, gpu_seconds(row, engine), strict=True):
            spent[name] += seconds
        if "evaluation/pass@1" in row:
            found = {"pass@1": row["evaluation/pass@1"], "greedy": row["evaluation/greedy"]}
            points.append({"step": row["step"], **spent, **found})
    return points


def summary(rows: Sequence[Row], points: Sequence[Point]) -> dict[str, float | None]:
    """How good at the end, and what it took to be SOLVED; None where it never was."""
    price = price_of(SOLVED, points)
    places = [row["answers/finished"] + row["answers/unfinished"] for row in rows]
    offered = sum(row["rollout/longest"] * n for row, n in zip(rows, places, strict=True))
    mismatches = [row["policy/mismatch"] for row in rows if "policy/mismatch" in row]
    return {
        **{name: mean(p[name] for p in points[-LAST:]) for name in ("pass@1", "greedy")},
        **{f"{name}_to_solved": price[name] if price else None for name in SPENT},
        "occupancy": sum(row["rollout/tokens"] for row in rows) / offered,
        "engine_idle": mean(row["idle/engine"] for row in rows),
        "mismatch": max(mismatches, default=None),
    }


def price_of(solved: float, points: Sequence[Point]) -> Point | None:
    """What had been spent when pass@1 came to so much for the first time, on the straight line
    between the two evaluations around that: runs of other steps are compared as finely so."""
    for before, after in pairwise(points):
        if after["pass@1"] >= solved:
            gain = after["pass@1"] - before["pass@1"]
            part = min(1.0, max(0.0, (solved - before["pass@1"]) / gain)) if gain > 0 else 0.0
            return {name: before[name] + part * (after[name] - before[name]) for name in SPENT}
    return None


def gpu_seconds(row: Row, engine: DecodeTimes) -> tuple[float, float]:
    """Decoding, and contexts before it, of a step's rollouts by the times of other machines, on
    which a step takes hardly longer with more rows. Its decode steps count as with as many answers
    in each as there are on average: what is left of that growth is nearly in proportion."""
    answers = row["answers/finished"] + row["answers/unfinished"]
    tokens = row["rollout/context_tokens"]
    length = max(1.0, tokens / answers)
    steps = row["rollout/longest"]
    decoding = steps * engine.decode_seconds(row["rollout/tokens"] / steps, length)
    return decoding, engine.prefill_seconds(tokens, length)
