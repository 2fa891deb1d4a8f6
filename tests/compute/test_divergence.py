"""How far bfloat16 and int8 may be from transformers in float32, on small random checkpoints.

Every token visits every expert here: where a router has to choose, rounding makes it choose
another expert now and then, and that would hide how well the chosen ones are computed. The bounds
are about 1.5 times what was measured where kernels round the rows as well (AVX-512 BF16 and VNNI);
other levels are closer. `test_divergence_demo.py` has a real model.
"""

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megainfer.compute.cpu.half import CpuHalf, CpuLayer
from megainfer.compute.cpu.kernels import library
from megainfer.compute.cpu.kernels.experts import CpuLayerExperts
from megainfer.compute.selection import Precision
from tests.support.checkpoints import oracle, write_checkpoint
from tests.support.divergence import Divergence, divergence, relative_error
from tests.support.node_pair import FLOAT32, Pair, load_pair

needs_kernels = pytest.mark.skipif(
    not library.is_built(), reason="the CPU kernels are not built, and the reference has no int8"
)
PRECISIONS: Mapping[str, Precision] = {
    "float32": FLOAT32,
    "bfloat16 weights": Precision("float32", "bfloat16", "bfloat16"),
    "bfloat16": Precision("bfloat16"),
    "int8 experts": Precision("bfloat16", "int8"),
    "int8": Precision("bfloat16", "int8", "int8"),
    "int8 in float32": Precision("float32", "int8", "int8"),
}
BOUNDS: Mapping[str, tuple[float, ...]] = {  # of relative errors, in the order of PRECISIONS
    "qwen3_moe": (2e-6, 1.6e-2, 2.5e-2, 4.5e-2, 6.5e-2, 6.5e-2),
    "qwen2_moe": (2e-6, 2.3e-2, 3.2e-2, 5e-2, 8.5e-2, 8.5e-2),
    "mixtral": (2e-6, 2.1e-2, 3.2e-2, 5e-2, 8.5e-2, 8.5e-2),
    "olmoe": (2e-6, 1.6e-2, 2.5e-2, 4.5e-2, 6.5e-2, 6.5e-2),
}
VARIANT = {"olmoe": "mha"}  # of the others: gqa
EXPERTS = 4


class Sample:
    """A family's checkpoint, sequences, and transformers' logits [T, V] for all their tokens."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family = family
        experts = "num_local_experts" if family == "mixtral" else "num_experts"
        settings = {experts: EXPERTS, "num_experts_per_tok": EXPERTS, "num_hidden_layers": 2}
        self.folder = write_checkpoint(family, VARIANT.get(family, "gqa"), folder, **settings)
        generator = torch.Generator().manual_seed(7)
        tokens = torch.randint(160, (8, 30), generator=generator)
        self.sequences = tokens.tolist()
        with torch.inference_mode():
            self.exact = oracle(self.folder)(tokens).logits.flatten(0, 1)

    def error(self, pair: Pair) -> float:
        return relative_error(torch.cat(pair.all_logits(self.sequences)), self.exact)

    def bound(self, precision: str) -> float:
        return dict(zip(PRECISIONS, BOUNDS[self.family], strict=True))[precision]


@pytest.fixture(scope="module", params=list(BOUNDS))
def sample(request, tmp_path_factory) -> Sample:
    return Sample(request.param, tmp_path_factory.mktemp(request.param))


@needs_kernels
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_error_of_logits_is_bounded(sample, precision):
    error = sample.error(load_pair(sample.folder, 2, PRECISIONS[precision], "cpu"))
    print(f"{sample.family}, {precision}: error {error:.2e}")
    assert error <= sample.bound(precision)


def test_the_error_of_the_reference_in_bfloat16_is_bounded(sample):
    error = sample.error(load_pair(sample.folder, 2, PRECISIONS["bfloat16"], "reference"))
    print(f"{sample.family}, bfloat16, reference: error {error:.2e}")
    assert error <= 1.5 * sample.bound("bfloat16")  # it rounds the residual stream as well


def qkv_panels(pair: Pair) -> int:
    return first_layer(pair)._attention.native.qkv.panels


def out_panels(pair: Pair) -> int:
    return first_layer(pair)._attention.native.out.panels


def first_layer(pair: Pair) -> CpuLayer:
    half = pair.attention.half
    assert isinstance(half, CpuHalf)
    return half.layers[0]


def down_panels(pair: Pair) -> int:
    experts = pair.experts[0].layer(0)
    assert isinstance(experts, CpuLayerExperts)
    of_each = ctypes.c_void_p.from_address(experts.native.down)  # the first expert's of a table
    assert of_each.value is not None
    return of_each.value


@needs_kernels
@pytest.mark.parametrize("panels", [qkv_panels, out_panels, down_panels])
def test_one_scale_twice_too_large_breaks_the_bound(sample, panels):
    """Packed int8 begins with its scales: the first is of one channel of one linear layer."""
    pair = load_pair(sample.folder, 2, PRECISIONS["int8"], "cpu")
    scale = ctypes.c_float.from_address(panels(pair))
    sound = scale.value
    scale.value = 2 * sound
    assert sample.error(pair) > sample.bound("int8")
    scale.value = sound
    assert sample.error(pair) <= sample.bound("int8")


@pytest.fixture(scope="module")
def truncated(sample, tmp_path_factory) -> Path:
    """The checkpoint whose weights lost the bits that bfloat16 has no room for."""
    folder = tmp_path_factory.mktemp("truncated")
    (folder / "config.json").write_text((sample.folder / "config.json").read_text())
    weights = load_file(sample.folder / "model.safetensors")
    cut = {name: (w.view(torch.int32) & ~0xFFFF).view(torch.float32) for name, w in weights.items()}
    save_file(cut, folder / "model.safetensors", {"format": "pt"})
    return folder


@needs_kernels
def test_truncation_in_place_of_rounding_breaks_the_bound(sample, truncated):
    pair = load_pair(truncated, 2, PRECISIONS["bfloat16 weights"], "cpu")
    assert sample.error(pair) > sample.bound("bfloat16 weights")


def test_a_divergence_counts_shifts_as_nothing_and_nan_as_no_good():
    exact = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.5, 0.0]])
    assert divergence([exact + 5], [exact]).is_within(Divergence(1e-6, 1e-6, 1.0, 0.0))
    found = divergence([exact[:1] + 5, exact[1:].roll(1)], [exact[:1], exact[1:]])
    assert (found.agreement, found.overturned) == (0.5, 1.5)
    anything = Divergence(math.inf, math.inf, 0.0, math.inf)
    assert found.is_within(anything)
    assert not found.is_within(Divergence(math.inf, math.inf, 0.6, math.inf))
    assert not divergence([exact * math.nan], [exact]).is_within(anything)
