"""The one router function against each family's own router in transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.compute.reference import kernels as kernels
from tests.support.router_cases import CASES, HIDDEN, TOKENS, Answer, Case, token_ids


@torch.no_grad()
def _both(name: str, dtype: torch.dtype) -> tuple[Answer, Answer]:
    """Our answer and theirs."""
    torch.manual_seed(1)
    case = CASES[name]
    router = case.build(dtype)
    hidden = torch.randn(TOKENS, HIDDEN).to(dtype)
    ours = kernels.route(_logits(case, router, hidden), case.spec, _routing(case, router))
    return ours, case.ask(router, hidden)


@pytest.mark.parametrize("name", CASES)
def test_route_is_the_familys_own_router(name):
    (weights, ids), (their_weights, their_ids) = _both(name, torch.float32)
    order, their_order = ids.argsort(), their_ids.argsort()
    assert torch.equal(ids.gather(1, order), their_ids.gather(1, their_order))
    expected = their_weights.gather(1, their_order)
    torch.testing.assert_close(weights.gather(1, order), expected, rtol=1e-5, atol=1e-6)


# DeepSeek-V4's scores are float32 in its own code, but bfloat16 in transformers.
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("v4")])
def test_weights_in_bfloat16(name):
    """Experts whose scores are equal in bfloat16 may be others, their weights not."""
    (weights, _), (expected, _) = _both(name, torch.bfloat16)
    weights, expected = weights.sort().values, expected.float().sort().values
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=1e-6)


def _logits(case: Case, router: Any, hidden: Tensor) -> Tensor:
    holder = router
    for part in (case.router or "").split("."):
        holder = getattr(holder, part) if part else holder
    bias = getattr(holder, "bias", None)
    if case.spec.wide:
        return linear(hidden.float(), holder.weight.float(), bias)
    return linear(hidden, holder.weight, bias)


def _routing(case: Case, router: Any) -> kernels.Routing:
    looked_up = router.tid2eid[token_ids()] if case.spec.hashed else None
    return kernels.Routing(case.selection_bias(router), looked_up)
