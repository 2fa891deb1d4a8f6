"""One layer's attention for decodes at long contexts, beside the bandwidth of a copy.

Goal: at least 80 % of it.
"""

from functools import partial
from typing import Any

import torch

from gpu.bench import Bench
from gpu.made_up import MadeUpModel, MadeUpWeights
from gpu.models import GPT_OSS_120B, QWEN3_30B, Json, small, spec_of
from gpu.sections.probes import copy_rate
from megainfer.compute.batch import build_batch
from megainfer.compute.gpu.backend import GpuBackend

MODELS: dict[str, Json] = {"Qwen3-30B-A3B": QWEN3_30B, "gpt-oss-120b": GPT_OSS_120B}
LAYER = 1  # of gpt-oss the one that sees all


def run(bench: Bench) -> dict[str, Any]:
    """By model and number of sequences: the device's seconds, and keys and values read a second as
    a share of a copy's bandwidth; projections and the write are in it. Seconds where kernels are
    given one after the other."""
    copied = copy_rate(bench)
    return bench.answers(
        {name: partial(_of_model, bench, config, copied) for name, config in MODELS.items()}
    )


def _of_model(bench: Bench, config: Json, copied: float) -> dict[str, Any]:
    spec = spec_of(small(config) if bench.dry else config, LAYER + 1)
    context, most = bench.size(8192, 40), bench.size(64, 2)
    backend = GpuBackend(bench.dtype, bench.dtype, bench.device)
    weights = MadeUpWeights(bench.device)
    model = MadeUpModel(spec, backend, weights, most, context, holders=spec.num_experts)
    layer, caches = model.half.layers[LAYER], model.kv.layer(LAYER)
    for cache in caches:
        cache.normal_()
    found = {}
    for sequences in sorted({1, most // 4 or 1, most}):
        chunks = [model.chunk(i, context - 1, [0]) for i in range(sequences)]
        batch = build_batch(chunks, bench.device)
        x = torch.randn(sequences, spec.hidden_size, device=bench.device.torch).to(bench.dtype)
        given = partial(layer.attend, x, batch, caches)
        seconds = bench.seconds(bench.recorded(given))
        read = sum(cache.nbytes for cache in caches) * sequences // most
        found[str(sequences)] = {
            "seconds": seconds,
            "eager_seconds": bench.seconds(given),
            "of_copy": read / seconds / copied,
        }
    return found
