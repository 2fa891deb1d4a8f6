"""Seconds of stages: by hand on a device that reaches its peaks, and what must hold on any."""

from dataclasses import replace
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError
from megainfer.planner.costs import (
    AttentionStage,
    ColocatedStage,
    Contexts,
    ExpertStage,
    ModelCosts,
    Popularity,
    Road,
    Step,
    Time,
)
from megainfer.planner.costs.collectives import all_gather, all_reduce
from megainfer.planner.hardware import Device, Efficiency, Link, Utilisation, load_devices
from tests.support.public_models import PUBLIC_MODELS, public_spec

PERFECT = Utilisation.constant(1.0)
IDEAL = Efficiency(
    products={"any": PERFECT},
    expert_products={"any": PERFECT},
    attention_read={"any": PERFECT},
    weights_read=PERFECT,
    experts_read=PERFECT,
    copied=PERFECT,
    link=PERFECT,
    nic=PERFECT,
    launch_seconds=0.0,
)
BANDWIDTH, FLOPS, LINK, NIC = 2e12, 4e14, 3e11, 5e10
GPU = Device(
    name="ideal",
    kind="gpu",
    memory_bytes=80e9,
    memory_bytes_per_second=BANDWIDTH,
    flops={"bfloat16": FLOPS, "int8": 2 * FLOPS, "fp8": 2 * FLOPS, "float32": FLOPS / 8},
    link=Link(LINK, 1e-6, 8),
    nic=Link(NIC, 5e-6),
    watts=400,
    price=1,
    efficiency=IDEAL,
    sources={},
)
BF16 = Precision("bfloat16")
DEVICES = load_devices()
MODELS = sorted(PUBLIC_MODELS)


@pytest.fixture(scope="module")
def costs_of(tmp_path_factory):
    made = dict[str, ModelCosts]()

    def of(name: str, precision: Precision = BF16) -> ModelCosts:
        if (key := f"{name} {precision}") not in made:
            made[key] = ModelCosts.of(public_spec(name, tmp_path_factory.mktemp("m")), precision)
        return made[key]

    return of


@pytest.fixture
def mixtral(costs_of):
    """56 layers, 48 and 8 heads of 128, 8 experts of 6144 x 16384, 2 a token."""
    return costs_of("mixtral-8x22b")


def test_attention_of_few_rows_reads_its_weights_and_its_caches(mixtral):
    time = AttentionStage(mixtral, GPU).layer(Step(4, Contexts.at(1000)))
    # QKV and output as in the paper, h x h (1 + 2 / g) and h x h with g = 6, and the router.
    weights = 6144 * 6144 * (1 + 2 / 6) + 6144 * 6144 + 8 * 6144
    assert time.weights == pytest.approx(2 * weights / BANDWIDTH)
    assert time.cache == pytest.approx(4 * 1001 * 2 * 8 * 128 * 2 / BANDWIDTH)
    assert time.total == time.weights + time.cache
    assert time.bound == "weights"


def test_attention_of_many_rows_computes(mixtral):
    time = AttentionStage(mixtral, GPU).layer(Step(1000, Contexts.at(1)))
    weights = 6144 * 6144 * (2 + 2 / 6) + 8 * 6144
    assert time.arithmetic == pytest.approx(2 * 1000 * weights / FLOPS)
    assert time.bound == "arithmetic"


def test_a_matrix_unit_fills_its_tiles(mixtral):
    """6 heads share a key: 16 queries are computed. In float32 here, where it shows."""
    slow = replace(GPU, flops={"bfloat16": FLOPS / 1000})
    step = Step(1, Contexts.at(10_000))
    fast, own = (AttentionStage(mixtral, device).layer(step) for device in (GPU, slow))
    assert fast.cache > 0 == own.cache
    one = 2 * 2 * 48 * 128 * 10_000 * 16 / 6 / (FLOPS / 1000)
    dense = 2 * (6144 * 6144 * (2 + 2 / 6) + 8 * 6144) / (FLOPS / 1000)
    assert own.arithmetic == pytest.approx(one + dense)
    alone = replace(slow, kind="cpu")
    assert AttentionStage(mixtral, alone).layer(step).arithmetic < own.arithmetic


