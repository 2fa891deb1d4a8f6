"""Memory that is nobody's holds canaries: what reads it by mistake sings."""

import pytest

from tests.support.canaries import fill_unused
from tests.support.checkpoints import assert_same_greedy
from tests.support.kernel_names import KERNELS
from tests.support.local_cluster import NEW_TOKENS, LocalCluster, answers_of, submit_all


@pytest.mark.parametrize(
    "reference",
    [("qwen3_moe", "gqa"), ("qwen3_next", "grouped")],
    indirect=True,
    ids=["qwen3", "recurrent"],
    scope="module",
)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("kernels", KERNELS)
def test_nobody_reads_blocks_that_are_not_theirs(reference, kernels, m):
    """Nor what those before them have left in the unwritten part of their own last block, or in
    their slot of the recurrent states: before each turn all memory without a user is filled with
    what can't be overheard. Fewer may run than there are, so that slots change hands."""
    folder, prompts, expected = reference
    cluster = LocalCluster(folder, m, 1, 2, kernels=kernels, prefix_cache=False, max_num_seqs=3)
    (node,) = cluster.attention
    submit_all(cluster, prompts)
    while list(node.scheduler.live):
        fill_unused(node, float("nan"))
        cluster.turn()
    assert_same_greedy(expected, answers_of(cluster, prompts))
    assert len(answers_of(cluster, prompts)[0]) == NEW_TOKENS
