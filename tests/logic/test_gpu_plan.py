"""Plans for machines with GPUs, made where there are none: who computes where, and what fits."""

import logging
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megainfer.compute.selection import Precision
from megainfer.config import EngineConfig, parse_gpus
from megainfer.errors import ConfigError
from megainfer.expert_node.stage_graphs import StageBounds
from megainfer.expert_node.warm_up import record
from megainfer.launch.computing import settle_cuda
from megainfer.launch.gpu_memory import RANK_CHANNELS_BYTES
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.plan_codec import decode_plan, encode_plan
from megainfer.launch.plan_text import describe, warnings
from megainfer.memory import kv_block_bytes
from megainfer.messages.message import Role
from tests.support.checkpoints import write_config
from tests.support.gpus import GIB, H200X8, HOST, h200, machine_of

QWEN3_235B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    return write_config("qwen3_moe", "gqa", tmp_path_factory.mktemp("235b"), **QWEN3_235B)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_config("qwen3_moe", "gqa", tmp_path_factory.mktemp("small"), dtype="bfloat16")


def numbers(plan: Plan) -> tuple[list[int], list[int]]:
    """Of the GPUs of attention and of expert nodes."""
    attention, experts = plan.devices.attention, plan.devices.experts
    return [gpu.number for gpu in chain(*attention)], [gpu.number for gpu in chain(*experts)]


def test_a_large_model_takes_a_machine_of_eight(large):
    plan = make_plan(EngineConfig(attn_gpus=2, ffn_gpus=6), large, H200X8)
    assert numbers(plan) == ([0, 1], [2, 3, 4, 5, 6, 7])
    assert (plan.kernels, plan.expert_kernels) == ("gpu", "gpu")
    assert plan.precision == Precision(*["bfloat16"] * 4)
    assert plan.micro_batches is None, "stages overlap"
    attention, experts = plan.attention_ledger(0), plan.expert_ledger(0)
    assert [what for what, _ in attention.lines] == [
        *("weights", "KV cache", "CUDA", "workspace", "M2N", "graphs")
    ]
    assert [what for what, _ in experts.lines] == ["weights", "CUDA", "workspace", "M2N", "graphs"]
    assert attention.of("graphs") == experts.of("graphs") == int(0.02 * h200(0).memory)
    assert 14 * GIB < attention.of("weights") < 16 * GIB
    assert 70 * GIB < experts.of("weights") < 76 * GIB  # 22 of 128 experts of 94 layers
    for name, (gpu, ledger) in plan.gpu_ledgers().items():
        assert ledger.total <= gpu.gpu.free_memory, name
    assert plan.nodes_ledger().total == 0, "of the host's memory"
    block = kv_block_bytes(plan.spec, plan.precision)
    left = 140 * GIB - (attention.total - attention.of("KV cache"))
    assert plan.num_blocks == int(0.9 * left) // block
    text = "\n".join(describe(plan))
    assert "bfloat16, on GPUs" in text
    assert "expert 0     GPU 2  cores 16" in text
    assert "GPU 7      NVIDIA H200 (sm_90)" in text
    assert "of the 140.0 GiB that are free for expert 5: weights" in text
    assert list(warnings(plan)) == []


def test_too_few_gpus_for_the_weights_say_what_is_needed_for_what(large):
    with pytest.raises(ConfigError, match=r"GPU 1 .*has 140\.0 GiB free, but 1 node .*: weights"):
        make_plan(EngineConfig(), large, H200X8)
    plan = make_plan(EngineConfig(ffn_device="cpu"), large, H200X8)
    assert plan.nodes_ledger().of("weights") > 400 * GIB
    small_host = replace(H200X8, available_memory=300 * GIB)
    with pytest.raises(ConfigError, match=r"weights need .* this machine has 300\.0 GiB"):
        make_plan(EngineConfig(ffn_device="cpu"), large, small_host)


