"""What a GPU has recorded, beside the same given to it one kernel after the other: bits and times.

Colocated steps are of one layer of each kind of each model, stages of experts of one layer of
Qwen3-30B-A3B, in two messages.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu.bench import Bench
from gpu.made_up import UNBOUNDED, MadeUpModel, MadeUpWeights
from gpu.models import MODELS, kinds_of, small, spec_of
from gpu.sections.experts import layer_of, message_of
from megainfer.attention_node.graphs import Bucket
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.experts import GpuLayerExperts
from megainfer.device import Recordings

ROWS = (2, 16, 64, 256)
SEQUENCES = 16


def run(bench: Bench) -> dict[str, Any]:
    """By rows of a batch, and by model: whether results are equal; seconds until it is done and
    until it is given, recorded or not."""
    questions: Mapping[str, Callable[[], Any]] = {
        **{name: partial(_step, bench, name) for name in MODELS},
        "experts": partial(_experts, bench),
    }
    return bench.answers(questions)


def _step(bench: Bench, name: str) -> dict[str, Any]:
    spec = kinds_of(spec_of(small(MODELS[name]) if bench.dry else MODELS[name]))
    sequences, context = bench.size(SEQUENCES, 2), bench.size(512, 24)
    backend = GpuBackend(bench.dtype, bench.dtype, bench.device)
    model = MadeUpModel(
        spec, backend, MadeUpWeights(bench.device), sequences + 1, context, spec.num_experts
    )
    kept = [cache for layer in range(len(spec.layers)) for cache in model.kv.layer(layer)]
    for cache in kept:
        cache.normal_()
    chunks = [model.chunk(i, context - 1, [i]) for i in range(sequences)]
    recorded = model.recorded([Bucket(sequences, context)])
    before = [cache.clone() for cache in kept]

    def from_before(step: Callable[[], Tensor]) -> Tensor:
        for cache, was in zip(kept, before, strict=True):
            cache.copy_(was)
        return step()

    ways = {
        "eager": partial(model.step, chunks),
        "graph": partial(model.step, chunks, recorded),
    }
    equal = torch.equal(*map(from_before, ways.values()))
    return {"equal": equal, **_times(bench, ways), **recorded.counters()}


def _experts(bench: Bench) -> dict[str, Any]:
    place = layer_of(bench)
    return {str(rows): _stage(bench, *place, rows) for rows in ROWS[: bench.size(len(ROWS), 1)]}


def _stage(
    bench: Bench, shape: ExpertsShape, backend: GpuBackend, layer: GpuLayerExperts, rows: int
) -> dict[str, Any]:
    batch = backend.fixed_batch(shape, 2, rows)
    totals = torch.zeros(shape.experts, dtype=torch.int64, device=bench.device.torch)
    recordings = Recordings(bench.device, UNBOUNDED, 1, lambda done, total: None)
    replay = batch.record(recordings, layer, totals.add_)
    message = message_of(bench, shape, rows)
    hidden, choices, weights, outs = ([*own.chunk(2)] for own in message)

    def eager() -> None:
        totals.add_(layer.forward(hidden, choices, weights, outs))

    def graph() -> None:
        batch.take(hidden, choices, weights, outs, [None] * len(hidden))
        replay()

    eager()
    expected = message[-1].clone()
    message[-1].fill_(torch.nan)
    graph()
    equal = torch.equal(message[-1], expected)
    counted = int(totals.sum()) == 2 * message[1].numel()
    return {"equal": equal, "counted": counted, **_times(bench, {"eager": eager, "graph": graph})}


def _times(bench: Bench, ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    done = {f"{name}_done": bench.seconds(way) for name, way in ways.items()}
    return done | {f"{name}_given": bench.given(way) for name, way in ways.items()}
