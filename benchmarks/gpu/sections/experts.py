"""A layer's experts at several rows an expert, beside what the machine can do at all.

Goals: at 1 to 8 rows an expert at least 80 % of the bandwidth of a copy, at 128 rows 60 % of the
rate of a large product.
"""

from typing import Any

import torch
from torch import Tensor

from gpu.bench import Bench
from gpu.models import QWEN3_30B, small, spec_of
from gpu.sections.probes import copy_rate, gemm_rate
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.experts import GpuLayerExperts

ROWS = (1, 2, 4, 8, 32, 128)


def run(bench: Bench) -> dict[str, Any]:
    """By rows an expert: the device's seconds, weights read a second and operations a second, each
    as a share of the machine's own; seconds where kernels are given one after the other."""
    shape, _, layer = layer_of(bench)
    copied, multiplied = copy_rate(bench), gemm_rate(bench)
    weights = 3 * shape.experts * shape.hidden * shape.intermediate * bench.dtype.itemsize
    found = dict[str, Any]()
    for rows in ROWS[: bench.size(len(ROWS), 2)]:
        tokens = max(1, rows * shape.experts // shape.top_k)
        message = message_of(bench, shape, tokens)

        def given() -> None:
            layer.forward(*([own] for own in message))  # noqa: B023

        seconds = bench.seconds(bench.recorded(given))
        operations = 6 * shape.hidden * shape.intermediate * tokens * shape.top_k
        found[str(rows)] = {
            "seconds": seconds,
            "eager_seconds": bench.seconds(given),
            "of_copy": weights / seconds / copied,
            "of_gemm": operations / seconds / multiplied,
        }
        bench.note(found)
    return found


def layer_of(bench: Bench) -> tuple[ExpertsShape, GpuBackend, GpuLayerExperts]:
    """One layer of Qwen3-30B-A3B, all of its experts alike."""
    spec = spec_of(small(QWEN3_30B) if bench.dry else QWEN3_30B)
    shape = ExpertsShape(spec.num_experts, spec.hidden_size, spec.expert.intermediate, spec.top_k)
    backend = GpuBackend(bench.dtype, bench.dtype, bench.device)
    layer = backend.experts(shape)(shape.experts)
    gate_up = torch.randn(2 * shape.intermediate, shape.hidden) * shape.hidden**-0.5
    down = torch.randn(shape.hidden, shape.intermediate) * shape.intermediate**-0.5
    for expert in range(shape.experts):
        layer.put(expert, layer.prepare(gate_up, down))
    return shape, backend, layer


def message_of(bench: Bench, shape: ExpertsShape, tokens: int) -> tuple[Tensor, ...]:
    """Of hidden states, choices that are spread evenly, weights, and where the result goes."""
    device = bench.device.torch
    hidden = torch.randn(tokens, shape.hidden, device=device).to(bench.dtype)
    numbers = torch.arange(tokens * shape.top_k, dtype=torch.int32, device=device)
    choices = (numbers % shape.experts).view(tokens, -1)
    weights = torch.rand(tokens, shape.top_k, device=device)
    return hidden, choices, weights, torch.empty_like(hidden)
