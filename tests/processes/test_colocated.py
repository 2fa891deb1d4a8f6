"""All layers at once in one process give the bits of one attention and one expert node."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel, StepModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.cpu.kernels import library
from megainfer.compute.selection import Precision, open_backend
from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import StageClock
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.registry import load_spec
from megainfer.topology import contiguous_placement
from tests.support.checkpoints import write_checkpoint

BLOCKS = 12
PROMPTS = [range(3, 40), range(5, 9), range(20, 21)]
FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("qwen3_moe", "dense_between"),  # chains of layers between dense ones
    ("olmoe", "gqa_clip_tied"),  # one chain from end to end
    ("qwen3_next", "grouped"),
    ("deepseek_v3", "groups"),  # latent attention
    ("gpt_oss", "alternating"),  # sinks, windows, biases
    ("llama", "gqa_old"),  # no router
]
needs_kernels = pytest.mark.skipif(not library.is_built(), reason="kernels are not built")


class Model:
    """Both halves of a checkpoint, loaded anew, over a cache with 4 blocks for each prompt."""

    def __init__(self, folder: Path, kernels: str, dtype: torch.dtype) -> None:
        spec = load_spec(folder)
        placement = contiguous_placement(spec.num_experts, 1, spec.moe_layers)
        backend = open_backend(kernels, Precision(str(dtype).removeprefix("torch.")), threads=2)
        with WeightReader(folder) as reader:
            self.attention = AttentionModel(spec, reader, placement, backend)
            self.experts = ExpertModel(spec, reader, placement, 0, backend)
        self.kv = self.attention.new_cache(BLOCKS, num_states=len(PROMPTS))
        self.clock, self.expert_clock = StageClock(), StageClock()

    def colocated(self) -> ColocatedModel:
        return ColocatedModel(self.attention, self.experts, self.kv, self.expert_clock)

    def apart(self, model: StepModel, chunks: Sequence[ChunkInput]) -> Tensor:
        """A step in which the experts are asked for, layer by layer."""
        batch, clock = build_batch(chunks), self.clock.of(0)
        x, layer = model.embed(batch), 0
        while (point := model.advance(x, layer, batch, self.kv, clock)) is not None:
            shared = model.shared(point.layer, point.hidden)
            if shared is not None:
                x += shared
            part, out = point.parts[0], torch.empty_like(point.hidden)
            message = Dispatch(
                0, 0, point.layer, 0, point.hidden[part.rows], part.local_ids, part.weights
            )
            self.experts.forward(point.layer, [message], [out])
            x += out
            layer = point.layer + 1
        return model.logits(x, batch.sample_rows)


def steps() -> list[list[ChunkInput]]:
    """A prefill of all prompts, then two tokens more of each."""
    return [
        [
            ChunkInput(list(prompt), 0, [i, i + 3, i + 6], samples=True, state_slot=i)
            for i, prompt in enumerate(PROMPTS)
        ],
        *(
            [
                ChunkInput(
                    [7 + i], len(prompt) + turn, [i, i + 3, i + 6], samples=True, state_slot=i
                )
                for i, prompt in enumerate(PROMPTS)
            ]
            for turn in range(2)
        ),
    ]


@pytest.mark.parametrize("family", FAMILIES, ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernels", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_the_same_bits_and_counts(tmp_path, family, dtype, kernels):
    folder = write_checkpoint(*family, tmp_path)
    together, apart = Model(folder, kernels, dtype), Model(folder, kernels, dtype)
    colocated = together.colocated()
    for chunks in steps():
        found, expected = together.apart(colocated, chunks), apart.apart(apart.attention, chunks)
        assert torch.equal(found, expected)
    assert together.experts.counters()["expert_tokens"] == apart.experts.counters()["expert_tokens"]
    layers = len(steps()) * len(together.experts.spec.moe_layers)
    assert together.expert_clock.counters()["expert_count"] == layers
    assert together.clock.counters()["combine_count"] == layers


@needs_kernels
def test_layers_with_experts_alone_are_chained(tmp_path):
    model = Model(write_checkpoint("qwen3_moe", "dense_between", tmp_path), "cpu", torch.float32)
    chained = [layer for chain in model.colocated().chains for layer in chain.layers]
    assert chained == list(model.experts.spec.moe_layers)


@needs_kernels
def test_chains_send_tokens_where_experts_have_moved(tmp_path):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    together, apart = (Model(folder, "cpu", torch.float32) for _ in range(2))
    colocated, chunks = together.colocated(), steps()[0]
    before = together.apart(colocated, chunks)
    for model in (together, apart):
        for layer in model.attention.half.layers:
            _, gate = layer.plain_routing
            gate.move(gate.homes._replace(local_id=gate.homes.local_id.flip(0)))
    found = together.apart(colocated, chunks)
    assert torch.equal(found, apart.apart(apart.attention, chunks))
    assert not torch.equal(found, before)


def test_a_placement_with_other_experts_is_refused(tmp_path):
    model = Model(write_checkpoint("qwen3_moe", "gqa", tmp_path), "reference", torch.float32)
    spec, colocated = model.experts.spec, model.colocated()
    colocated.place(contiguous_placement(spec.num_experts, 1, spec.moe_layers))
    with pytest.raises(
        ConfigError, match="layers have 8 experts, by the new placement they have 7"
    ):
        colocated.place(contiguous_placement(spec.num_experts - 1, 1, spec.moe_layers))


def test_more_nodes_than_one_of_each_role_are_refused():
    with pytest.raises(ConfigError, match="must be 1, not 2 and 1"):
        EngineConfig(colocated=True, attn_gpus=2)
