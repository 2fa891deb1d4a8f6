"""Spans of work as a trace that Chrome and Perfetto show."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megainfer.instruments.stage_clock import NOT_OF_ONE, Span

MIN_TRACE_SECONDS, MAX_TRACE_SECONDS = 0.01, 60.0
"""For how long a running server may be asked to record."""

HOST_TRACK, DEVICE_TRACK = 0, 1
"""Of a node: when its host computed, or gave work to its device, and when that did it."""

Run = Mapping[str, Sequence[Span]]
"""Spans by the node's name."""


def letters(micro_batch: int) -> str:
    return chr(ord("A") + micro_batch)


def label(span: Span) -> str:
    """`attention B3` is layer 3 of the second micro-batch."""
    micro_batch = "" if span.micro_batch == NOT_OF_ONE else f" {letters(span.micro_batch)}"
    return f"{span.kind}{micro_batch}{'' if span.layer == NOT_OF_ONE else span.layer}"


def lane_of(node: str, span: Span) -> str:
    """Where a picture shows it: a device has a lane beside that of its host."""
    return f"{node} (device)" if span.on_device else node


def lanes_of(run: Run) -> dict[str, list[Span]]:
    """Spans by their lane."""
    lanes: dict[str, list[Span]] = {}
    for node, spans in run.items():
        lanes.setdefault(node, [])
        for span in spans:
            lanes.setdefault(lane_of(node, span), []).append(span)
    return lanes


def trace_document(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The trace's JSON: one process for each node of each run, with a thread for its device where
    it has one; every run begins at 0."""
    events = [event for number, name in enumerate(runs) for event in _events(number, name, runs)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(number: int, name: str, runs: Mapping[str, Run]) -> Iterator[dict[str, Any]]:
    run = runs[name]
    origin = min((span.start for spans in run.values() for span in spans), default=0.0)
    for index, (node, spans) in enumerate(sorted(run.items())):
        pid = 100 * number + index
        about = {"ph": "M", "pid": pid, "tid": 0}
        yield {"name": "process_name", "args": {"name": f"{name}: {node}"}, **about}
        yield {"name": "process_sort_index", "args": {"sort_index": pid}, **about}
        if any(span.on_device for span in spans):
            for track, told in ((HOST_TRACK, "host"), (DEVICE_TRACK, "device")):
                of_track = {**about, "tid": track}
                yield {"name": "thread_name", "args": {"name": told}, **of_track}
                yield {"name": "thread_sort_index", "args": {"sort_index": track}, **of_track}
        for span in spans:
            yield {
                "name": label(span),
                "cat": span.kind,
                "ph": "X",
                "pid": pid,
                "tid": DEVICE_TRACK if span.on_device else HOST_TRACK,
                "ts": (span.start - origin) * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "args": {"micro_batch": span.micro_batch, "layer": span.layer},
            }
