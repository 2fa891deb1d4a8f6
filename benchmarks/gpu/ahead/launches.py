"""What models launch, as shapes: whole steps of one layer of each kind that they have."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu.ahead.device import ShapesDevice
from gpu.made_up import MadeUpModel, MadeUpWeights
from gpu.models import MODELS, kinds_of, spec_of
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.tokens import DrawWish
from megainfer.models.stored import Pieces

CONTEXT = 8192
DECODES = 64
PROMPT = 2048
INVARIANT_TOO = {"Qwen3-30B-A3B", "DeepSeek-V3.2"}
"""Models that are served with `--batch-invariant` as well: together they have all that differs."""
WISHES = [DrawWish(temperature=0.8, top_k=50, top_p=0.9, min_p=0.05, uniform=0.5)] * DECODES


class NoWeights(MadeUpWeights):
    """Which have shapes alone."""

    def load_into(self, out: Tensor, pieces: Pieces) -> None:
        """See `WeightReader.load_into`."""


class Launch(NamedTuple):
    """model, step: of the first that launched this kernel so. compiled: as Triton gave it."""

    model: str
    step: str
    compiled: Any


def launches(models: Iterable[str], architecture: int) -> Iterator[Launch]:
    """Each variant of each kernel that the steps of these models launch on it, once; with whatever
    driver Triton has."""
    seen = set[str]()
    for name in models:
        for invariant in (False, True) if name in INVARIANT_TOO else (False,):
            for step, compiled in _of_model(name, invariant, architecture):
                if compiled.hash not in seen:
                    seen.add(compiled.hash)
                    yield Launch(name, step, compiled)


def _of_model(name: str, invariant: bool, architecture: int) -> Iterator[tuple[str, Any]]:
    """Each launch with its step."""
    device = ShapesDevice(architecture)
    backend = GpuBackend(torch.bfloat16, torch.bfloat16, device, invariant=invariant)
    spec, weights = kinds_of(spec_of(MODELS[name])), NoWeights(device, threads=1)
    model = MadeUpModel(spec, backend, weights, DECODES, CONTEXT, spec.num_experts)
    logits = model.step([model.chunk(i, CONTEXT - 1, [0]) for i in range(DECODES)])
    backend.tokens.best(logits)
    backend.tokens.draw(logits, WISHES)
    decode, device.launched = device.launched, []
    model.step([model.chunk(0, CONTEXT - PROMPT, [0] * PROMPT)])
    suffix = ", invariant" if invariant else ""
    for step, kernels in (("decode", decode), ("prompt", device.launched)):
        for compiled in kernels:
            yield step + suffix, compiled
