"""Whether a step asks the GPU for anything but its tokens: CUDA itself tells."""

from functools import partial
from typing import Any

import torch

from gpu.bench import Bench
from gpu.made_up import MadeUpModel, MadeUpWeights
from gpu.models import MODELS, kinds_of, small, spec_of
from megainfer.compute.gpu.backend import GpuBackend


def run(bench: Bench) -> dict[str, Any]:
    """By model: how often a step of decodes made the host wait, and copied to it."""
    return bench.answers({name: partial(_of_model, bench, name) for name in MODELS})


def _of_model(bench: Bench, name: str) -> dict[str, int]:
    config = MODELS[name]
    spec = kinds_of(spec_of(small(config) if bench.dry else config))
    backend = GpuBackend(bench.dtype, bench.dtype, bench.device)
    weights, sequences, context = MadeUpWeights(bench.device), 4, bench.size(512, 24)
    model = MadeUpModel(spec, backend, weights, sequences, context, holders=spec.num_experts)
    chunks = [model.chunk(i, context - 1, [i]) for i in range(sequences)]

    def step() -> None:
        backend.tokens.best(model.step(chunks))

    step()  # kernels are compiled and loaded, which waits
    if bench.device.is_host:
        return {"waits": 0, "copies": 0}
    return {"waits": _waits(step), "copies": _copies(step)}


def _waits(step: Any) -> int:
    """Raises where the first of them is, so that it is told."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0


def _copies(step: Any) -> int:
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return sum("DtoH" in event.name for event in profile.events() or ())
