"""Spans of all processes as a trace for Chrome or Perfetto, and as a picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megainfer.instruments.stage_clock import NOT_OF_ONE, Span
from megainfer.instruments.trace_events import Run, lanes_of, letters, trace_document

LAYERS_DRAWN = 4
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def write_trace(path: Path, runs: Mapping[str, Run]) -> None:
    """See `trace_document`."""
    path.write_text(json.dumps(trace_document(runs)))


def check_plot() -> None:
    """Raises SystemExit where there is no matplotlib, before anything was measured in vain."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SystemExit(
            "--plot draws with matplotlib, which is not installed: pip install 'megainfer[bench]'"
        ) from None


def write_plot(path: Path, runs: Mapping[str, Run]) -> None:
    """The last layers of each run, a row a node; a colour is a micro-batch, and attention halves
    and experts are high, all else low."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = sum(len(run) for run in runs.values())
    figure, axes = pyplot.subplots(
        len(runs), 1, figsize=(14, 1 + 0.5 * rows + 0.7 * len(runs)), squeeze=False
    )
    for axis, (name, run) in zip(axes[:, 0], runs.items(), strict=True):
        _draw(axis, name, run)
    axes[-1, 0].set_xlabel("ms")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw(axis: Any, name: str, run: Run) -> None:
    lanes = lanes_of(run)
    nodes = sorted(lanes, reverse=True)
    start, end = _window(run)
    for row, node in enumerate(nodes):
        for span in lanes[node]:
            if span.end > start and span.start < end:
                _draw_span(axis, row, span, start)
    axis.set_yticks(range(len(nodes)), nodes)
    axis.set_xlim(0, (end - start) * 1e3)
    axis.set_title(name, loc="left", fontsize=10)


def _draw_span(axis: Any, row: int, span: Span, origin: float) -> None:
    high = span.kind in ("attention", "expert")
    height = 0.8 if high else 0.4
    colour = "grey" if span.micro_batch == NOT_OF_ONE else COLOURS[span.micro_batch % len(COLOURS)]
    left, width = (span.start - origin) * 1e3, (span.end - span.start) * 1e3
    axis.broken_barh(
        [(left, width)], (row - height / 2, height), facecolor=colour, edgecolor="white"
    )
    if high:
        text = f"{letters(span.micro_batch)}{span.layer}"
        axis.text(left + width / 2, row, text, ha="center", va="center", fontsize=7, clip_on=True)


def _window(run: Run) -> tuple[float, float]:
    """From where to where to draw: the last few layers of all micro-batches."""
    halves = [
        s for spans in run.values() for s in spans if s.kind == "attention" and not s.on_device
    ]
    nodes = sum(any(s.kind == "attention" for s in spans) for spans in run.values())
    shown = LAYERS_DRAWN * max(1, nodes) * len({s.micro_batch for s in halves})
    last = sorted(halves, key=lambda s: s.start)[-shown - 1 :]
    if not last:
        return 0.0, 1.0
    return last[0].start, last[-1].end
