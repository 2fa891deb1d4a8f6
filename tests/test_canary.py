"""Memory that is nobody's holds canaries: what reads it by mistake sings."""

import pytest
import torch
from checkpoints import assert_same_greedy
from local_cluster import LocalCluster
from test_local_cluster import (
    NEW_TOKENS,
    answers_of,
    one_variant,
    reference,
    submit_all,
)

from megainfer.attention_node.node import AttentionNode
from megainfer.kernels.cpu import library

__all__ = ["reference"]  # a fixture

KERNELS = ["reference", *(["cpu"] if library.is_built() else [])]


def unused_blocks(node: AttentionNode) -> torch.Tensor:
    held = {block for sequence in node.scheduler.live for block in sequence.block_ids}
    return torch.tensor([b for b in range(node._kv.num_blocks) if b not in held])


def fill(node: AttentionNode, blocks: torch.Tensor, value: float) -> None:
    for layer in range(len(node._model.spec.layers)):
        for tensor in node._kv.layer(layer):
            tensor[blocks] = value


@one_variant
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("kernels", KERNELS)
def test_nobody_reads_blocks_that_are_not_theirs(reference, kernels, m):
    """Nor what those before them have left in the unwritten part of their own last block: before
    each turn all blocks without a user are filled with what can't be overheard."""
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, m, 1, 2, kernels=kernels, prefix_cache=False)
    (node,) = cluster.attention
    submit_all(cluster, prompts)
    while list(node.scheduler.live):
        fill(node, unused_blocks(node), float("nan"))
        cluster.turn()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    assert len(answers_of(cluster, prompts)[0]) == NEW_TOKENS
