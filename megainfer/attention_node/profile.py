"""T_a as this process has it: seconds of one layer's attention half by rows of a micro-batch."""

from statistics import median
from time import monotonic

from megainfer.attention_node.model import AttentionModel
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.kv_cache import KVCache
from megainfer.config import BLOCK_SIZE
from megainfer.device import Device, settle
from megainfer.instruments.stage_clock import StageClock
from megainfer.launch.plan import Plan

ROUNDS = 3
MAX_LAYERS = 4
CONTEXT_TOKENS = 128
"""Of each profiled request, where the model's context allows it."""


def profile_attention(model: AttentionModel, kv: KVCache, plan: Plan) -> list[tuple[int, float]]:
    """(rows, seconds a MoE layer) of decode steps, head and sampling spread over the layers."""
    context = min(CONTEXT_TOKENS, plan.max_model_len - 1)
    return [
        (
            rows,
            median(
                _seconds_a_layer(model, kv, decode_batch(plan, rows, context, kv.device), plan)
                for _ in range(ROUNDS)
            ),
        )
        for rows in plan.profiled_rows
    ]


def decode_batch(plan: Plan, rows: int, context: int, device: Device) -> StepBatch:
    """One token each of `rows` requests with `context` tokens before it, in any blocks."""
    blocks = -(-(context + 1) // BLOCK_SIZE)
    chunks = [
        ChunkInput(
            token_ids=[row % plan.spec.vocab_size],
            start=context,
            block_ids=[(row * blocks + i) % plan.num_blocks for i in range(blocks)],
            samples=True,
            state_slot=row,
        )
        for row in range(rows)
    ]
    return build_batch(chunks, device)


def _seconds_a_layer(model: AttentionModel, kv: KVCache, batch: StepBatch, plan: Plan) -> float:
    layers = plan.spec.moe_layers
    measured = layers[: min(MAX_LAYERS, len(layers))]
    settle(kv.device)
    started = monotonic()
    x = model.embed(batch)
    settle(kv.device)
    head_started = monotonic()
    model.logits(x, batch.sample_rows)
    settle(kv.device)
    head = monotonic() - head_started
    next_layer, clock = 0, StageClock().of(0)
    for _ in measured:
        point = model.advance(x, next_layer, batch, kv, clock)
        assert point is not None, "a MoE layer of the plan was not reached"
        next_layer = point.layer + 1
    settle(kv.device)
    return (monotonic() - started - head) / len(measured) + head / len(layers)
