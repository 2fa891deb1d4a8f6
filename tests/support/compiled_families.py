"""Compile what the tests' checkpoints launch, for a GPU that isn't here:

    python -m tests.support.compiled_families 90 FAMILY-VARIANT ...

In a process whose kernels aren't interpreted. Prints how many variants of kernels there were.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu.ahead.device import ShapesDevice
from gpu.ahead.driver import CompilingDriver
from gpu.ahead.launches import NoWeights
from gpu.made_up import MadeUpModel
from gpu.models import kinds_of
from triton.runtime import driver

from megainfer.compute.gpu.backend import GpuBackend
from megainfer.models.registry import load_spec
from tests.support.checkpoints import write_config

CONTEXT, SEQUENCES, PROMPT = 48, 3, 20
WAYS = ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False))


def compiled(family: str, variant: str, architecture: int) -> list[Any]:
    """Of a step of tokens and of a prompt among tokens, in bfloat16, with `--batch-invariant`, and
    in float32."""
    device = ShapesDevice(architecture)
    with TemporaryDirectory() as folder:
        spec = kinds_of(load_spec(write_config(family, variant, Path(folder))))
    for dtype, invariant in WAYS:
        backend = GpuBackend(dtype, dtype, device, invariant=invariant)
        weights = NoWeights(device, threads=1)
        model = MadeUpModel(spec, backend, weights, SEQUENCES, CONTEXT)
        tokens = [model.chunk(n, CONTEXT - 1, [0]) for n in range(SEQUENCES)]
        backend.tokens.best(model.step(tokens))
        model.step([*tokens[1:], model.chunk(0, CONTEXT - PROMPT, [0] * PROMPT)])
    return device.launched


def main() -> None:
    architecture, seen = int(sys.argv[1]), set[str]()
    driver.set_active(CompilingDriver(architecture))
    for name in sys.argv[2:]:
        family, _, variant = name.partition("-")
        seen |= {kernel.hash for kernel in compiled(family, variant, architecture)}
    print(len(seen))


if __name__ == "__main__":
    main()
