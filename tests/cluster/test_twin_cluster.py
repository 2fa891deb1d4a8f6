"""Whole nodes over the road between GPUs, with the host in a GPU's place."""

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.local_cluster import LocalCluster, answers_of, prompts_of, submit_all
from tests.support.twin_cluster import TwinCluster

NEW_TOKENS = 4


@pytest.mark.parametrize("family", [("qwen3_moe", "gqa"), ("deepseek_v3", "groups")], ids="-".join)
def test_tokens_do_not_depend_on_the_road(tmp_path, family):
    folder, prompts = write_checkpoint(*family, tmp_path), prompts_of(3, (1, 5, 17, 33))
    answers = []
    for kind in (LocalCluster, TwinCluster):
        cluster = kind(folder, 2, 2, 3, kernels="reference", dtype="float32")
        submit_all(cluster, prompts, NEW_TOKENS)
        cluster.drain()
        answers.append(answers_of(cluster, prompts))
    assert answers[0] == answers[1]
    assert all(len(tokens) == NEW_TOKENS for tokens in answers[0])
