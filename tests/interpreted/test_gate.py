"""The gate of every router, interpreted, against the reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megainfer.compute.gpu.homes import HomeTable
from megainfer.compute.gpu.kernels.routing.gate import Choices, Router, route
from megainfer.compute.gpu.kernels.routing.plan import plan
from megainfer.compute.reference import kernels as reference
from megainfer.compute.ways import ways_of
from megainfer.device import HOST
from megainfer.models.spec import ExpertGroups, GroupScore, RouterScore, RouterSpec
from megainfer.topology import Placement, contiguous_placement
from tests.support.plans import LIVED_IN
from tests.support.router_cases import CASES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of inf and NaN

VOCABULARY = 10
PLAIN = RouterSpec(9, 3, normalise=True, rounded=False)
ALL = RouterSpec(5, 5, normalise=False, rounded=False, score=RouterScore.CONSTANT)
V3 = replace(CASES["v3"].spec, num_experts=256, top_k=8, groups=ExpertGroups(8, 4, GroupScore.MAX))
SPECS = {name: case.spec for name, case in CASES.items()} | {
    "all": ALL,
    "one": RouterSpec(1, 1, normalise=True, rounded=True),
    "v3 real": V3,
    "five groups": replace(V3, num_experts=35, groups=ExpertGroups(5, 3, GroupScore.TOP2_SUM)),
    "logit hashed": replace(PLAIN, score=RouterScore.LOGIT, hashed=True),
}


def chosen(logits: Tensor, router: Router) -> Choices:
    """Where all experts live on one node, so that local ids are global ones."""
    homes = homes_of(contiguous_placement(router.spec.num_experts, 1, [0]))
    return route(HOST, logits, router, homes, *token_ids(len(logits)))


def token_ids(tokens: int) -> tuple[Tensor, Tensor]:
    """And their positions."""
    return 7 * torch.arange(tokens) % VOCABULARY, torch.arange(tokens) + 100


def homes_of(placement: Placement) -> HomeTable:
    return HomeTable(placement, 0, HOST)


def router_of(spec: RouterSpec) -> Router:
    experts = spec.num_experts
    bias = torch.randn(experts) if spec.selection_bias else None
    table = [torch.randperm(experts)[: spec.top_k] for _ in range(VOCABULARY)]
    return Router(spec, bias, torch.stack(table) if spec.hashed else None)


def expected(logits: Tensor, router: Router) -> tuple[Tensor, Tensor]:
    looked_up = None if router.table is None else router.table[token_ids(len(logits))[0]]
    routing = reference.Routing(router.selection_bias, looked_up)
    return reference.route(logits, router.spec, routing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SPECS)
def test_every_router_is_the_references(name, dtype):
    router = router_of(SPECS[name])
    logits = (2 * torch.randn(5, router.spec.num_experts)).to(dtype)
    choices = chosen(logits, router)
    weights, ids = expected(logits, router)
    assert torch.equal(choices.local_ids, ids.int())
    # What is rounded may fall to either side.
    tolerance = 1e-5 if dtype is torch.float32 or not router.spec.rounded else 2**-7
    torch.testing.assert_close(choices.weights, weights, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_of_equals_the_lowest_is_chosen(name):
    router = router_of(SPECS[name])
    logits = torch.randint(3, (5, router.spec.num_experts)).float()
    if router.selection_bias is not None:
        router.selection_bias.zero_()
    assert torch.equal(chosen(logits, router).local_ids, expected(logits, router)[1].int())


@pytest.mark.parametrize("name", SPECS)
def test_rows_of_nothing_choose_experts_that_there_are(name):
    """And leave their neighbours alone."""
    router, experts = router_of(SPECS[name]), SPECS[name].num_experts
    logits = torch.randn(6, experts)
    alone = chosen(logits[::5].contiguous(), router)
    logits[1], logits[2], logits[3], logits[4, ::2] = torch.nan, torch.inf, -torch.inf, torch.nan
    choices = chosen(logits, router)
    assert choices.local_ids.ge(0).all()
    assert choices.local_ids.lt(experts).all()
    assert all(len(row.unique()) == len(row) for row in choices.local_ids)
    if router.table is None:
        assert torch.equal(choices.local_ids[::5], alone.local_ids)
        assert torch.equal(choices.weights[::5], alone.weights)


@pytest.mark.parametrize("score", RouterScore)
def test_weights_of_nan_are_nan(score):
    """So that whoever looks for it finds it."""
    spec = replace(PLAIN, score=score, top_k=9 if score is RouterScore.CONSTANT else 2)
    choices = chosen(torch.full((1, 9), torch.nan), Router(spec))
    assert choices.weights.isnan().all() == (score is not RouterScore.CONSTANT)


def test_small_scores_are_exact():
    """e^-20 is lost in 1 + e^-20."""
    spec = replace(PLAIN, score=RouterScore.SQRT_SOFTPLUS, normalise=False)
    logits = torch.tensor([[-20.0, -60.0, -1e-3, 1e-3, 20.0, 25.0, -5.0, 0.0, 3.0]])
    all_of_them = Router(replace(spec, top_k=9))
    weights, ids = expected(logits, all_of_them)
    choices = chosen(logits, all_of_them)
    assert torch.equal(choices.local_ids, ids.int())
    torch.testing.assert_close(choices.weights, weights, rtol=1e-6, atol=0)


def test_a_router_of_constant_score_looks_at_no_logits():
    choices = chosen(torch.full((3, 5), torch.nan), Router(ALL))
    assert torch.equal(choices.weights, torch.ones(3, 5))
    assert choices.local_ids.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_no_tokens_choose_nothing():
    choices = chosen(torch.empty(0, 9), Router(PLAIN))
    assert [tuple(tensor.shape) for tensor in choices] == [(0, 3), (0, 3), (0, 3), (0,)]


PLACEMENTS = [contiguous_placement(4, nodes, [0]) for nodes in (1, 2, 4)]


@pytest.mark.parametrize("placement", [*PLACEMENTS, LIVED_IN], ids=("1", "2", "4", "ways"))
def test_experts_live_where_homes_say(placement):
    router, logits = Router(RouterSpec(4, 2, True, False)), torch.randn(24, 4)
    tokens, positions = torch.randint(2**18, (24,)), torch.randint(2**20, (24,))
    choices = route(HOST, logits, router, homes_of(placement), tokens, positions)
    homes, ways = reference.expert_homes(placement, 0), ways_of(tokens, positions)
    at = expected(logits, router)[1], ways[:, None] if homes.num_ways > 1 else 0
    assert torch.equal(choices.nodes, homes.node[at].int())
    assert torch.equal(choices.local_ids, homes.local_id[at])
    assert choices.rows.tolist() == [*range(24)]


@pytest.mark.parametrize("count", [0, 4, 9])
@pytest.mark.parametrize("nodes", [1, 2])
def test_padding_is_sent_nowhere(count, nodes):
    placement = contiguous_placement(4, nodes, [0])
    router, logits = Router(RouterSpec(4, 2, True, False)), torch.randn(9, 4)
    homes = homes_of(placement)
    counted = torch.tensor([count], dtype=torch.int32)
    choices = route(HOST, logits, router, homes, *token_ids(9), counted)
    assert (choices.nodes[count:] == -1).all()
    assert (choices.local_ids[count:] == -1).all()
    of_reference = reference.expert_homes(placement, 0)
    parts = reference.padded_plan(*expected(logits, router), of_reference, None, counted)
    for part, other in zip(plan(HOST, choices, homes), parts, strict=True):
        assert torch.equal(part.rows, other.rows)
        assert torch.equal(part.local_ids, other.local_ids)
        assert (part.count is None) == (nodes == 1)
        if part.count is not None and other.count is not None:
            assert int(part.count) == int(other.count) <= count


def test_tokens_go_elsewhere_when_experts_have_moved():
    """By the same memory: what a graph has captured is its address."""
    homes = homes_of(PLACEMENTS[0])
    router, logits, before = Router(RouterSpec(4, 2, True, False)), torch.randn(9, 4), homes.table
    homes.move(LIVED_IN)
    moved, fresh = (
        route(HOST, logits, router, own, *token_ids(9)) for own in (homes, homes_of(LIVED_IN))
    )
    assert homes.table is before
    assert (homes.num_nodes, homes.nodes) == (3, {0, 1, 2})
    for own, other in zip(moved, fresh, strict=True):
        assert torch.equal(own, other)
