"""A token's result is the same bits whatever is computed with it: batch, chunks, threads."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.cpu.kernels.attention import AttentionKernel
from megainfer.compute.selection import Precision, open_backend
from megainfer.instruments.stage_clock import StageClock
from megainfer.models.registry import load_spec
from megainfer.models.spec import (
    AttentionSpec,
    NormKind,
    NormSpec,
    QkNorm,
    QueryTemperature,
    RopeSpec,
)
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_attention import ROPE, Layer, Shape, batch_of
from tests.support.kernel_experts import WEIGHT_DTYPES, levels

pytestmark = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")

every_level = pytest.mark.parametrize("level", levels())
SHAPES = [
    Shape(
        50,
        AttentionSpec(6, 2, 20, ROPE, qkv_bias=True, out_bias=True, qk_norm=QkNorm.HEAD),
    ),
    Shape(64, AttentionSpec(6, 1, 32, ROPE)),
    Shape(48, AttentionSpec(4, 4, 80, ROPE, qk_norm=QkNorm.FULL)),
    Shape(
        48,
        AttentionSpec(4, 2, 20, RopeSpec(1e4, rotated=10), sinks=True, window=37, gated=True),
        NormSpec(1e-5, NormKind.LAYER, bias=True),
        residual=0.7,
    ),
    Shape(
        40, AttentionSpec(6, 1, 16, None, scale=0.3, chunk=50, temperature=QueryTemperature(9, 0.5))
    ),
]


@every_level
@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.hidden))
def test_over_chunks_and_threads(level, weight_dtype, dtype, shape):
    """140 tokens of a sequence at once, in chunks, and one by one before few and behind many, by
    one thread and by three."""
    layer = Layer(shape)
    x, results = layer.rows(140), []
    fresh = layer.cache(9, dtype)
    one_by_one = [*range(20), *range(100, 140)]
    for threads, starts in (
        (1, [0]),
        (3, [*range(0, 140, 33)]),
        (1, one_by_one),
        (3, one_by_one),
    ):
        kernel, cache = AttentionKernel(threads, level), fresh.clone()
        parts = []
        for start, end in pairwise([*starts, 140]):
            rows = x[start:end]
            batch = build_batch([ChunkInput([0] * len(rows), start, list(range(9)), samples=False)])
            parts.append(layer.run(kernel, rows, batch, cache, weight_dtype))
        results.append((torch.cat(parts), cache))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@settings(max_examples=15, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shape=st.sampled_from(SHAPES),
)
def test_over_batches(chunks, dtype, shape):
    """Sequences together and each alone."""
    layer, kernel = Layer(shape), AttentionKernel()
    batch, blocks = batch_of(chunks)
    x, fresh = layer.rows(batch.num_tokens), layer.cache(blocks, dtype)
    whole = layer.run(kernel, x, batch, fresh.clone())
    ordered = sorted(range(len(chunks)), key=lambda i: chunks[i][1] > 1)
    starts = batch.row_starts.tolist()
    for i, begin, end in zip(ordered, starts, starts[1:], strict=False):
        start, tokens = chunks[i]
        table = [i + len(chunks) * b for b in range(blocks // len(chunks))]
        alone = build_batch([ChunkInput([0] * tokens, start, table, samples=True)])
        cache = fresh.clone()
        assert torch.equal(layer.run(kernel, x[begin:end], alone, cache), whole[begin:end])


class Model:
    """An attention model whose experts give back half of what they are sent."""

    def __init__(self, folder: Path, dtype: torch.dtype, weight_dtype: str) -> None:
        self.spec, self.dtype = load_spec(folder), dtype
        placement = contiguous_placement(self.spec.num_experts, 2, self.spec.moe_layers)
        precision = Precision(str(dtype).removeprefix("torch."), attention=weight_dtype)
        backend = open_backend("cpu", precision)
        with WeightReader(folder) as reader:
            self.half = AttentionModel(self.spec, reader, placement, backend)
        self.kv = self.half.new_cache(64, num_states=8)

    def step(self, chunks: list[ChunkInput]) -> Tensor:
        batch = build_batch(chunks)
        x, clock = self.half.embed(batch), StageClock().of(0)
        point = self.half.advance(x, 0, batch, self.kv, clock)
        while point is not None:
            shared = self.half.shared(point.layer, point.hidden)
            if shared is not None:
                x += shared
            for part in point.parts:
                weights = (part.weights * (1 + part.local_ids)).sum(-1, keepdim=True)
                x.index_add_(0, part.rows, 0.5 * weights * point.hidden[part.rows])
            point = self.half.advance(x, point.layer + 1, batch, self.kv, clock)
        return self.half.logits(x, batch.sample_rows)

    def last_logits(self, prompts: list[list[int]], chunk: int) -> Tensor:
        """Logits after each prompt, all of them in chunks, side by side."""
        done, found = [0] * len(prompts), dict[int, Tensor]()
        while len(found) < len(prompts):
            active = [i for i in range(len(prompts)) if i not in found]
            chunks = [
                ChunkInput(
                    prompts[i][done[i] : done[i] + chunk],
                    done[i],
                    [i + 8 * b for b in range(8)],
                    samples=done[i] + chunk >= len(prompts[i]),
                    state_slot=i,
                )
                for i in active
            ]
            logits = iter(self.step(chunks))
            for i, part in zip(active, chunks, strict=True):
                done[i] = part.context
                if part.samples:
                    found[i] = next(logits)
        return torch.stack([found[i] for i in range(len(prompts))])


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("qwen2_moe", "dense_between"),
        ("qwen3_moe", "dense_between"),
        ("olmoe", "gqa_clip_tied"),
        ("mixtral", "mqa_wide_heads"),
        ("deepseek_v2", "lite"),
        ("deepseek_v3", "groups"),
        ("qwen3_next", "odd_dense_last"),
        ("gpt_oss", "alternating"),
        ("llama4_text", "scout"),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.bfloat16, "int8")],
)
def test_logits_over_batches_and_chunks(tmp_path, family, variant, dtype, weight_dtype):
    model = Model(write_checkpoint(family, variant, tmp_path), dtype, weight_dtype)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(160, (n,), generator=generator).tolist() for n in (1, 9, 40, 100)]
    whole = model.last_logits(prompts, 128)
    assert torch.equal(model.last_logits(prompts, 7), whole)
    assert torch.equal(model.last_logits(prompts, 1), whole)
    alone = torch.cat([model.last_logits([prompt], 64) for prompt in prompts])
    assert torch.equal(alone, whole)
