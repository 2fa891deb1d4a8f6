"""A plan's bytes are those that serving reserves, and its weights those that a checkpoint has."""

from math import prod

import pytest

from megainfer.compute.selection import Precision
from megainfer.config import BLOCK_SIZE
from megainfer.launch.devices import NumberedGpu
from megainfer.launch.gpu_memory import GpuNeeds
from megainfer.launch.nvml import Gpu
from megainfer.m2n.geometry import Geometry
from megainfer.memory import attention_bytes, attention_node, expert_node, expert_workspace
from megainfer.models.sources import attention_sources, attention_weight_bytes
from megainfer.planner.costs import AttentionStage, ColocatedStage, ExpertStage, ModelCosts
from megainfer.planner.hardware import load_devices
from tests.support.public_models import PUBLIC_MODELS, public_spec

MODELS = sorted(PUBLIC_MODELS)
PRECISIONS = [Precision("bfloat16"), Precision("bfloat16", "fp8"), Precision("float32", "int8")]
H20 = load_devices()["H20"]
CPU = load_devices()["EPYC 9654"]


@pytest.fixture(scope="module", params=MODELS)
def spec(request, tmp_path_factory):
    return public_spec(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture
def costs(spec):
    return ModelCosts.of(spec, PRECISIONS[0])


def test_models_have_as_many_weights_as_their_makers_say(spec, request):
    public = PUBLIC_MODELS[request.node.callspec.params["spec"]]
    costs = ModelCosts.of(spec, PRECISIONS[0])
    expert = spec.expert_weight_bytes(1)
    total = attention_weight_bytes(spec, 1) + costs.moe_layers * spec.num_experts * expert
    assert total / 1e9 == pytest.approx(public.total, rel=0.01)
    # Of a token's products: all that it meets but the table of embeddings, which is looked up.
    flops = sum(kind.count * kind.product_flops(1) for kind in costs.layers)
    flops += costs.moe_layers * costs.expert_flops(1) + costs.head_flops(1)
    table = spec.vocab_size * spec.hidden_size
    active = min((flops / 2, flops / 2 + table), key=lambda n: abs(n / 1e9 - public.active))
    assert active / 1e9 == pytest.approx(public.active, rel=0.03)


def test_products_are_all_matrices(spec, costs):
    """Of a checkpoint's tensors, but for the table of embeddings."""
    matrices = [source for source in attention_sources(spec) if len(source.shape) == 2]
    table = spec.vocab_size * spec.hidden_size
    products = sum(kind.count * sum(p.weights for p in kind.products) for kind in costs.layers)
    assert products + costs.head.weights == sum(prod(m.shape) for m in matrices) - table


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_one_device_holds_what_a_node_does(spec, precision):
    costs = ModelCosts.of(spec, precision)
    sequences = 5 if spec.is_recurrent else 0
    own = AttentionStage(costs, H20).held(7 * BLOCK_SIZE, sequences)
    assert own == attention_node(spec, precision, 7, sequences)
    nodes = 4
    experts = ExpertStage(costs, H20, 1, nodes).held()
    assert experts == expert_node(spec, precision, spec.num_experts // nodes)


def test_devices_take_what_serving_reserves(spec, costs):
    """As `launch` reckons a node's needs on a GPU with this memory."""
    rows, m, attention_nodes, expert_nodes, sequences = 128, 3, 5, 4, 96
    shape = (spec.hidden_size, spec.top_k, "bfloat16", "device")
    geometry = Geometry(attention_nodes, expert_nodes, m, rows, *shape)
    needs = GpuNeeds(
        spec, costs.precision, geometry, rows, m, attention_nodes, sequences, eager=False
    )
    memory = int(H20.memory_bytes)
    gpu = NumberedGpu(0, Gpu("GPU-0", "H20", memory, memory, (9, 0)))
    half, experts = AttentionStage(costs, H20), ExpertStage(costs, H20, 1, expert_nodes)
    own = half.memory(1000, sequences, rows, m, expert_nodes)
    assert own == half.held(1000, sequences) + needs.attention(gpu)
    assert experts.memory(rows, m, attention_nodes) == experts.held() + needs.experts(gpu)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_ranks_hold_between_them_all_and_some_of_it_twice(spec, costs, tp):
    whole, part = (AttentionStage(costs, H20, n).held(4096, 8) for n in (1, tp))
    for what, size in whole.lines:
        assert size / tp <= part.of(what) <= size
    assert part.of("weights") < whole.of("weights") * (0.5 + 0.7 / tp)
    experts = ExpertStage(costs, H20, tp).held().total
    assert experts == pytest.approx(ExpertStage(costs, H20).held().total / tp)


def test_a_rank_has_its_part_of_all_but_routers_and_norms(tmp_path):
    spec = public_spec("mixtral-8x22b", tmp_path)
    own = AttentionStage(ModelCosts.of(spec, PRECISIONS[0]), H20, 4).held(0, 0).of("weights")
    hidden, layers = 6144, 56
    split = layers * hidden * hidden * (2 + 2 / 6) + 2 * 32000 * hidden
    whole = layers * (8 * hidden + 2 * hidden) + hidden
    assert own == pytest.approx(2 * (split / 4 + whole), abs=4)


def test_colocated_experts_have_room_for_all_groups_rows(costs):
    one, other = (ColocatedStage(costs, H20, 1, dp, 1).memory(0, 1, 64) for dp in (1, 4))
    assert other.of("workspace") - one.of("workspace") == 3 * expert_workspace(
        costs.spec, costs.precision, 64
    )


def test_colocated_devices_hold_both_roles_once(spec, costs):
    group = ColocatedStage(costs, H20, 2, 4, 8)
    own = group.memory(1000, 20, 64)
    both = AttentionStage(costs, H20, 2).held(1000, 20) + ExpertStage(costs, H20, 1, 8).held()
    for what, size in both.lines:
        assert own.of(what) == size
    assert own.of("CUDA") == AttentionStage(costs, H20).memory(0, 0, 1, 1).of("CUDA")
    assert own.of("M2N") == 0


def test_more_of_anything_takes_more(spec, costs):
    half, base = AttentionStage(costs, H20, 2), (10_000, 64, 128, 2, 4)
    for place, size in enumerate(base):
        more = (*base[:place], 2 * size, *base[place + 1 :])
        assert half.memory(*more).total > half.memory(*base).total
    experts = ExpertStage(costs, H20, 1, 4)
    for more in ((256, 2, 3), (128, 4, 3), (128, 2, 6)):
        assert experts.memory(*more).total > experts.memory(128, 2, 3).total


def test_a_server_without_gpus_has_no_cuda(costs):
    own = AttentionStage(costs, CPU).memory(1000, 4, 16, 2, 2)
    assert own.of("CUDA") == own.of("graphs") == 0
    assert own.of("programs") > 0
    assert own.of("weights") == attention_bytes(costs.spec, costs.precision)
