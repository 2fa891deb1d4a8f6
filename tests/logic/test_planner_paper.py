"""What MegaScale-Infer publishes comes out of its own table of GPUs, where its assumptions hold."""

import pytest

from megainfer.planner.search.workload import Objective
from tests.support.paper_rows import (
    BEST_REPLICAS,
    KINDS,
    MODELS,
    MORE_MICRO_BATCHES,
    SECOND_MICRO_BATCH,
    paper_rows,
)


def roles(name: str, kinds: tuple[str, ...], ideal: bool) -> tuple[str, str]:
    """The kinds of GPU of the best plan by cost: for attention, for experts."""
    best = paper_rows(name, ideal).answer(kinds, Objective.COST).apart[0].deployment
    return best.attention.device.name, best.experts.device.name


@pytest.mark.parametrize("name", MODELS)
def test_h20_and_l40s_are_the_best_per_cost_by_the_published_rates(name: str) -> None:
    assert roles(name, KINDS, ideal=True) == ("H20", "L40S")


@pytest.mark.parametrize("name", MODELS)
def test_of_the_two_kinds_measured_kernels_choose_the_same_roles(name: str) -> None:
    assert roles(name, ("H20", "L40S"), ideal=False) == ("H20", "L40S")


@pytest.mark.parametrize("name", MODELS)
def test_with_measured_kernels_another_expert_gpu_wins(name: str) -> None:
    """An L40S reaches half of the published 362 TFLOP/s at 512 rows, as its dense peak is 181."""
    assert roles(name, KINDS, ideal=False) == ("H20", "H800")
    l40s = paper_rows(name).devices["L40S"]
    assert l40s.efficiency.expert_product("bfloat16").at(512) < 0.55


@pytest.mark.parametrize("name", MODELS)
def test_more_micro_batches_give_what_is_published_within_a_tenth(name: str) -> None:
    tokens = paper_rows(name).by_micro_batches()
    assert tokens[2] / tokens[1] == pytest.approx(SECOND_MICRO_BATCH, rel=0.1)
    assert tokens[3] / tokens[2] == pytest.approx(MORE_MICRO_BATCHES[name], rel=0.1)


def test_dbrx_is_best_with_eight_attention_replicas_by_the_published_rates() -> None:
    per_gpu = paper_rows("dbrx", ideal=True).by_replicas(16)
    assert max(per_gpu, key=lambda count: per_gpu[count]) == BEST_REPLICAS
    gpus = {count: 2 * (count + 16) for count in per_gpu}
    tokens = {count: per_gpu[count] * gpus[count] for count in per_gpu}
    # Nearly linear up to 4 replicas, and flat from where the experts are busy.
    assert tokens[4] / tokens[1] > 3.4
    assert tokens[16] / tokens[10] < 1.1


def test_with_measured_kernels_dbrx_is_as_good_with_eight() -> None:
    per_gpu = paper_rows("dbrx").by_replicas(16)
    assert per_gpu[BEST_REPLICAS] == pytest.approx(max(per_gpu.values()), rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_apart_beats_tensor_parallelism_on_both_testbeds(name: str) -> None:
    rows = paper_rows(name)
    ampere = rows.answer(("A800",), Objective.GPU).apart[0].per_gpu
    assert ampere > 1.05 * rows.tensor_parallel("A800").per_gpu
    mixed = rows.answer(("H20", "L40S"), Objective.COST).apart[0].per_price
    assert mixed > 1.4 * rows.tensor_parallel("H20").per_price


@pytest.mark.parametrize("name", MODELS)
def test_wide_expert_parallelism_on_one_kind_beats_apart(name: str) -> None:
    """A baseline that the paper doesn't have: all GPUs share the experts, memory sets the batch."""
    answer = paper_rows(name).answer(("A800",), Objective.GPU)
    assert answer.verdict.ratio is not None
    assert answer.verdict.ratio < 1
    assert answer.verdict.sentence.startswith("apart doesn't pay here")
