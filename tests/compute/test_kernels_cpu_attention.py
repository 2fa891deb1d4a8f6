"""The attention half in C++ against the reference, with sizes that fill no vector."""

import pytest
import torch
from torch.nn.functional import layer_norm, linear

from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.cpu.kernels.attention_layer import block_shape
from megainfer.compute.cpu.kernels.packed import pack_norm
from megainfer.compute.reference import kernels as reference
from megainfer.config import WEIGHT_DTYPES as ALL_DTYPES
from megainfer.errors import ConfigError
from megainfer.models.spec import (
    AttentionSpec,
    NormKind,
    NormSpec,
    QkNorm,
    QueryTemperature,
    RopeSpec,
)
from tests.support.kernel_attention import (
    EPS,
    ROPE,
    Layer,
    Shape,
    batch_of,
    packed_cache,
    unpacked_cache,
)
from tests.support.kernel_experts import levels, relative_error

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

every_level = pytest.mark.parametrize("level", levels())

BIASED = {"qkv_bias": True, "out_bias": True}
LAYER_NORM = NormSpec(1e-5, NormKind.LAYER, bias=True)
SHAPES = {
    "plain": Shape(64, AttentionSpec(10, 2, 80, ROPE)),
    "mqa": Shape(40, AttentionSpec(4, 1, 64, ROPE)),
    "odd_group": Shape(40, AttentionSpec(13, 1, 128, ROPE)),
    "head_norm": Shape(48, AttentionSpec(4, 2, 16, ROPE, qk_norm=QkNorm.HEAD)),
    "full_norm": Shape(50, AttentionSpec(6, 1, 6, ROPE, qk_norm=QkNorm.FULL, **BIASED)),
    "clip": Shape(33, AttentionSpec(3, 3, 20, ROPE, clip_qkv=0.7, **BIASED)),
    "clip_norm": Shape(40, AttentionSpec(2, 2, 128, ROPE, qk_norm=QkNorm.HEAD, clip_qkv=1.5)),
    "scale_sinks": Shape(40, AttentionSpec(6, 2, 20, ROPE, scale=0.4, sinks=True)),
    "window": Shape(40, AttentionSpec(6, 2, 20, ROPE, window=37)),
    "window_of_one": Shape(40, AttentionSpec(4, 2, 16, ROPE, window=1)),
    "window_sinks": Shape(40, AttentionSpec(8, 2, 16, ROPE, window=64, sinks=True)),
    "chunk": Shape(40, AttentionSpec(6, 2, 20, ROPE, chunk=48)),
    "partial": Shape(40, AttentionSpec(4, 2, 20, RopeSpec(1e4, rotated=6))),
    "neighbours": Shape(40, AttentionSpec(4, 2, 20, RopeSpec(1e4, rotated=14, interleaved=True))),
    "unit_after_rope": Shape(
        40,
        AttentionSpec(
            4, 2, 16, RopeSpec(1e4, interleaved=True), qk_norm=QkNorm.UNIT, norm_after_rope=True
        ),
    ),
    "head_after_rope": Shape(
        40, AttentionSpec(4, 2, 16, ROPE, qk_norm=QkNorm.HEAD, norm_after_rope=True)
    ),
    "no_positions": Shape(40, AttentionSpec(4, 2, 16, None, temperature=QueryTemperature(9, 0.7))),
    "gated": Shape(
        40,
        AttentionSpec(4, 2, 20, ROPE, qk_norm=QkNorm.HEAD, gated=True, **BIASED),
        NormSpec(1e-5, unit_offset=True),
    ),
    "layer_norm": Shape(37, AttentionSpec(4, 2, 16, ROPE), LAYER_NORM, residual=0.3),
    "layer_norm_bare": Shape(37, AttentionSpec(4, 2, 16, ROPE), NormSpec(1e-5, NormKind.LAYER)),
}
# Decodes, beginnings and later chunks of prompts; around the ends of tiles and blocks.
CHUNKS = [
    (0, 1),
    (15, 1),
    (16, 1),
    (36, 1),
    (50, 1),
    (70, 1),
    (0, 5),
    (63, 1),
    (64, 1),
    (62, 4),
    (10, 130),
    (129, 2),
]


@every_level
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_references(level, shape, dtype):
    layer = Layer(shape)
    batch, blocks = batch_of(CHUNKS)
    x, cache = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    kept = cache.clone()
    actual = layer.run(AttentionKernel(1, level), x, batch, cache)
    expected = layer.expected(x, batch, kept)
    tolerance = 2e-6 if dtype == torch.float32 else 2e-3
    assert relative_error(actual - x, expected - x) < tolerance
    torch.testing.assert_close(cache, kept, atol=1e-5, rtol=1e-2 if dtype.itemsize == 2 else 0)


