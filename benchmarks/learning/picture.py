"""Curves of runs, drawn."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learning.curves import GPU, SOLVED

AXES = {("decode_steps",): "decode steps", GPU: "seconds of rollouts, by the times of GPUs"}


def draw(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """pass@1 of held-out problems over what was spent: a line a run, a colour an arm."""
    from matplotlib.figure import Figure

    by_arm = defaultdict[str, list[Mapping[str, Any]]](list)
    for run in runs:
        by_arm[run["arm"]].append(run)
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (spent, words) in zip(figure.subplots(1, 2), AXES.items(), strict=True):
        for place, (arm, own) in enumerate(by_arm.items()):
            for number, run in enumerate(own):
                axes.plot(
                    [sum(point[name] for name in spent) for point in run["curve"]],
                    [point["pass@1"] for point in run["curve"]],
                    color=f"C{place}",
                    linewidth=1,
                    label=arm if number == 0 else None,
                )
        axes.axhline(SOLVED, color="grey", linewidth=0.5)
        axes.set_xlabel(words)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("pass@1 of held-out problems")
    figure.savefig(path, dpi=110)