def test_experts_read_those_that_are_chosen(mixtral):
    for rows in (1, 3):
        time = ExpertStage(mixtral, GPU).layer(rows)
        active = 8 * (1 - (1 - 2 / 8) ** rows)
        assert time.weights == pytest.approx(active * 3 * 6144 * 16384 * 2 / BANDWIDTH)
        assert time.bound == "weights"
    busy = ExpertStage(mixtral, GPU).layer(10_000)
    assert busy.arithmetic == pytest.approx(2 * 3 * 6144 * 16384 * 2 * 10_000 / FLOPS)


def test_the_node_that_all_wait_for_reads_an_expert_at_least(mixtral):
    """A token's 2 experts are on 2 of 8 nodes: not a quarter of one on each."""
    one = ExpertStage(mixtral, GPU, count=8).layer(1)
    assert one.weights == pytest.approx(3 * 6144 * 16384 * 2 / BANDWIDTH)


def test_tokens_an_expert_are_those_of_the_paper(mixtral):
    """b_e = b_a n_a K / E, beside what chance adds to the busiest of eight."""
    one = ExpertStage(mixtral, GPU, count=8).layer(8 * 156)
    exact = 2 * 3 * 6144 * 16384 * (8 * 156 * 2 / 8) / FLOPS
    assert exact < one.arithmetic < 1.1 * exact


def test_quantised_experts_are_widened_on_gpus_and_not_on_cpus(costs_of):
    costs = costs_of("mixtral-8x22b", Precision("bfloat16", "fp8"))
    own = ModelCosts.of(costs.spec, costs.precision, own_arithmetic=True)
    wide, narrow = (ExpertStage(c, GPU).layer(10_000).arithmetic for c in (costs, own))
    assert wide == pytest.approx(2 * narrow)
    cpu = replace(GPU, kind="cpu")
    assert ExpertStage(costs, cpu).layer(10_000).arithmetic == pytest.approx(narrow)
    few = ExpertStage(costs, GPU).layer(1).weights
    # A byte a weight, and a float32 scale for each block of 128 x 128.
    assert few == pytest.approx(2 * 3 * 6144 * 16384 * (1 + 4 / 128**2) / BANDWIDTH)


def test_messages_are_those_of_the_paper(mixtral):
    """T_c: b_a h K / tp_a at the sender, b_e h / tp_e at the receiver, two bytes an element."""
    for tp_a, tp_e, nodes in ((1, 1, 16), (8, 1, 16), (1, 8, 16), (4, 2, 2)):
        road = Road(AttentionStage(mixtral, GPU, tp_a), ExpertStage(mixtral, GPU, tp_e, 8), nodes)
        rows = 128
        sender = rows * 6144 * 2 / tp_a
        receiver = rows * nodes * 2 / 8 * 6144 / tp_e
        seconds = max(sender, receiver) * 2 / NIC
        assert road.combine(rows).network == pytest.approx(seconds)
        # Ids and weights go one way.
        assert road.dispatch(rows).network == pytest.approx(seconds * (1 + 16 / 12288))
        assert road.dispatch(rows).fixed == 5e-6


def test_a_token_goes_to_a_node_once(costs_of):
    costs = costs_of("qwen3-235b-a22b")
    half, experts = AttentionStage(costs, GPU), ExpertStage(costs, GPU, 1, 16)
    sent = 16 * (1 - comb(120, 8) / comb(128, 8))
    assert 6 < sent < 8
    road = Road(half, experts, 1)
    assert road.combine(100).network == pytest.approx(100 * sent * 4096 * 2 / NIC)


def test_one_domain_has_no_nics(mixtral):
    half, experts = AttentionStage(mixtral, GPU), ExpertStage(mixtral, GPU, 1, 4)
    near, far = Road(half, experts, 4), Road(half, experts, 5)
    assert near.in_one_domain
    assert not far.in_one_domain
    assert near.dispatch(64).fixed == 1e-6
    assert far.dispatch(64).network > near.dispatch(64).network * LINK / NIC
    other = ExpertStage(mixtral, replace(GPU, name="other"), 1, 4)
    assert not Road(half, other, 1).in_one_domain