@every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_beyond_the_context_are_never_seen(level, dtype):
    """Not even as NaN, and neither are other sequences' blocks."""
    shape = SHAPES["head_norm"]
    layer = Layer(shape)
    batch, blocks = batch_of([(20, 1), (5, 7)])
    x, clean = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    parts = unpacked_cache(clean, shape.attention.head_dim)
    for part in parts:
        part[2, 21 - 16 :] = torch.nan  # sequence 0's second block
        part[1, 12:] = torch.nan  # sequence 1's first
        part[3:] = torch.nan
    kernel, dirty = AttentionKernel(1, level), packed_cache(*parts)
    assert torch.equal(layer.run(kernel, x, batch, dirty), layer.run(kernel, x, batch, clean))


@every_level
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", ["window", "chunk"])
def test_blocks_before_the_window_are_never_read(level, dtype, limit):
    """Not even as NaN: their memory costs no time."""
    spec = AttentionSpec(4, 2, 16, ROPE, sinks=True, **{limit: 64})
    layer = Layer(Shape(48, spec))
    batch, blocks = batch_of([(130, 1), (128, 30)])  # see positions 67 and 65 on, or 128 on
    x, clean = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    parts = unpacked_cache(clean, spec.head_dim)
    for part in parts:
        part[: 2 * (64 // 16)] = torch.nan  # the first 64 positions of both sequences
    kernel, dirty = AttentionKernel(1, level), packed_cache(*parts)
    assert torch.equal(layer.run(kernel, x, batch, dirty), layer.run(kernel, x, batch, clean))


@every_level
@pytest.mark.parametrize("weight_dtype", ALL_DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (37, 70), (150, 33), (300, 1100)])
def test_linear(level, weight_dtype, inputs, outputs):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    bias = torch.randn(outputs, generator=generator)
    kernel = AttentionKernel(1, level)
    packed = kernel.pack(weight, weight_dtype, bias)
    tolerance = {"float32": 1e-6, "bfloat16": 6e-3, "int8": 2e-2}.get(weight_dtype, 0.2)
    for rows in (1, 3, 29):
        x = torch.randn(rows, inputs, generator=generator)
        expected = linear(x.double(), weight.double(), bias.double())
        assert relative_error(kernel.linear(packed, x), expected) < tolerance


@every_level
def test_norm_and_sigmoid(level):
    kernel = AttentionKernel(1, level)
    x, weight = torch.randn(5, 77), torch.rand(77)
    expected = reference.rms_norm(x.double(), weight.double(), EPS)
    actual = kernel.norm(x, pack_norm(weight, NormSpec(EPS)))
    torch.testing.assert_close(actual.double(), expected, atol=1e-6, rtol=1e-6)
    bias = torch.randn(77)
    expected = layer_norm(10 + x.double(), (77,), weight.double(), bias.double(), 1e-5)
    actual = kernel.norm(10 + x, pack_norm(weight, LAYER_NORM, bias))
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    wide = torch.linspace(-100, 100, 101)
    torch.testing.assert_close(kernel.sigmoid_(wide.clone()), wide.sigmoid(), atol=1e-6, rtol=1e-5)


@every_level
def test_head_reads_only_its_rows(level):
    kernel = AttentionKernel(1, level)
    x, norm, weight = torch.randn(9, 50), torch.rand(50), torch.randn(130, 50)
    rows = torch.tensor([7, 0, 7, 3])
    expected = linear(reference.rms_norm(x[rows], norm, EPS), weight)
    packed = pack_norm(norm, NormSpec(EPS))
    actual = kernel.head(kernel.pack(weight, "float32"), packed, x, rows)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert kernel.head(kernel.pack(weight, "float32"), packed, x, rows[:0]).shape == (0, 130)


@every_level
@pytest.mark.parametrize("width", [1, 7, 64, 65, 1000, 8192])
def test_best_is_the_first_of_the_largest(level, width):
    logits = torch.randn(9, width).round(decimals=1)  # with ties
    logits[1] = -torch.inf
    logits[2, -1] = torch.inf
    logits[3, width // 2] = torch.nan
    logits[4, 0], logits[4, -1] = torch.nan, torch.inf
    logits[5] = -2.0
    logits[6, -1] = -torch.inf
    values, ids = AttentionKernel(2, level).best(logits)
    expected, places = reference.best(logits)
    assert torch.equal(values.nan_to_num(nan=7e9), expected.nan_to_num(nan=7e9))
    finite = ~expected.isnan()
    assert torch.equal(ids[finite], places[finite])


def test_what_can_not_be_is_refused():
    with pytest.raises(ConfigError, match="float16"):
        AttentionKernel().pack(torch.zeros(2, 2), "float16")
    with pytest.raises(ConfigError, match="don't run here"):
        AttentionKernel(1, "avx1024")
    with pytest.raises(ConfigError, match="6 channels; a KV cache of eight bits"):
        block_shape(4, 6, torch.int8)
    with pytest.raises(ConfigError, match="7 channels"):
        block_shape(4, 7, torch.float32)
