"""Every kernel, compiled and run as models launch it, beside the reference in float32."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu.bench import Bench
from gpu.made_up import MadeUpModel, MadeUpWeights
from gpu.models import MODELS, kinds_of, small, spec_of
from megainfer.compute.backend import Backend
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.reference.backend import ReferenceBackend
from megainfer.models.spec import ModelSpec

CONTEXT = 640
PROMPT = 300


def run(bench: Bench) -> dict[str, Any]:
    """By model: the logits' error, as a share of their own spread, of the kernels and of the
    reference in the dtype that is served, which rounds as often."""
    return bench.answers({name: partial(_errors, bench, name) for name in MODELS})


def _errors(bench: Bench, name: str) -> dict[str, float]:
    config = MODELS[name]
    spec = kinds_of(spec_of(small(config) if bench.dry else config))
    exact = _logits(bench, spec, ReferenceBackend(torch.float32, torch.float32, bench.device))
    spread = exact.std()
    backends: dict[str, Backend] = {
        "kernels": GpuBackend(bench.dtype, bench.dtype, bench.device),
        "reference": ReferenceBackend(bench.dtype, bench.dtype, bench.device),
    }
    return {
        kind: float((_logits(bench, spec, backend) - exact).std() / spread)
        for kind, backend in backends.items()
    }


def _logits(bench: Bench, spec: ModelSpec, backend: Backend) -> Tensor:
    """Of a prompt in two chunks and of what two sequences go on with."""
    context, prompt = bench.size(CONTEXT, 24), bench.size(PROMPT, 9)
    holders = min(spec.num_experts, 16)  # the reference computes every expert that is here
    weights = MadeUpWeights(bench.device)
    model = MadeUpModel(spec, backend, weights, 2, context, holders)
    tokens = [token % spec.vocab_size for token in range(7, 7 + 2 * prompt)]
    steps = [
        [model.chunk(0, 0, tokens[:prompt]), model.chunk(1, 0, tokens[:3])],
        [model.chunk(0, prompt, tokens[prompt:]), model.chunk(1, 3, [5])],
        [model.chunk(0, 2 * prompt, [3]), model.chunk(1, 4, [9])],
    ]
    return torch.cat([model.step(chunks) for chunks in steps]).to("cpu")