def test_ranks_sum_what_each_has_of_a_row(mixtral):
    step = Step(64, Contexts.at(100))
    time = AttentionStage(mixtral, GPU, 4).layer(step)
    # After the output; two of its phases, each of two steps.
    assert time.network == pytest.approx(2 * 3 / 4 * 64 * 12288 / LINK)
    assert time.fixed == pytest.approx(4 * 1e-6)
    assert all_reduce(GPU, 1e6, 1) == Time()
    assert all_reduce(GPU, 1e6, 16) == all_gather(GPU, 1e6, 16) * 2
    # In two domains of 8: within, and then an eighth between.
    both = all_reduce(GPU, 1.6e6, 16)
    assert both.network == pytest.approx(2 * 7 / 8 * 1.6e6 / LINK + 2 * 1 / 2 * 2e5 / NIC)
    assert both.fixed == pytest.approx(6e-6 + 10e-6)


def test_shared_experts_are_summed_too(costs_of):
    costs, step = costs_of("deepseek-v3"), Step(64, Contexts.at(100))
    time = AttentionStage(costs, GPU, 4).layer(step)
    assert time.network == pytest.approx(2 * 2 * 3 / 4 * 64 * 7168 * 2 / LINK)


def test_keys_are_copied_where_there_are_more_ranks_than_key_heads(mixtral):
    time = AttentionStage(mixtral, GPU, 16).layer(Step(1, Contexts.at(100)))
    queries = output = 6144 * 6144 / 16
    keys = values = 6144 * 128
    weights = queries + keys + values + output + 8 * 6144
    assert time.weights == pytest.approx(2 * weights / BANDWIDTH)
    assert time.cache == pytest.approx(101 * 2 * 128 * 2 / BANDWIDTH)


def test_rows_are_copied_on_their_way(mixtral):
    """Into messages, read and written; to be added, read, and read and written; and by an expert
    node, read once a choice and written once a token."""
    row, step = 12288, Step(64, Contexts.at(100))
    half = AttentionStage(mixtral, GPU)
    assert half.layer(step).copied == 0
    assert half.layer(step, 8).copied == pytest.approx(5 * 64 * 2 * row / BANDWIDTH)
    # With two nodes of four experts a token goes to one or both.
    sent = 2 * (1 - comb(4, 2) / comb(8, 2))
    assert half.layer(step, 2).copied == pytest.approx(5 * 64 * sent * row / BANDWIDTH)
    # Each of four devices has a quarter of the columns; all get all columns of the sum.
    alone, sent_out = (AttentionStage(mixtral, GPU, 4).layer(step, nodes) for nodes in (0, 8))
    assert sent_out.copied == pytest.approx(5 * 64 * 2 * row / 4 / BANDWIDTH)
    gathered = 3 / 4 * 64 * row / LINK
    assert sent_out.network - alone.network == pytest.approx(gathered)
    assert sent_out.fixed - alone.fixed == pytest.approx(2 * 1e-6)
    experts = ExpertStage(mixtral, GPU)
    assert experts.layer(64).copied == pytest.approx((2 * 64 + 64) * row / BANDWIDTH)


@pytest.mark.parametrize(("tp_a", "tp_e"), [(4, 2), (2, 4), (1, 1)])
def test_small_messages_are_slow(mixtral, tp_a, tp_e):
    """Each device's columns are a message of their own, cut for whichever end has more."""
    rising = Utilisation(((1e3, 1e-3), (1e6, 1.0)))
    device = replace(GPU, efficiency=replace(IDEAL, nic=rising))
    road = Road(AttentionStage(mixtral, device, tp_a), ExpertStage(mixtral, device, tp_e, 8), 16)
    message = 16 * 12288 * 2 / 8 / max(tp_a, tp_e)
    used = message / 1e6
    ends = max(16 * 12288 * 2 / tp_a, 16 * 16 * 12288 * 2 / 8 / tp_e)
    assert road.combine(16).network == pytest.approx(ends / NIC / used)


def test_layers_without_experts_and_the_head_are_outside(costs_of):
    costs = costs_of("deepseek-v3")
    stage = AttentionStage(costs, GPU)
    outside = stage.outside(Step(1, Contexts.at(1)))
    dense = 3 * 7168 * 18432
    attention = 7168 * (1536 + 576) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
    head = 7168 * 129280
    weights = 2 * (3 * (attention + dense) + head) / BANDWIDTH
    assert outside.weights == pytest.approx(weights)
    # The head sees the last tokens of prompts alone.
    prompt = Step(0, Contexts.at(1), 512, Contexts(1, 512))
    assert stage.outside(prompt).weights < weights


