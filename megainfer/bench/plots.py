"""Pictures of a load: its timeline, and how its latencies are distributed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megainfer.bench.metrics import concurrency, tokens_by_second
from megainfer.bench.sample import Outcome
from megainfer.errors import ConfigError, MegaInferError


def require_matplotlib() -> None:
    """Raises ConfigError where it isn't installed, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib: install megainfer[bench], or matplotlib itself"
        ) from error


def save_plots(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write timeline.png and latencies.png there. Raises MegaInferError if that fails."""
    answered = [outcome for outcome in outcomes if outcome.ok]
    if not answered:
        raise MegaInferError("nothing was answered, so there is nothing to plot")
    figures = {"timeline.png": _timeline(answered), "latencies.png": _latencies(answered)}
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=120)
            paths.append(folder / name)
    except OSError as error:
        raise MegaInferError(f"--plot {folder}: {error}") from error
    return paths


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no state that pyplot would keep
    return figure, figure.subplots(rows, columns)


def _timeline(answered: Sequence[Outcome]) -> Any:
    figure, (requests, running, tokens) = _figure(3, 1, (9, 9))
    begin = min(outcome.start for outcome in answered)
    for row, outcome in enumerate(sorted(answered, key=lambda o: o.start)):
        sent, first = outcome.start - begin, outcome.ttft or 0.0
        requests.barh(row, first, left=sent, color="tab:orange", height=1)
        requests.barh(row, outcome.latency - first, left=sent + first, color="tab:blue", height=1)
    requests.set(ylabel="request", title="orange: to the first token; blue: to the last")
    steps = concurrency(answered)
    running.step([t - begin for t, _ in steps], [count for _, count in steps], where="post")
    running.set(ylabel="requests at a time")
    rates = tokens_by_second(answered)
    tokens.step(range(len(rates)), rates, where="post")
    tokens.set(ylabel="tokens/s", xlabel="seconds since the first request")
    return figure


def _latencies(answered: Sequence[Outcome]) -> Any:
    figure, axes = _figure(2, 2, (9, 7))
    seconds = {
        "time to first token": [outcome.ttft or 0.0 for outcome in answered],
        "time per output token": [outcome.tpot for outcome in answered if outcome.tokens > 1],
        "inter-token latency": [gap for outcome in answered for gap in outcome.itl],
        "end-to-end latency": [outcome.latency for outcome in answered],
    }
    for ax, (name, values) in zip(axes.flat, seconds.items(), strict=True):
        ax.ecdf([value * 1000 for value in values] or [0.0])
        ax.set(title=name, xlabel="ms", ylabel="share at or below")
        ax.grid(alpha=0.3)
    return figure
