"""Real processes whose messages travel by torch.distributed: every kind of model, and ranks."""

from pathlib import Path

import pytest

from megainfer import LLM, SamplingParams
from tests.support.checkpoints import (
    FAMILIES,
    Greedy,
    assert_same_greedy,
    decisive,
    oracle,
    write_checkpoint,
)
from tests.support.prompts import LENGTHS, prompts_of

NEW_TOKENS = 12
KINDS = ("qwen2_moe", "deepseek_v3", "qwen3_next", "gpt_oss")
"""A shared expert; latent attention; gated DeltaNet; biases, sinks and windows."""
RANKS = ((2, 1), (1, 2), (2, 2))

Reference = tuple[Path, list[list[int]], list[Greedy]]


def reference_of(family: str, folder: Path) -> Reference:
    write_checkpoint(family, next(iter(FAMILIES[family])), folder)
    return folder, *decisive(oracle(folder), lambda seed: prompts_of(seed, LENGTHS[:6]), NEW_TOKENS)


def check(reference: Reference, **options: int) -> None:
    folder, prompts, expected = reference
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with LLM(str(folder), m2n="dist", micro_batches=2, **options) as llm:
        results = llm.generate(prompts, params, progress=False)
    assert_same_greedy(expected, [result.outputs[0].token_ids for result in results])


@pytest.mark.parametrize("family", KINDS)
def test_tokens_equal_the_oracles(family: str, tmp_path: Path) -> None:
    check(reference_of(family, tmp_path), attn_gpus=2, ffn_gpus=2)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference_of("mixtral", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("attn_tp", "ffn_tp"), RANKS)
def test_nodes_of_several_ranks(mixtral: Reference, attn_tp: int, ffn_tp: int) -> None:
    check(mixtral, attn_gpus=2, ffn_gpus=2, attn_tp=attn_tp, ffn_tp=ffn_tp)


@pytest.mark.slow
@pytest.mark.parametrize(("attn_tp", "ffn_tp"), RANKS)
@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_model_in_ranks(
    family: str, attn_tp: int, ffn_tp: int, tmp_path: Path
) -> None:
    check(reference_of(family, tmp_path), attn_gpus=1, ffn_gpus=2, attn_tp=attn_tp, ffn_tp=ffn_tp)
