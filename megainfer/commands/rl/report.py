"""What a training run tells a terminal."""

from collections.abc import Mapping

from rich.console import Console

from megainfer.rl.run.trainer import StepReport

SHOWN = (
    ("reward/mean", "reward", ".3f"),
    ("reward/correct", "correct", ".3f"),
    ("answers/tokens", "tokens", ".0f"),
    ("policy/loss", "policy", ".4f"),
    ("value/loss", "value", ".4f"),
    ("policy/mismatch", "mismatch", ".1e"),
    ("evaluation/pass@1", "pass@1", ".3f"),
    ("seconds/step", "s", ".1f"),
)
"""Metric, its short name, and how it is written."""
MOST_REASONS = 3


class StepLines:
    """A line a step, and why answers had no reward."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps

    def show(self, step: int, report: StepReport) -> None:
        """Of the step with this number, from 1."""
        metrics = report.metrics
        ended, going = metrics["answers/finished"], metrics["answers/unfinished"]
        parts = [f"step {step}/{self._steps}", f"ended {ended:.0f}/{ended + going:.0f}"]
        parts += [f"{short} {metrics[n]:{form}}" for n, short, form in SHOWN if n in metrics]
        self.say("  ".join(parts))
        for count, reason in _commonest(report.skipped):
            self.say(f"  {count} answers without a reward: {reason}")

    def say(self, text: str) -> None:
        """A line as it is."""
        self._console.print(text, markup=False, soft_wrap=True)


def _commonest(skipped: Mapping[str, int]) -> list[tuple[int, str]]:
    """Counts and reasons, the commonest first; a function's messages may differ for each answer."""
    found = [(count, reason) for reason, count in skipped.items()]
    shown, others = found[:MOST_REASONS], found[MOST_REASONS:]
    if others:
        shown.append((sum(count for count, _ in others), f"{len(others)} other reasons"))
    return shown