def test_replicas_experts_on_the_move_and_scaling_are_in_the_ledger(large):
    def planned(**wish: Any) -> Plan:
        return make_plan(EngineConfig(**{"ffn_gpus": 4, "micro_batches": 2, **wish}), large, H200X8)

    plain = planned()
    one = plain.expert_ledger(0).of("weights") // 32
    assert planned(expert_replicas=2).expert_ledger(3).of("weights") == 34 * one
    assert planned(rebalance=30.0).expert_ledger(0).of("experts on the move") == one
    roomy = planned(max_attn_gpus=3, max_ffn_gpus=5)
    assert numbers(roomy) == ([0, 1, 2], [3, 4, 5, 6, 7])
    assert (roomy.most_attention, roomy.most_expert) == (3, 5)
    assert (plain.most_attention, plain.most_expert) == (1, 4)
    slots = roomy.roomy_geometry(2).expert_payloads.bytes
    assert roomy.expert_ledger(0).of("M2N") == slots > 2 * plain.expert_ledger(0).of("M2N")
    assert "for nodes that may join" in "\n".join(describe(roomy))


@pytest.mark.parametrize(
    ("options", "road", "payloads"),
    [
        ({}, "ipc", "device"),
        ({"gpus": (3, 3)}, "ipc", "device"),
        ({"ffn_device": "cpu"}, "shm", "host"),
        ({"attn_device": "cpu"}, "shm", "host"),
        ({"device": "cpu"}, "shm", "host"),
        ({"m2n": "shm"}, "shm", "host"),
        ({"m2n": "dist"}, "dist (nccl)", "device"),
        ({"m2n": "dist", "ffn_device": "cpu"}, "dist (gloo)", "host"),
        ({"m2n": "dist", "device": "cpu"}, "dist (gloo)", "host"),
    ],
)
def test_the_road_leads_where_nodes_compute(small, options, road, payloads):
    plan = make_plan(EngineConfig(**options), small, H200X8)
    assert plan.road.kind == road.partition(" ")[0]
    geometry = plan.roomy_geometry(2)
    assert geometry.payloads == payloads
    slots = geometry.num_expert * 2 * geometry.reply_bytes(geometry.capacity)
    assert (geometry.attention_region_bytes < slots) == (payloads == "device")
    assert geometry.attention_bytes > slots
    assert f"M2N        {road}, slots" in "\n".join(describe(plan))


def test_groups_of_nccl_and_what_they_send_from_are_in_the_ledger(small):
    mapped, sent = (make_plan(EngineConfig(m2n=m2n), small, H200X8) for m2n in ("auto", "dist"))
    m = sent.most_micro_batches
    geometry = sent.roomy_geometry(m)
    dispatch, reply = (
        bytes_of(geometry.capacity) for bytes_of in (geometry.dispatch_bytes, geometry.reply_bytes)
    )
    channels = 2 * 16 * 2**20
    for of in (lambda plan: plan.attention_ledger(0), lambda plan: plan.expert_ledger(0)):
        more = of(sent).of("M2N") - of(mapped).of("M2N")
        assert channels + reply * m <= more <= channels + dispatch * m


