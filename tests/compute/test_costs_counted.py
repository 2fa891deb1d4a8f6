"""A plan's FLOPs, against what torch counts while transformers computes every family."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megainfer.compute.selection import Precision
from megainfer.models.registry import load_spec
from megainfer.models.spec import AttentionSpec, CacheFormat, DeltaNetSpec, MlaSpec, ModelSpec
from megainfer.planner.costs import Contexts, ModelCosts, Step
from megainfer.planner.costs.attend import cache_work
from tests.support.checkpoints import VARIANTS, write_checkpoint

TOKENS = 6
PRODUCTS, BY_HEAD, TAPS = ("mm", "addmm"), "bmm", "convolution"


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def counted(request, tmp_path_factory) -> tuple[ModelSpec, dict[str, int]]:
    """The spec, and FLOPs by torch's operation for one prompt whose every token has logits."""
    from transformers import AutoModelForCausalLM

    folder = write_checkpoint(*request.param, tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    )
    model.eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(TOKENS)[None] + 3, use_cache=False)
    by_operation = counter.get_flop_counts()["Global"]
    return load_spec(folder), {str(op).removeprefix("aten."): n for op, n in by_operation.items()}


def test_every_dense_product_is_counted(counted):
    spec, flops = counted
    costs = ModelCosts.of(spec, Precision())
    products = sum(kind.count * kind.product_flops(TOKENS) for kind in costs.layers)
    expected = products + costs.head_flops(TOKENS)
    # Transformers multiplies every token with all of Llama 4's experts, by another operation.
    if spec.architecture != "Llama4ForCausalLM":
        expected += costs.moe_layers * costs.expert_flops(TOKENS)
    assert sum(flops.get(product, 0) for product in PRODUCTS) == expected


def test_attention_meets_every_position_with_every_head(counted):
    spec, flops = counted
    # The same operation counts other products there.
    if spec.is_recurrent or spec.architecture == "Llama4ForCausalLM":
        return
    # Masked or not, transformers computes all pairs, and latents expanded.
    step = Step(0, Contexts.at(1), TOKENS, Contexts.at(TOKENS), chunk=TOKENS)
    assert flops[BY_HEAD] == sum(_flops(layer.attention, step) for layer in spec.layers)


def _flops(attention: AttentionSpec | MlaSpec | DeltaNetSpec, step: Step) -> float:
    assert not isinstance(attention, DeltaNetSpec)
    if isinstance(attention, AttentionSpec):
        everything = replace(attention, window=None, chunk=None)
        return cache_work(everything, step, CacheFormat(4)).flops
    attended = cache_work(
        replace(attention, indexer=None), step, CacheFormat(4), expands=True
    ).flops
    both, alone = (
        cache_work(replace(attention, indexer=indexer), step, CacheFormat(4)).flops
        for indexer in (attention.indexer, None)
    )
    return attended + both - alone


def test_taps_are_counted_of_every_channel(counted):
    spec, flops = counted
    nets = [x.attention for x in spec.layers if isinstance(x.attention, DeltaNetSpec)]
    # Transformers' goes on until the last token's inputs have left it.
    assert flops.get(TAPS, 0) == sum(
        2 * net.taps * net.channels * (TOKENS + net.taps - 1) for net in nets
    )
