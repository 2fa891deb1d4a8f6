"""Decoding with a whole model of Qwen3-30B-A3B's shape on one GPU, at several batches.

Goal: at a batch of 64 at least 70 % of what reading weights and keys alone would allow.
"""

from statistics import median
from time import perf_counter
from typing import Any

from gpu.bench import Bench
from gpu.made_up import MadeUpModel, MadeUpWeights
from gpu.models import QWEN3_30B, small, spec_of
from gpu.sections.probes import copy_rate
from megainfer.attention_node.graphs import Bucket
from megainfer.colocated.graphs import GraphedSteps
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.models.sources import attention_weight_bytes
from megainfer.models.spec import ModelSpec

BATCHES = (1, 8, 64, 256)
STEPS = 20


def run(bench: Bench) -> dict[str, Any]:
    """By batch: seconds a step from composing it to its tokens on the host, and the share of them
    that reading what it needs takes at a copy's bandwidth; of steps that the GPU has recorded, and
    of the same given one kernel after the other. What recording takes is noted first."""
    config = {**small(QWEN3_30B), "num_hidden_layers": 2} if bench.dry else QWEN3_30B
    spec, context = spec_of(config), bench.size(1024, 24)
    batches = BATCHES[: bench.size(len(BATCHES), 1)]
    copied = copy_rate(bench)
    backend = GpuBackend(bench.dtype, bench.dtype, bench.device)
    most = max(batches) + 1  # one more, which is nobody's
    model = MadeUpModel(spec, backend, MadeUpWeights(bench.device), most, context)
    started = perf_counter()
    recorded = model.recorded([Bucket(batch, context) for batch in batches])
    found: dict[str, Any] = {
        "recording": {"seconds": perf_counter() - started, **recorded.counters()}
    }
    bench.note(found)
    for batch in batches:
        floor = _bytes_read(bench, spec, model, batch, most) / copied
        ways = {"graph": recorded, "eager": None}
        found[str(batch)] = {
            name: _told(batch, floor, _step_seconds(bench, model, way, batch, context))
            for name, way in ways.items()
        }
        bench.note(found)
    return found


def _told(batch: int, floor: float, seconds: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "of_floor": floor / seconds,
    }


def _step_seconds(
    bench: Bench, model: MadeUpModel, recorded: GraphedSteps | None, batch: int, context: int
) -> float:
    tokens, times = [0] * batch, []
    steps = bench.size(STEPS, 1)
    for step in range(steps + bench.size(3, 0)):
        started = perf_counter()
        start = context - 1 - step % (context // 2)
        chunks = [model.chunk(i, start, [token]) for i, token in enumerate(tokens)]
        logits = model.step(chunks, recorded)
        _, best = model.backend.tokens.best(logits)
        tokens = bench.device.read_back(best).take().tolist()
        times.append(perf_counter() - started)
    return median(times[-steps:])


def _bytes_read(bench: Bench, spec: ModelSpec, model: MadeUpModel, batch: int, most: int) -> float:
    """Of a step: all weights but those of experts that nobody is expected to choose."""
    size = bench.dtype.itemsize
    chosen = 1 - (1 - spec.top_k / spec.num_experts) ** batch
    expert = 3 * spec.hidden_size * spec.expert.intermediate * size
    experts = len(spec.moe_layers) * spec.num_experts * chosen * expert
    embedding = spec.vocab_size * spec.hidden_size * size  # of which a step reads a few rows
    others = attention_weight_bytes(spec, size) - embedding
    return experts + others + model.kv.bytes * batch / most
