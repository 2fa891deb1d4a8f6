"""With `invariant` a row's bits are the same whatever is computed with it: products by themselves,
and whole models."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.compute.batch import ChunkInput
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.compute.gpu.products import InvariantProducts
from megainfer.device import HOST
from tests.support.checkpoints import write_checkpoint
from tests.support.interpreted import rows_alone
from tests.support.node_pair import Pair, blocks_of, open_pair

PRODUCTS = InvariantProducts(HOST)
SHAPES = [(0, 8, 8), (1, 1, 1), (3, 65, 130), (70, 24, 7)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
FAMILIES = [("qwen3_moe", "gqa"), ("deepseek_v2", "lite"), ("qwen3_next", "grouped")]
PROMPT = [17, 4, 90, 33, 5, 61, 8]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
def test_products_are_torchs(rows, outputs, inputs, dtype):
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    x, weight, bias = (tensor.to(dtype) for tensor in (x, weight, bias))
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * inputs**0.5}
    torch.testing.assert_close(PRODUCTS.linear(x, weight), linear(x, weight), **tolerance)
    biased = PRODUCTS.linear(x, weight, bias)
    torch.testing.assert_close(biased, linear(x, weight, bias), **tolerance)
    held = torch.randn(rows, outputs).to(dtype)
    expected = held.addmm(x, weight.T, alpha=0.5)
    PRODUCTS.add(held, x, weight, 0.5)
    torch.testing.assert_close(held, expected, **tolerance)


def test_products_by_head_take_heads_that_lie_between_others():
    both, weight = torch.randn(5, 3, 12), torch.randn(3, 8, 20)
    x = both[..., :8].transpose(0, 1)
    torch.testing.assert_close(PRODUCTS.by_head(x, weight), torch.bmm(x, weight))


def test_what_lies_behind_is_neither_read_nor_written():
    whole = torch.full((9, 40), torch.nan)
    whole[:3, :13] = torch.randn(3, 13)
    weight = torch.randn(6, 13)
    out = torch.full((5, 6), 7.0)
    PRODUCTS.add(out[:3], whole[:3, :13], weight, 1.0)
    torch.testing.assert_close(out[:3], 7 + whole[:3, :13] @ weight.T)
    assert (out[3:] == 7).all()


def test_a_rows_bits_are_its_own():
    x, weight = torch.randn(70, 90), torch.randn(40, 90)
    with rows_alone():
        whole = PRODUCTS.linear(x, weight)
        for first, last in ((0, 1), (3, 68), (69, 70)):
            assert torch.equal(PRODUCTS.linear(x[first:last], weight), whole[first:last])


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
def test_a_models_logits_do_not_depend_on_who_else_is_served(tmp_path, family):
    folder = write_checkpoint(*family, tmp_path)
    with rows_alone():
        alone = logits_of(open_pair(folder, 1, backend()), [])
        beside = logits_of(open_pair(folder, 1, backend()), [[9] * 11, [3, 1, 2]])
    assert torch.equal(alone, beside)


def backend() -> GpuBackend:
    return GpuBackend(torch.float32, torch.float32, invariant=True)


def logits_of(pair: Pair, others: Sequence[list[int]]) -> Tensor:
    """Of a prompt, and of the token after it, while others' prompts are computed."""
    prompts = [
        ChunkInput(tokens, 0, blocks_of(i + 1), True, i + 1) for i, tokens in enumerate(others)
    ]
    first = pair.step([ChunkInput(PROMPT, 0, blocks_of(0), True, 0), *prompts])[0]
    more = [
        ChunkInput([7], len(tokens), blocks_of(i + 1), True, i + 1)
        for i, tokens in enumerate(others)
    ]
    second = pair.step([*more, ChunkInput([2], len(PROMPT), blocks_of(0), True, 0)])[-1]
    return torch.stack([first, second])