def test_launches_and_the_hosts_work_are_counted(mixtral):
    efficiency = replace(
        IDEAL,
        launch_seconds=1.0,
        attention_layer_seconds=100.0,
        expert_layer_seconds=200.0,
        step_seconds=1000.0,
        sequence_seconds=7.0,
    )
    device, step = replace(GPU, efficiency=efficiency), Step(3, Contexts.at(1))
    stage = AttentionStage(mixtral, device)
    assert stage.layer(step).fixed == pytest.approx(100 + 3 + 3 + 4)  # qkv, out, router
    assert stage.outside(step).fixed == pytest.approx(1000 + 4 + 3 * 7)
    assert ExpertStage(mixtral, device).layer(3).fixed == pytest.approx(200 + 4)


def test_nothing_takes_no_time(mixtral):
    half, experts = AttentionStage(mixtral, GPU), ExpertStage(mixtral, GPU, 1, 8)
    road, nothing = Road(half, experts, 2), Step(0, Contexts.at(1))
    assert half.layer(nothing, 8) == half.outside(nothing) == Time()
    assert experts.layer(0) == road.dispatch(0) == road.combine(0) == Time()


def test_a_network_without_limits_costs_nothing(mixtral):
    free = Link(1e30, 0.0, 8)
    device = replace(GPU, link=free, nic=replace(free, devices=1))
    road = Road(AttentionStage(mixtral, device), ExpertStage(mixtral, device, 1, 8), 8)
    assert road.dispatch(512).total == pytest.approx(0, abs=1e-12)
    group = ColocatedStage(mixtral, device, 1, 8, 8)
    step = Step(512, Contexts.at(100))
    computed = group.attention(step) + group.experts(step)
    assert group.layer(step).total == pytest.approx(computed.total)


def test_colocated_devices_share_the_work(mixtral):
    step = Step(64, Contexts.at(500))
    whole = ColocatedStage(mixtral, GPU, 8, 1, 1)
    wide = ColocatedStage(mixtral, GPU, 1, 8, 8)
    assert whole.experts(step).weights == pytest.approx(
        ExpertStage(mixtral, GPU).layer(64).weights / 8
    )
    assert whole.exchange(step) == all_reduce(GPU, 64 * 12288, 8)
    assert wide.attention(step) == AttentionStage(mixtral, GPU).layer(step)
    assert wide.experts(step) == ExpertStage(mixtral, GPU, 1, 8).layer(8 * 64)
    # A token has two experts on other devices, or one of them on its own: there and back.
    each = 64 * 2 * (1 - 1 / 8) / LINK
    assert wide.exchange(step).network == pytest.approx(each * (12288 + 16 + 12288))
    # Groups of two devices have half of their rows each, and exchange the answers.
    pairs = ColocatedStage(mixtral, GPU, 2, 4, 8).exchange(step)
    assert pairs.network == pytest.approx(
        32 * 2 * (1 - 1 / 8) / LINK * (12288 + 16 + 12288) + 1 / 2 * 64 * 12288 / LINK
    )
    far = ColocatedStage(mixtral, replace(GPU, link=replace(GPU.link, devices=4)), 1, 8, 8)
    assert far.exchange(step).total > wide.exchange(step).total


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: AttentionStage(c, GPU, 49), "49 devices can't share .* 48 heads"),
        (lambda c: AttentionStage(c, GPU, 0), "0 devices can't share"),
        (lambda c: ExpertStage(c, GPU, 1, 9), "8 experts can't be on 9"),
        (lambda c: ExpertStage(c, GPU, 16385), "can't share an expert of 16384 channels"),
        (lambda c: ColocatedStage(c, GPU, 2, 3, 4), "3 x 2 devices can't form 4 groups"),
    ],
)
def test_what_cannot_be_shared_is_refused(mixtral, make, message):
    with pytest.raises(ConfigError, match=message):
        make(mixtral)


steps = st.builds(
    lambda rows, first, more, prefill: Step(
        rows, Contexts(first, first + more), prefill, Contexts(1, first)
    ),
    st.floats(0, 2000),
    st.integers(1, 20_000),
    st.integers(0, 20_000),
    st.floats(0, 4000),
)
models, devices = st.sampled_from(MODELS), st.sampled_from(sorted(DEVICES))


