"""Both halves of every family together give what transformers gives."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import (
    VARIANTS,
    Greedy,
    assert_same_greedy,
    greedy,
    oracle,
    write_checkpoint,
)
from torch import Tensor

from megainfer.attention_node.batch import ChunkInput, StepBatch, build_batch
from megainfer.attention_node.kv_cache import KVCache
from megainfer.attention_node.model import AttentionModel, MoEPoint
from megainfer.config import BLOCK_SIZE
from megainfer.expert_node.experts import ExpertModel
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.registry import load_spec
from megainfer.topology import Placement, contiguous_placement
from megainfer.weights import WeightReader

NEW_TOKENS = 10
BLOCKS_A_SEQUENCE = 8


class Pair:
    """An attention model and its expert models in one process, with a KV cache for 8 sequences.

    Sequence i owns blocks i, i + 8, i + 16, ...: neighbours in a sequence are never neighbours in
    memory.
    """

    def __init__(self, folder: Path, num_nodes: int, dtype: torch.dtype = torch.float32) -> None:
        spec = load_spec(folder)
        placement = contiguous_placement(spec.num_experts, num_nodes)
        with WeightReader(folder) as reader:
            self.attention = AttentionModel(spec, reader, placement, dtype)
            self.experts = [_experts(spec, reader, placement, n, dtype) for n in range(num_nodes)]
        self.kv = KVCache(spec, 8 * BLOCKS_A_SEQUENCE, BLOCK_SIZE, dtype)

    def step(self, chunks: Sequence[ChunkInput]) -> Tensor:
        """Run chunks through all layers; logits of those that sample."""
        batch = build_batch(chunks)
        x = self.attention.embed(batch)
        point = self.attention.advance(x, 0, batch, self.kv)
        while point is not None:
            self._add_experts(x, point)
            point = self.attention.advance(x, point.layer + 1, batch, self.kv)
        return self.attention.logits(x, batch.sample_rows)

    def _add_experts(self, x: Tensor, point: MoEPoint) -> None:
        shared = self.attention.shared(point.layer, point.hidden)
        if shared is not None:
            x += shared
        for node, part in zip(self.experts, point.parts, strict=True):
            hidden = point.hidden[part.rows]
            # Two dispatches, as if from two attention nodes; either may be empty.
            half = len(hidden) // 2
            messages = [
                Dispatch(
                    i, 0, point.layer, 0, hidden[rows], part.local_ids[rows], part.weights[rows]
                )
                for i, rows in enumerate((slice(None, half), slice(half, None)))
            ]
            out = torch.full_like(hidden, torch.nan)  # a reply slot holds whatever was there
            node.forward(point.layer, messages, [out[:half], out[half:]])
            x.index_add_(0, part.rows, out)


def _experts(spec, reader, placement: Placement, node: int, dtype: torch.dtype) -> ExpertModel:
    return ExpertModel(spec, reader, placement, node, dtype)


def blocks_of(sequence: int) -> list[int]:
    return [sequence + 8 * i for i in range(BLOCKS_A_SEQUENCE)]


def generate(pair: Pair, prompts: Sequence[Sequence[int]], chunk: int) -> list[Greedy]:
    """Greedy tokens of all prompts batched: prompts in chunks, mixed with decodes of others."""
    tokens = [list(prompt) for prompt in prompts]
    done = [0] * len(prompts)
    logits: list[list[Tensor]] = [[] for _ in prompts]
    while any(len(rows) < NEW_TOKENS for rows in logits):
        active = [i for i, rows in enumerate(logits) if len(rows) < NEW_TOKENS]
        chunks = [_next_chunk(i, tokens[i], done[i], chunk) for i in active]
        result = iter(pair.step(chunks))
        for i, part in zip(active, chunks, strict=True):
            done[i] = part.context
            if part.samples:
                logits[i].append(next(result))
                tokens[i].append(int(logits[i][-1].argmax()))
    return [
        Greedy(tokens[i][len(prompt) :], [], torch.stack(logits[i]))
        for i, prompt in enumerate(prompts)
    ]


def _next_chunk(sequence: int, tokens: list[int], done: int, chunk: int) -> ChunkInput:
    new = tokens[done : done + chunk]
    return ChunkInput(new, done, blocks_of(sequence), samples=done + len(new) == len(tokens))


def prompts_of(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(vocabulary, (length,), generator=generator).tolist()
        for length in (1, 5, 16, 17, 40)
    ]


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory) -> Iterator[tuple[Path, list[list[int]], list[Greedy]]]:
    """A variant's folder, prompts, and the oracle's answers."""
    family, variant = request.param
    folder = write_checkpoint(family, variant, tmp_path_factory.mktemp(f"{family}_{variant}"))
    prompts = prompts_of(load_spec(folder).vocab_size)
    yield folder, prompts, greedy(oracle(folder), prompts, NEW_TOKENS)


every_variant = pytest.mark.parametrize(
    "reference", VARIANTS, indirect=True, ids=lambda pair: "-".join(pair), scope="module"
)


@every_variant
@pytest.mark.parametrize(("num_nodes", "chunk"), [(1, 100), (3, 7)])
def test_logits_and_greedy_tokens_equal_transformers(reference, num_nodes, chunk):
    folder, prompts, expected = reference
    actual = generate(Pair(folder, num_nodes), prompts, chunk)
    assert_same_greedy(expected, [sequence.tokens for sequence in actual])
    for want, got in zip(expected, actual, strict=True):
        torch.testing.assert_close(got.logits, want.logits, atol=2e-4, rtol=1e-4)
