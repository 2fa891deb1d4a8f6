"""What models launch, as shapes: whole steps of one layer of each kind that they have, what goes to
several expert nodes, and experts in the formats that their weights may have."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu.ahead.device import ShapesDevice
from gpu.made_up import MadeUpModel, MadeUpWeights
from gpu.models import MODELS, kinds_of, spec_of
from megainfer.compute.edits import RowEdits
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.homes import HomeTable
from megainfer.compute.gpu.kernels.experts.messages import Messages
from megainfer.compute.gpu.kernels.routing.gate import Choices
from megainfer.compute.gpu.kernels.routing.packing import KernelPacking, Payload
from megainfer.compute.gpu.kernels.routing.plan import plan
from megainfer.compute.tokens import DrawWish
from megainfer.expert_node.experts import shape_of
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Pieces
from megainfer.topology import contiguous_placement

CONTEXT = 8192
DECODES = 64
PROMPT = 2048
INVARIANT_TOO = {"Qwen3-30B-A3B", "DeepSeek-V3.2"}
"""Models that are served with `--batch-invariant` as well: together they have all that differs."""
FORMATS: Mapping[str, tuple[str, ...]] = {
    "Qwen3-30B-A3B": ("fp8_channel", "int8", "int4", "int4_128"),
    "gpt-oss-120b": ("mxfp4",),
    "DeepSeek-V3": ("fp8",),
}
"""Of experts' weights beside bfloat16: a model's own where it has one."""
NODES = 2
"""Expert nodes that a step's rows are shared out to."""
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
    rows = range(DECODES)
    backend.tokens.edit(logits, [_edits(row) for row in rows])
    backend.tokens.scores(logits, device.empty((DECODES,), torch.int64), rows, [5] * DECODES)
    _apart(device, spec, DECODES)
    decode, device.launched = device.launched, []
    model.step([model.chunk(0, CONTEXT - PROMPT, [0] * PROMPT)])
    _apart(device, spec, PROMPT)
    suffix = ", invariant" if invariant else ""
    yield from _named(decode, device.launched, suffix)
    for weights_format in () if invariant else FORMATS.get(name, ()):
        tokens, many = (
            _of_experts(spec, weights_format, rows, architecture) for rows in (DECODES, PROMPT)
        )
        yield from _named(tokens, many, f", {weights_format}")


def _named(decode: list[Any], prompt: list[Any], suffix: str) -> Iterator[tuple[str, Any]]:
    for step, kernels in (("decode", decode), ("prompt", prompt)):
        for compiled in kernels:
            yield step + suffix, compiled


def _edits(row: int) -> RowEdits:
    return RowEdits(row, None, {1: 0.5}, array("q", [2]), array("f", [1.0]), 1.1, 0.5, 0.5)


def _apart(device: ShapesDevice, spec: ModelSpec, tokens: int) -> None:
    """What an attention node makes of a layer's choices where there are several expert nodes, and
    of their replies."""
    choices, numbers = (tokens, spec.top_k), torch.bfloat16
    nodes, local_ids = (device.empty(choices, torch.int32) for _ in range(2))
    made = Choices(
        nodes,
        local_ids,
        device.empty(choices, torch.float32),
        device.empty((tokens,), torch.int64),
    )
    placement = contiguous_placement(spec.num_experts, NODES, spec.moe_layers)
    parts = plan(device, made, HomeTable(placement, spec.first_moe_layer, device))
    hidden, *replies = (
        device.empty((tokens, spec.hidden_size), numbers) for _ in range(1 + len(parts))
    )
    payloads: list[Payload] = [
        (reply, part.local_ids, part.weights, device.empty((1,), torch.int32))
        for reply, part in zip(replies, parts, strict=True)
    ]
    packing = KernelPacking()
    packing.pack(device, hidden, parts, payloads)
    packing.add(device, parts, replies, hidden)


def _of_experts(spec: ModelSpec, weights_format: str, tokens: int, architecture: int) -> list[Any]:
    """A layer's experts, of whom none is here."""
    device, shape = ShapesDevice(architecture), shape_of(spec)
    layer = GpuBackend(torch.bfloat16, weights_format, device).experts(shape)(0)
    hidden, out = (device.empty((tokens, shape.hidden), torch.bfloat16) for _ in range(2))
    ids, weights = (
        device.empty((tokens, shape.top_k), dtype) for dtype in (torch.int32, torch.float32)
    )
    layer.compute(Messages.of(device, [hidden], [ids], [weights], [out], [None]), held=())
    return device.launched