def test_ranks_have_a_gpu_each_and_a_part_of_their_nodes_memory(large):
    wish = EngineConfig(attn_gpus=2, attn_tp=2, ffn_tp=4, kv_cache_memory=40 * GIB)
    ranked, alone = (
        make_plan(each, large, H200X8)
        for each in (wish, replace(wish, attn_tp=1, ffn_gpus=4, ffn_tp=1))
    )
    assert [[gpu.number for gpu in node] for node in ranked.devices.attention] == [[0, 1], [2, 3]]
    assert numbers(ranked)[1] == [4, 5, 6, 7]
    assert ranked.devices.of(Role.ATTENTION, 1, 1) == ranked.devices.gpus[3]
    whole = alone.attention_ledger(0)
    parts = [ranked.attention_ledger(1, rank) for rank in (0, 1)]
    for what in ("weights", "KV cache"):
        assert sum(part.of(what) for part in parts) == pytest.approx(whole.of(what), rel=0.01)
        assert parts[1].of(what) == pytest.approx(whole.of(what) / 2, rel=0.01)
    assert [part.of("M2N") > 0 for part in parts] == [True, False], "rank 0 has the ports"
    assert [part.of("graphs") for part in parts] == [0, 0], "stages of ranks aren't recorded"
    layout = ranked.half_layout
    given = sum(each.rows * each.row_bytes for each in (layout.residual, layout.token_ids))
    made = [layout.result(1), layout.logits(1, layout.vocabulary)]
    results = sum(each.rows * each.row_bytes for each in made)
    assert [part.of("between ranks") for part in parts] == [
        RANK_CHANNELS_BYTES + given + count * results for count in (2, 1)
    ], "each field has memory of its own"
    experts = [ranked.expert_ledger(0, rank) for rank in range(4)]
    every = sum(alone.expert_ledger(node).of("weights") for node in range(4))
    assert sum(part.of("weights") for part in experts) == every
    assert ranked.nodes_ledger().total == 0, "of the host's memory"
    assert [*ranked.gpu_ledgers()][2:6] == [
        "attention 1.0",
        "attention 1.1",
        "expert 0.0",
        "expert 0.1",
    ]
    text = "\n".join(describe(ranked))
    assert "attention 1  2 ranks, GPUs 2 | 3  cores" in text
    assert "expert 0     4 ranks, GPUs 4 | 5 | 6 | 7  cores" in text
    assert "that are free for expert 0.3: weights" in text
    assert decode_plan(encode_plan(ranked)) == ranked


def test_the_same_gpu_twice_and_any_order(small):
    plan = make_plan(EngineConfig(attn_gpus=2, gpus=(3, 3, 1)), small, H200X8)
    assert numbers(plan) == ([3, 3], [1])
    assert [gpu.number for gpu in plan.devices.gpus] == [3, 1]
    crowded = machine_of(replace(h200(0), free_memory=2 * GIB))
    with pytest.raises(ConfigError, match=r"GPU 0 .*has 2\.0 GiB free, but 3 nodes there need"):
        make_plan(EngineConfig(attn_gpus=2, gpus=(0, 0, 0)), small, crowded)


def test_caches_of_one_gpu_share_what_is_left(small):
    cache = 50 * GIB
    wish = EngineConfig(attn_gpus=2, gpus=(0, 0, 1), kv_cache_memory=cache)
    plan = make_plan(wish, small, H200X8)
    assert cache - 2**20 < plan.attention_ledger().of("KV cache") <= cache
    with pytest.raises(ConfigError, match=r"--kv-cache-memory of 80\.0 GiB doesn't fit") as error:
        make_plan(replace(wish, kv_cache_memory=80 * GIB), small, H200X8)
    fitting = int(re.findall(r"use --kv-cache-memory (\d+)", str(error.value))[0])
    make_plan(replace(wish, kv_cache_memory=fitting), small, H200X8)
    with pytest.raises(ConfigError, match="one request of 256 tokens needs"):
        make_plan(replace(wish, kv_cache_memory=10_000), small, H200X8)


def test_both_roles_in_one_process_on_one_gpu(small):
    plan = make_plan(EngineConfig(colocated=True, gpus=(5,)), small, H200X8)
    assert numbers(plan) == ([5], [5])
    assert (plan.most_attention, plan.most_expert, plan.micro_batches) == (1, 1, 1)
    assert "M2N" not in [what for what, _ in plan.attention_ledger().lines]
    assert [what for what, _ in plan.expert_ledger(0).lines] == ["weights"], "CUDA is there once"
    assert len(plan.gpu_ledgers()) == 2
    with pytest.raises(ConfigError, match="--colocated computes both roles on one device"):
        make_plan(EngineConfig(colocated=True, ffn_device="cpu"), small, H200X8)


