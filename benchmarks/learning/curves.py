"""What runs have learnt, and what they have spent for it."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from megainfer.rl.simulation.engine import DecodeTimes

Row = Mapping[str, Any]
"""A line of a run's metrics."""
SOLVED = 0.75
"""The share of held-out problems whose price is asked for."""
LAST = 2
"""Evaluations at the end that a result is the mean of."""
SPENT = {
    "decode_steps": "rollout/longest",
    "tokens": "rollout/tokens",
    "context_tokens": "rollout/context_tokens",
    "seconds": "seconds/step",
    "rollout_seconds": "seconds/rollout",
}
"""A batch decodes in step, so that a training step takes as many decode steps as its longest window
has tokens."""


def curve(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Of each evaluation what had been spent by then."""
    spent = dict.fromkeys(SPENT, 0.0)
    points = []
    for row in rows:
        for name, metric in SPENT.items():
            spent[name] += row[metric]
        if "evaluation/pass@1" in row:
            found = {"pass@1": row["evaluation/pass@1"], "greedy": row["evaluation/greedy"]}
            points.append({"step": row["step"], **spent, **found})
    return points


def summary(rows: Sequence[Row], engine: DecodeTimes) -> dict[str, float | None]:
    """How good at the end, and what it took to be SOLVED; None where it never was.

    engine: by whose times a rollout's decode steps and contexts are also counted, for machines on
    which a step takes hardly longer with more rows.
    """
    points = curve(rows)
    first = next((point for point in points if point["pass@1"] >= SOLVED), None)
    places = [row["answers/finished"] + row["answers/unfinished"] for row in rows]
    offered = sum(row["rollout/longest"] * n for row, n in zip(rows, places, strict=True))
    mismatches = [row["policy/mismatch"] for row in rows if "policy/mismatch" in row]
    return {
        **{name: mean(p[name] for p in points[-LAST:]) for name in ("pass@1", "greedy")},
        **{f"{name}_to_solved": first and first[name] for name in SPENT},
        "gpu_seconds_to_solved": first and gpu_seconds(rows[: int(first["step"])], engine),
        "occupancy": sum(row["rollout/tokens"] for row in rows) / offered,
        "engine_idle": mean(row["idle/engine"] for row in rows),
        "mismatch": max(mismatches, default=None),
    }


def gpu_seconds(rows: Sequence[Row], engine: DecodeTimes) -> float:
    """Of these rollouts on other machines: every decode step with all answers in it, which few of
    them have, so that T-PPO isn't favoured; contexts are computed before it."""
    total = 0.0
    for row in rows:
        answers = row["answers/finished"] + row["answers/unfinished"]
        length = max(1.0, row["rollout/context_tokens"] / answers)
        total += row["rollout/longest"] * engine.decode_seconds(answers, length)
        total += engine.prefill_seconds(row["rollout/context_tokens"], length)
    return total
