"""Once nodes are warm, their kernels take no more memory: steps of every size, spares that are
filled, and experts on the move included."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer.attention_node.process import load_attention
from megainfer.attention_node.warm_up import warm_up as warm_up_attention
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.gpu.backend import GpuBackend
from megainfer.config import BLOCK_SIZE, EngineConfig
from megainfer.expert_node.loading import ExpertLoader
from megainfer.expert_node.process import load_experts
from megainfer.expert_node.profile import dispatches_of
from megainfer.expert_node.warm_up import warm_up as warm_up_experts
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.models.sources import FfnSources
from megainfer.topology import EMPTY
from megainfer.topology.placement import Slots, Table
from tests.support.checkpoints import write_checkpoint
from tests.support.node_pair import CLOCK
from tests.support.sealed_device import SealedDevice

SIZES: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 6, "max_model_len": 592}
"""Sequences so long that attention cuts them into segments."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        *("qwen3_moe", "gqa", tmp_path_factory.mktemp("model")),
        num_hidden_layers=2,
        max_position_embeddings=1024,
    )


def planned(folder: Path, **wish: Any) -> Plan:
    config = EngineConfig(str(folder), 1, 2, kernels="reference", dtype="float32", **SIZES, **wish)
    return make_plan(config, folder, read_machine())


def without_spare(plan: Plan, node: int) -> Plan:
    """The node's last slot is empty in each layer, as when its node came later."""
    tables = tuple(
        Table(
            _with_last(table.experts, node, EMPTY),
            _with_last(table.ways, node, 0),
        )
        for table in plan.placement.tables
    )
    return replace(plan, placement=replace(plan.placement, tables=tables))


def _with_last(slots: Slots, node: int, value: int) -> Slots:
    return tuple((*own[:-1], value) if at == node else own for at, own in enumerate(slots))


def gpu(device: SealedDevice) -> GpuBackend:
    return GpuBackend(torch.float32, torch.float32, device)


def nothing(done: int, total: int) -> None: ...


def test_steps_of_every_size_have_their_memory(folder: Path) -> None:
    plan, device = planned(folder), SealedDevice()
    model, kv = load_attention(plan, gpu(device), nothing)
    warm_up_attention(model, kv, plan)
    device.seal()
    longest, blocks = SIZES["max_model_len"], SIZES["max_model_len"] // BLOCK_SIZE

    def chunk(sequence: int, tokens: int, start: int) -> ChunkInput:
        own = [(sequence * blocks + block) % plan.num_blocks for block in range(blocks)]
        return ChunkInput([3] * tokens, start, own, samples=True, state_slot=sequence)

    for chunks in (
        [chunk(0, 1, 0)],
        [chunk(row, 1, longest - 1) for row in range(6)],
        [chunk(0, 24, longest - 24)],
        [chunk(0, 19, 40), *(chunk(row, 1, longest - 1) for row in range(1, 6))],
    ):
        batch = build_batch(chunks, device)
        x, layer = model.embed(batch), 0
        while (point := model.advance(x, layer, batch, kv, CLOCK)) is not None:
            layer = point.layer + 1
        model.logits(x, batch.sample_rows)


def test_spares_and_experts_on_the_move_have_theirs(folder: Path) -> None:
    node = 1
    plan = without_spare(planned(folder, expert_replicas=1, rebalance=30.0), node)
    device = SealedDevice()
    model = load_experts(plan, node, gpu(device), nothing)
    warm_up_experts(model, plan, node, device)
    device.seal()
    layer = plan.spec.first_moe_layer
    for rows in (1, 7, SIZES["max_num_batched_tokens"]):
        dispatches = dispatches_of(plan, node, rows, device)
        model.forward(layer, dispatches, [torch.empty_like(d.hidden) for d in dispatches])
    held = model.held
    assert any(EMPTY in slots for slots in held.values()), "a spare is to be filled"
    with WeightReader(folder) as reader:
        for number in plan.spec.moe_layers:
            loader, own = ExpertLoader(FfnSources(plan.spec, number), reader), model.layer(number)
            strangers = [e for e in range(plan.spec.num_experts) if e not in held[number]]
            spares = held[number].count(EMPTY) + 1  # and one on the move
            assert len(strangers) >= spares
            for expert in strangers[:spares]:
                model.take_in((number, expert), loader.prepared(own, expert))
        with pytest.raises(torch.OutOfMemoryError, match="sealed"):
            loader.prepared(own, strangers[0])  # one more than the ledger has
