"""What arms come to over their seeds."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any


def by_arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of each arm the summaries' numbers, one a seed; without the runs that have none."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        own = found.setdefault(run["arm"], defaultdict(list))
        for name, value in run["summary"].items():
            if value is not None:
                own[name].append(value)
    return found


def told(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line an arm and number: the mean, the least and the most of its seeds, and the mean beside
    PPO's, where that ran."""
    arms = by_arm(runs)
    base = arms.get("ppo", {})
    for arm, numbers in arms.items():
        for name, values in numbers.items():
            own = mean(values)
            seeds = f"{own:.4g} ({min(values):.4g} to {max(values):.4g}; {len(values)} seeds)"
            beside = f", {own / mean(base[name]):.2f} of PPO's" if base.get(name) and own else ""
            yield f"{arm} {name}: {seeds}{beside}"
