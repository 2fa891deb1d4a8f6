"""A layer's experts at several rows an expert, beside what the machine can do at all.

Goals: at 1 to 8 rows an expert at least 80 % of the bandwidth of a copy, at 128 rows 60 % of the
rate of a large product.
"""

from typing import Any

import torch

from gpu.bench import Bench
from gpu.models import QWEN3_30B, small, spec_of
from gpu.sections.probes import copy_rate, gemm_rate
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu.backend import GpuBackend

ROWS = (1, 2, 4, 8, 32, 128)


def run(bench: Bench) -> dict[str, Any]:
    """By rows an expert: seconds, weights read a second and operations a second, each as a share of
    the machine's own."""
    spec = spec_of(small(QWEN3_30B) if bench.dry else QWEN3_30B)
    shape = ExpertsShape(spec.num_experts, spec.hidden_size, spec.expert.intermediate, spec.top_k)
    backend = GpuBackend(bench.dtype, bench.dtype, bench.device)
    layer = backend.experts(shape)(shape.experts)
    gate_up = torch.randn(2 * shape.intermediate, shape.hidden) * shape.hidden**-0.5
    down = torch.randn(shape.hidden, shape.intermediate) * shape.intermediate**-0.5
    for expert in range(shape.experts):
        layer.put(expert, layer.prepare(gate_up, down))
    copied, multiplied = copy_rate(bench), gemm_rate(bench)
    weights = 3 * shape.experts * shape.hidden * shape.intermediate * bench.dtype.itemsize
    found = {}
    for rows in ROWS[: bench.size(len(ROWS), 2)]:
        tokens = max(1, rows * shape.experts // shape.top_k)
        device = bench.device.torch
        hidden = torch.randn(tokens, shape.hidden, device=device).to(bench.dtype)
        numbers = torch.arange(tokens * shape.top_k, dtype=torch.int32, device=device)
        choices = (numbers % shape.experts).view(tokens, -1)
        weight = torch.rand(tokens, shape.top_k, device=device)
        out = torch.empty_like(hidden)
        seconds = bench.seconds(lambda: layer.forward([hidden], [choices], [weight], [out]))  # noqa: B023
        operations = 6 * shape.hidden * shape.intermediate * tokens * shape.top_k
        found[str(rows)] = {
            "seconds": seconds,
            "of_copy": weights / seconds / copied,
            "of_gemm": operations / seconds / multiplied,
        }
    return found