@settings(max_examples=60, deadline=None)
@given(models, devices, steps, st.floats(1, 3), st.sampled_from([1, 2, 4, 8]))
def test_more_rows_never_take_less_time(costs_of, name, device, step, factor, tp):
    costs, own = costs_of(name), DEVICES[device]
    more = replace(
        step, decode_rows=factor * step.decode_rows, prefill_rows=factor * step.prefill_rows
    )
    half, experts = AttentionStage(costs, own, tp), ExpertStage(costs, own, tp, 8)
    road = Road(half, experts, 4)
    for stage in (
        lambda s: half.layer(s, 8),
        half.outside,
        lambda s: experts.layer(s.rows),
        lambda s: road.dispatch(s.rows),
        lambda s: road.combine(s.rows),
        ColocatedStage(costs, own, tp, 4, 4 * tp if 4 * tp <= 8 else 4).layer,
    ):
        assert stage(more).total >= stage(step).total * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(models, devices, steps, st.floats(1, 4), st.sampled_from([1, 4]))
def test_faster_hardware_never_takes_longer(costs_of, name, device, step, factor, tp):
    costs, own = costs_of(name), DEVICES[device]
    for better in (
        replace(own, memory_bytes_per_second=factor * own.memory_bytes_per_second),
        replace(own, flops={dtype: factor * rate for dtype, rate in own.flops.items()}),
        replace(own, link=replace(own.link, bytes_per_second=factor * own.link.bytes_per_second)),
        replace(own, nic=replace(own.nic, bytes_per_second=factor * own.nic.bytes_per_second)),
    ):
        for before, after in zip(_times(costs, own, step, tp), _times(costs, better, step, tp),
                                 strict=True):  # fmt: skip
            assert after.total <= before.total * (1 + 1e-9)


def _times(costs: ModelCosts, device: Device, step: Step, tp: int) -> list[Time]:
    half, experts = AttentionStage(costs, device, tp), ExpertStage(costs, device, tp, 8)
    road, group = Road(half, experts, 3), ColocatedStage(costs, device, tp, 2, 2)
    stages = [half.layer(step, 8), half.outside(step), experts.layer(step.rows)]
    return [*stages, road.dispatch(step.rows), road.combine(step.rows), group.layer(step)]


@pytest.mark.parametrize("name", MODELS)
def test_ranks_have_less_to_read_and_to_compute(costs_of, name):
    costs, step = costs_of(name), Step(300, Contexts(500, 900), 200, Contexts(1, 500))
    free = replace(GPU, link=Link(1e30, 0.0, 64))
    alone, experts = AttentionStage(costs, free), ExpertStage(costs, free)
    for tp in (2, 4, 8):
        shared = AttentionStage(costs, free, tp)
        assert alone.layer(step).total / tp <= shared.layer(step).total < alone.layer(step).total
        products = ExpertStage(costs, free, tp).layer(500)
        assert products.weights + products.arithmetic == pytest.approx(
            (experts.layer(500).weights + experts.layer(500).arithmetic) / tp
        )


def test_skew_spares_reading_and_costs_waiting(costs_of):
    even = costs_of("qwen3-235b-a22b")
    skewed = ModelCosts.of(even.spec, BF16, Popularity.zipf(128, 8, 1.2))
    one, other = (ExpertStage(costs, GPU).layer(32) for costs in (even, skewed))
    assert other.weights < 0.9 * one.weights
    few, many = (ExpertStage(costs, GPU, 1, 128).layer(20_000) for costs in (even, skewed))
    assert many.total > 4 * few.total


def test_spares_of_popular_experts_cost_memory_and_save_time(costs_of):
    even = costs_of("qwen3-235b-a22b")
    skewed = ModelCosts.of(even.spec, BF16, Popularity.zipf(128, 8, 1.2))
    bare, more = (ExpertStage(skewed, GPU, 1, 64, spares) for spares in (0, 2))
    assert more.layer(20_000).arithmetic < 0.7 * bare.layer(20_000).arithmetic
    each = bare.held().of("weights") / 2
    assert more.held().of("weights") == pytest.approx(4 * each)


def test_parts_add_up():
    time = Time(1, 2, 3, 4, 5, 6)
    assert (time + time).total == (time * 2).total == 2 * time.total == 42
    assert [name for name, _ in time.parts][-1] == time.bound == "fixed"