def test_stages_of_experts_are_recorded_where_the_plan_has_room(small):
    noted = list[StageBounds]()
    model: Any = SimpleNamespace(record=lambda bounds, on_graph: noted.append(bounds))
    wish = EngineConfig(attn_gpus=2, max_attn_gpus=3, ffn_gpus=2, max_num_seqs=5)
    plan = make_plan(wish, small, H200X8)
    record(model, plan, 1, lambda done, total: None)
    assert noted == [StageBounds(3, 15, plan.expert_ledger(1).of("graphs"))]
    for other in (replace(wish, enforce_eager=True), replace(wish, ffn_device="cpu")):
        without = make_plan(other, small, H200X8)
        assert not without.expert_ledger(1).of("graphs")
        record(model, without, 1, lambda done, total: None)
    assert len(noted) == 1


def test_experts_on_the_cpu_beside_a_gpu(small):
    plan = make_plan(EngineConfig(ffn_device="cpu", ffn_gpus=2), small, machine_of(h200(0)))
    assert numbers(plan) == ([0], [])
    assert plan.kernels == "gpu"
    assert plan.expert_kernels in ("cpu", "reference")
    assert plan.most_expert == 8, "as many as there are experts: those that join need no GPU"
    assert plan.cores[0].cores == (0,), "one core feeds the GPU"
    assert len(plan.cores_of_expert(0).cores) == 32
    assert plan.cores_of_expert(1).cores[-1] == 63
    weights = plan.nodes_ledger().of("weights")
    assert weights == sum(plan.expert_ledger(node).of("weights") for node in range(2))
    assert "attention on GPUs, experts on CPU" in "\n".join(describe(plan))
    reverse = make_plan(EngineConfig(attn_device="cpu", kernels="reference"), small, HOST)
    assert reverse.devices.gpus == ()
    turned = make_plan(
        EngineConfig(attn_device="cpu", ffn_device="cuda", kernels="reference"), small, H200X8
    )
    assert (turned.kernels, turned.expert_kernels, numbers(turned)) == (
        *("reference", "gpu"),
        ([], [0]),
    )


def test_narrow_formats_of_experts_are_not_the_references(small):
    wish = EngineConfig(gpus=(0, 0), expert_dtype="fp8")
    one = machine_of(h200(0))
    assert make_plan(wish, small, one).expert_dtype == "fp8"
    with pytest.raises(ConfigError, match="--expert-dtype fp8 needs the CPU kernels, but the ref"):
        make_plan(replace(wish, ffn_device="cpu", gpus=None, kernels="reference"), small, one)
    with pytest.raises(ConfigError, match="--attention-dtype float32 needs the CPU kernels"):
        make_plan(EngineConfig(attention_dtype="float32"), small, H200X8)
    with pytest.raises(ConfigError, match="--expert-dtype int8_32 needs the CPU kernels; on a GPU"):
        make_plan(replace(wish, expert_dtype="int8_32"), small, one)


@pytest.mark.parametrize("kept", ["int8", "fp8", "float32"])
def test_a_cache_of_another_dtype_is_refused_on_gpus(small, kept):
    wish = EngineConfig(kv_cache_dtype=kept)
    with pytest.raises(ConfigError, match=f"--kv-cache-dtype {kept} needs the CPU kernels; on a"):
        make_plan(wish, small, H200X8)
    beside = replace(wish, attn_device="cpu", ffn_device="cuda", kernels="cpu")
    assert make_plan(beside, small, H200X8).kv_cache_dtype == kept
    assert make_plan(replace(wish, kv_cache_dtype="bfloat16"), small, H200X8)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32")],
)
def test_on_gpus_auto_is_the_checkpoints_own(tmp_path, stored, dtype):
    folder = write_config("qwen3_moe", "gqa", tmp_path, dtype=stored)
    machine = replace(H200X8, bfloat16_arithmetic=False)
    assert make_plan(EngineConfig(), folder, machine).dtype == dtype
    assert make_plan(EngineConfig(dtype="float32"), folder, machine).dtype == "float32"


