"""What a user may ask for, field by field, and the plan that is made of it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megainfer.compute.selection import Precision
from megainfer.config import EngineConfig, format_bytes, parse_bytes, parse_micro_batches
from megainfer.errors import ConfigError
from megainfer.frontend.serving_options import ServingOptions
from megainfer.launch import choices
from megainfer.launch.fit import overhead_of
from megainfer.launch.machine import Machine, read_sockets
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.plan_text import describe, describe_requests
from megainfer.memory import kv_block_bytes
from megainfer.messages.message import Role
from megainfer.sharing.budgets import BudgetOptions, Budgets
from megainfer.topology import CoreAssignment, Socket
from server.operate.instance import surroundings_of
from tests.support.checkpoints import write_config


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("4k", 4000),
        ("4KiB", 4096),
        ("1.5G", 1_500_000_000),
        ("2 gib", 2**31),
        ("1_0", 10),
    ],
)
def test_sizes(text, count):
    assert parse_bytes(text, "--flag") == count


@pytest.mark.parametrize("text", ["", "G", "-1", "4X", "1e9", "NaN", "1..5G", "4GiBiB", "9" * 400])
def test_a_size_that_is_none_is_refused_with_flag_and_text(text):
    with pytest.raises(ConfigError, match="--flag must be a size") as error:
        parse_bytes(text, "--flag")
    assert repr(text) in str(error.value)


def test_format_bytes():
    assert [format_bytes(n) for n in (5, 2048, 3 * 2**30)] == ["5 B", "2.0 KiB", "3.0 GiB"]


def test_micro_batches():
    assert parse_micro_batches("auto") is None
    assert parse_micro_batches("3") == 3
    with pytest.raises(ConfigError, match=r"'2\.5'"):
        parse_micro_batches("2.5")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"attn_gpus": 0}, "--attn-gpus .* not 0"),
        ({"ffn_gpus": True}, "--ffn-gpus .* not True"),
        ({"max_num_seqs": -1}, "--max-num-seqs .* not -1"),
        ({"max_num_batched_tokens": 0}, "--max-num-batched-tokens"),
        ({"max_model_len": 0}, "--max-model-len"),
        ({"micro_batches": 9}, "1 to 8, not 9"),
        ({"dtype": "float8"}, "'float8'"),
    ],
)
def test_an_impossible_field_is_named(wish, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**wish)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_config("mixtral", "gqa", tmp_path_factory.mktemp("model"))


GIB = 2**30
MACHINE = Machine(
    (0, 1, 2, 3), memory=64 * GIB, available_memory=48 * GIB, bfloat16_arithmetic=True
)


def plan_of(config: EngineConfig, folder: Path, **machine: object) -> Plan:
    """On a machine like `MACHINE` but for these fields."""
    return make_plan(config, folder, replace(MACHINE, **machine))


def test_a_plan_accounts_for_what_its_parts_need(folder):
    plan = plan_of(EngineConfig(attn_gpus=2, ffn_gpus=3, micro_batches=2), folder)
    assert plan.max_model_len == 256
    assert plan.num_blocks == 64 * 16  # 64 requests of 256 tokens, since there is memory enough
    kv_bytes = plan.num_blocks * 16 * plan.spec.kv_bytes_per_token(4)
    assert plan.attention_ledger().of("KV cache") == kv_bytes
    assert len(plan.cores) == 5
    held = [plan.placement.experts_of(node, 0) for node in range(3)]
    assert held == [(0, 1, 2), (3, 4, 5), (6, 7)]
    geometry = plan.geometry(2)
    assert (geometry.num_attention, geometry.num_expert, geometry.capacity) == (2, 3, 512)
    text = "\n".join(describe(plan))
    assert "experts 3-5 of each layer" in text
    assert "MixtralForCausalLM" in text


def test_replicas_are_spread_counted_and_explained(folder):
    def told(**wish: object) -> tuple[Plan, str]:
        plan = plan_of(EngineConfig(**{"ffn_gpus": 3, "micro_batches": 2, **wish}), folder)
        return plan, "\n".join(describe(plan))

    plain, text = told()
    assert "of 0 of 8 experts: when an expert node dies, requests wait until it is back" in text
    assert "(--expert-replicas 3: they would not)" in text
    some, text = told(expert_replicas=1, rebalance=30.0)
    assert "of 3 of 8 experts" in text
    assert "experts 0-2 (spare: 6) of each layer" in text
    assert "every 30 s experts may move" in text
    all_of_them, text = told(expert_replicas=3)
    assert "of every expert: when an expert node dies, the others serve on at once" in text
    one = plain.expert_ledger(0).of("weights") // 3
    assert some.expert_ledger(0).lines == (("weights", 4 * one), ("experts on the move", one))
    assert all_of_them.nodes_ledger().of("weights") == plain.nodes_ledger().of("weights") + 9 * one
    _, text = told(ffn_gpus=1)
    assert "replicas" not in text


def test_replicas_have_to_fit(folder):
    plain = plan_of(EngineConfig(ffn_gpus=2), folder)
    memory = plain.nodes_ledger().of("weights") + 10_000
    with pytest.raises(ConfigError, match=r"weights need .*; use .*fewer --expert-replicas, fewer"):
        plan_of(EngineConfig(ffn_gpus=2, expert_replicas=2), folder, available_memory=memory)
    with pytest.raises(ConfigError, match=r"--expert-replicas 7 are more than the 4 experts"):
        plan_of(EngineConfig(ffn_gpus=2, expert_replicas=7), folder)


def test_weights_larger_than_memory_are_refused_with_the_format_that_would_fit(folder):
    def weights(**wish: Any) -> int:
        return plan_of(EngineConfig(dtype="float32", **wish), folder).nodes_ledger().of("weights")

    def refused(memory: int) -> str:
        with pytest.raises(ConfigError, match="the weights need") as error:
            plan_of(EngineConfig(dtype="float32"), folder, available_memory=memory)
        return str(error.value)

    everything = weights(expert_dtype="int4", attention_dtype="int4")
    assert "use --expert-dtype bfloat16, which" in refused(weights(expert_dtype="bfloat16") + 1)
    text = refused(everything + 1)
    assert "in float32, but" in text
    assert "use --expert-dtype int4 --attention-dtype int4, which" in text
    assert "(no format of weights is narrow enough) fewer attention" in refused(everything)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"expert_replicas": -1}, r"--expert-replicas must be at least 0 .* not -1"),
        ({"rebalance": 0.5}, r"--rebalance must be off or at least 2 s, not 0\.5"),
        ({"rebalance": float("nan")}, r"--rebalance must be off or at least 2 s, not nan"),
    ],
)
def test_what_cannot_be_balanced_is_refused(wish, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**wish)


def test_m_needs_no_measurement_where_nothing_can_overlap(folder):
    assert plan_of(EngineConfig(colocated=True), folder).micro_batches == 1
    assert plan_of(EngineConfig(attn_gpus=500), folder).micro_batches == 1
    assert plan_of(EngineConfig(micro_batches=5), folder).micro_batches == 5


@pytest.mark.parametrize(
    ("wish", "shared"),
    [
        ({"kernels": "cpu"}, True),
        ({"kernels": "cpu", "micro_batches": 1}, True),
        ({"kernels": "cpu", "micro_batches": 2}, False),  # both sides work at a time
        ({"kernels": "cpu", "ffn_gpus": 2}, False),
        ({"kernels": "reference"}, False),
        ({"kernels": "cpu", "micro_batches": 2, "cores": "shared"}, True),
        ({"kernels": "cpu", "micro_batches": 1, "cores": "split"}, False),
    ],
)
def test_two_processes_that_take_turns_share_all_cores(folder, monkeypatch, wish, shared):
    monkeypatch.setattr(choices, "resolve_kernels", lambda wish: wish)
    plan = plan_of(EngineConfig(dtype="float32", **wish), folder)
    assert (len({assignment.cores for assignment in plan.cores}) == 1) is shared
    assert (plan.spin_seconds == 0) is shared
    assert plan.cores_of_expert(0).threads == (4 if shared else 4 // len(plan.cores) or 1)
    # Whoever works has all cores: a second micro-batch has nothing to overlap with.
    assert plan.micro_batches == wish.get("micro_batches", 1 if shared else None)


TWO_SOCKETS = {"node0": "0-1,4-5", "node1": "2-3,6-7", "node2": "", "has_cpu": None}
"""As /sys/devices/system/node has it of two sockets whose cores are two threads each, and of memory
without cores."""


def test_each_process_has_cores_of_one_socket(folder, tmp_path, monkeypatch):
    for name, cores in TWO_SOCKETS.items():
        (tmp_path / name).mkdir()
        if cores is not None:
            (tmp_path / name / "cpulist").write_text(f"{cores}\n")
    sockets = read_sockets(range(8), tmp_path)
    assert sockets == (Socket(0, (0, 1, 4, 5)), Socket(1, (2, 3, 6, 7)))
    assert read_sockets((6,), tmp_path) == (Socket(1, (6,)),)
    monkeypatch.setattr(choices, "resolve_kernels", lambda wish: wish)

    def assigned(**wish: Any) -> list[tuple[int, ...]]:
        config = EngineConfig(dtype="float32", kernels="cpu", **wish)
        plan = plan_of(config, folder, cores=tuple(range(8)), sockets=sockets)
        near = config.numa != "off"
        assert [cores.near for cores in plan.cores] == [near] * len(plan.cores)
        return [cores.cores for cores in plan.cores]

    assert assigned() == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert assigned(ffn_gpus=3) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert assigned(colocated=True) == [tuple(range(8))]
    assert assigned(cores="shared") == [tuple(range(8))] * 2
    assert assigned(numa="off") == [tuple(range(8))] * 2
    assert assigned(numa="off", cores="split") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    ranked = EngineConfig(kernels="cpu", attn_tp=2, ffn_tp=2)
    plan = plan_of(ranked, folder, cores=tuple(range(8)), sockets=sockets)
    ranks = [plan.cores_of(Role.EXPERT, 0, rank) for rank in range(2)]
    assert ranks == [CoreAssignment((4, 5), near=True), CoreAssignment((6, 7), near=True)]


def test_one_socket_changes_nothing(folder):
    plan = plan_of(EngineConfig(ffn_gpus=2), folder, sockets=(Socket(0, (0, 1, 2, 3)),))
    assert plan.cores == plan_of(EngineConfig(ffn_gpus=2), folder).cores
    with pytest.raises(ConfigError, match="--numa must be auto, off, not 'on'"):
        EngineConfig(numa="on")


def test_nodes_over_a_network_have_a_key_and_twice_the_buffers(folder):
    shared, apart = (plan_of(EngineConfig(m2n=m2n), folder) for m2n in ("auto", "dist"))
    assert (shared.road.kind, apart.road.kind, apart.road.groups) == ("shm", "dist", "gloo")
    assert apart.road.host == "127.0.0.1"
    assert len(apart.road.key) == 64
    assert apart.road.key not in repr(apart) + repr(apart.road)
    assert apart.geometry(2) == shared.geometry(2)
    assert apart.slot_bytes(2) == 2 * shared.slot_bytes(2) == 2 * shared.geometry(2).total_bytes


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"m2n": "mpi"}, "--m2n must be auto, shm or dist, not 'mpi'"),
        ({"m2n": "dist", "m2n_host": "example.org"}, "--m2n-host must be an IP address, not"),
        ({"m2n": "dist", "m2n_host": "0.0.0.0"}, "must be the address of one interface, not '0"),
        ({"m2n": "dist", "colocated": True}, "sends no messages; leave out --m2n dist"),
    ],
)
def test_roads_that_there_are_not(wish, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**wish)


def test_a_plan_knows_only_the_machine_that_it_is_given(folder):
    config = EngineConfig(kv_cache_memory=2**22, max_num_batched_tokens=8)
    plan = plan_of(config, folder, cores=(7, 9))
    assert {core for assignment in plan.cores for core in assignment.cores} == {7, 9}
    needed = plan.nodes_ledger().total + plan.geometry(plan.most_micro_batches).total_bytes
    plan_of(config, folder, cores=(7, 9), available_memory=needed)
    with pytest.raises(ConfigError, match=r"weights of .* and KV cache of 4\.0 MiB leave"):
        plan_of(config, folder, cores=(7, 9), available_memory=needed - 1)
    with pytest.raises(ConfigError, match="this machine has 10 B of memory available"):
        plan_of(config, folder, available_memory=10)


def test_caches_leave_room_for_all_that_a_dry_run_tells_of(folder):
    config = EngineConfig(micro_batches=1, max_num_seqs=4096, max_num_batched_tokens=8)
    options = BudgetOptions(request_memory=GIB)

    def planned(memory: int, budgets: BudgetOptions = options) -> tuple[Plan, int, str]:
        """And what all may take at most, and how that is told."""
        machine = replace(MACHINE, available_memory=memory)
        plan = make_plan(config, folder, machine, budgets, servers=1)
        bounds = Budgets.of(budgets, plan.max_model_len)
        around = overhead_of(config, len(plan.cores), bounds, 1).ledger
        assert around.of("requests") == budgets.request_memory
        text = describe_requests(plan, bounds, machine)[1]
        return plan, (plan.whole_ledger() + around).total, text

    plan, total, text = planned(4 * GIB)
    assert total <= 4 * GIB
    assert "more than" not in text
    block = kv_block_bytes(plan.spec, plan.precision)
    for budgets in (options, BudgetOptions(request_memory=GIB + 2**28)):
        plan, total, _ = planned(4 * GIB, budgets)
        slots = plan.geometry(1).total_bytes
        left = 4 * GIB - (total - slots - plan.num_blocks * block)
        assert plan.num_blocks == left // 4 // block < 4096 * 16
    smallest, total, text = planned(GIB)
    assert smallest.num_blocks == 16, "for one request of 256 tokens"
    assert total > GIB
    assert f"{format_bytes(total)} at most in all processes, more than the 1.0 GiB" in text


@pytest.mark.parametrize("native", [True, False])
def test_auto_computes_in_bfloat16_where_the_cores_do(tmp_path, native):
    folder = write_config("mixtral", "gqa", tmp_path, dtype="bfloat16")
    plan = plan_of(EngineConfig(), folder, bfloat16_arithmetic=native)
    assert plan.precision == Precision(*["bfloat16" if native else "float32"] * 4)


def test_a_cache_too_small_for_one_request_says_what_would_fit(folder):
    block = 16 * plan_of(EngineConfig(dtype="float32"), folder).spec.kv_bytes_per_token(4)
    with pytest.raises(ConfigError, match=rf"256 tokens .* --max-model-len 48 .* {16 * block}"):
        plan_of(EngineConfig(dtype="float32", kv_cache_memory=3 * block), folder)
    with pytest.raises(ConfigError, match="a block of 16 tokens alone needs"):
        plan_of(EngineConfig(dtype="float32", kv_cache_memory=block - 1), folder)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory) -> Path:
    return write_config("qwen3_next", "grouped", tmp_path_factory.mktemp("recurrent"))


def test_recurrent_states_are_planned_beside_the_kv_cache(recurrent):
    plan = plan_of(EngineConfig(attn_gpus=2, max_num_seqs=5, dtype="bfloat16"), recurrent)
    # Two of three layers: 3 inputs of 88 channels, 4 heads of 12 x 10; float32 in any dtype.
    assert plan.attention_ledger().of("recurrent states") == 5 * 2 * 4 * (3 * 88 + 4 * 12 * 10)
    assert plan.spec.kv_bytes_per_token(2) == 2 * 2 * 16 * 2  # of one layer only
    assert not plan.prefix_cache
    text = "\n".join(describe(plan))
    assert "recurrent states 29.1 KiB" in text
    assert "prefixes   not cached" in text
    around = surroundings_of(plan, ServingOptions(), ask=lambda message: None)
    assert dict(around.cache_config)["enable_prefix_caching"] == "False"


def test_a_plan_without_states_says_nothing_of_them(folder):
    plan = plan_of(EngineConfig(), folder)
    assert (plan.num_states, plan.prefix_cache) == (0, True)
    assert [what for what, _ in plan.attention_ledger().lines] == ["weights", "KV cache"]
    assert not re.search("recurrent|prefixes", "\n".join(describe(plan)))


def test_more_states_than_memory_say_how_many_would_fit(recurrent):
    with pytest.raises(ConfigError, match="states of --max-num-seqs 1000000000 requests") as error:
        plan_of(EngineConfig(max_num_seqs=10**9), recurrent)
    fitting = int(re.findall(r"use --max-num-seqs (\d+)", str(error.value))[0])
    plan_of(EngineConfig(max_num_seqs=fitting // 2), recurrent)


def test_a_context_without_room_for_an_answer_is_refused(folder):
    with pytest.raises(ConfigError, match=r"--max-model-len 1 .* use 2 or more"):
        plan_of(EngineConfig(max_model_len=1), folder)
    assert plan_of(EngineConfig(max_model_len=2), folder).max_model_len == 2


def test_slots_beyond_the_memory_say_what_would_fit(folder):
    with pytest.raises(ConfigError, match="--max-num-batched-tokens 1000000000 rows need") as error:
        plan_of(EngineConfig(max_num_batched_tokens=10**9), folder)
    fitting = int(re.findall(r"use --max-num-batched-tokens (\d+)", str(error.value))[0])
    plan_of(EngineConfig(max_num_batched_tokens=fitting // 2), folder)
    with pytest.raises(ConfigError, match="capacity"):
        plan_of(EngineConfig(max_num_batched_tokens=10**10), folder)