@pytest.mark.parametrize(
    ("wish", "machine", "message"),
    [
        ({"device": "cuda"}, HOST, "no GPU can be used: no libnvidia-ml.*; use --device cpu"),
        ({"kernels": "gpu"}, HOST, "no GPU can be used: no libnvidia-ml"),
        ({"attn_gpus": 5, "ffn_gpus": 4}, H200X8, r"need 9 GPUs, but this machine has 8; .*0,1"),
        ({"max_attn_gpus": 8}, H200X8, r"--attn-gpus 1 \(at most 8\) and .* need 9 GPUs"),
        ({"gpus": (0,)}, H200X8, "need 2 GPUs, but --gpus 0 names 1"),
        ({"gpus": (0, 8)}, H200X8, "names GPU 8, but this machine has 8, from 0 on"),
        ({"gpus": (0, 1), "device": "cpu"}, H200X8, "--gpus 0,1 chooses GPUs, but no node"),
        ({"device": "cuda", "kernels": "cpu"}, H200X8, "--kernels cpu computes on the CPU"),
        ({"device": "cpu", "kernels": "gpu"}, H200X8, "--kernels gpu computes on GPUs"),
        (
            {"ffn_tp": 2, "gpus": (0, 1, 1)},
            H200X8,
            "--ffn-tp 2 needs a GPU for each rank of a node, but --gpus gives one node 1,1; name",
        ),
        (
            {"attn_tp": 2, "ffn_gpus": 4, "ffn_tp": 2},
            H200X8,
            "--attn-gpus 1 with --attn-tp 2 and --ffn-gpus 4 with --ffn-tp 2 need 10 GPUs, but "
            "this machine has 8; use fewer nodes or ranks or --device cpu",
        ),
        (
            {},
            machine_of(h200(0), replace(h200(1), capability=(7, 5), name="T4")),
            r"GPU 1 \(T4\) is of sm_75; the kernels need sm_80",
        ),
        (
            {},
            machine_of(replace(h200(0), split=True), h200(1)),
            r"GPU 0 .* is split into instances",
        ),
    ],
)
def test_what_gpus_cannot_do_is_refused_with_what_helps(small, wish, machine, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(EngineConfig(**wish), small, machine)


def test_without_usable_gpus_auto_is_the_cpu_and_says_why(small, caplog):
    unusable = replace(H200X8, gpu_problem="triton is not installed; pip install triton==3.7.1")
    with caplog.at_level(logging.WARNING):
        assert make_plan(EngineConfig(), small, HOST).devices.gpus == ()
        assert caplog.text == ""
        assert make_plan(EngineConfig(), small, unusable).devices.gpus == ()
    assert "can't be used: triton is not installed; pip install triton==3.7.1" in caplog.text
    with pytest.raises(ConfigError, match="pip install triton"):
        make_plan(EngineConfig(device="cuda"), small, unusable)
    for kernels in ("reference", "auto"):
        on_cpu = make_plan(EngineConfig(device="cpu", kernels=kernels), small, H200X8)
        assert on_cpu.devices.gpus == ()


def test_a_plan_with_gpus_goes_to_another_process_as_bytes(large):
    plan = make_plan(EngineConfig(attn_gpus=2, ffn_gpus=6, gpus=tuple(range(8))), large, H200X8)
    assert decode_plan(encode_plan(plan)) == plan


def test_a_process_sees_its_own_gpu_first_and_all_of_the_instance(small):
    plan = make_plan(EngineConfig(attn_gpus=2, gpus=(3, 3, 1)), small, H200X8)
    environment = {"CUDA_VISIBLE_DEVICES": "7", "HOME": "/"}
    gpu = plan.devices.of(Role.EXPERT, 0)
    assert gpu is not None
    settle_cuda(environment, plan.devices, gpu)
    assert environment == {
        "CUDA_VISIBLE_DEVICES": "GPU-00000001,GPU-00000003",
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "CUDA_MODULE_LOADING": "EAGER",
        "HOME": "/",
    }


@pytest.mark.parametrize("text", ["", "a", "0,", "0;1", "0.5"])
def test_gpus_that_are_no_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="--gpus must be numbers of GPUs such as 0,1, not"):
        parse_gpus(text)
    for wish in ((), (-1,), "01"):
        with pytest.raises(ConfigError, match="--gpus must be numbers of GPUs such as 0,1, not"):
            EngineConfig(gpus=wish)
