"""Steps that nobody asked for, before an attention node serves on a device."""

from collections.abc import Iterator

from megainfer.attention_node.model import StepModel
from megainfer.attention_node.profile import decode_batch
from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling
from megainfer.compute.batch import ChunkInput, StepBatch, build_batch
from megainfer.compute.kv_cache import KVCache
from megainfer.config import BLOCK_SIZE
from megainfer.instruments.stage_clock import StageClock
from megainfer.launch.plan import Plan

ROWS = (
    SampleRow(temperature=0.0, top_p=1.0, top_k=0, seed=0, position=1, logprobs=1),
    SampleRow(temperature=0.8, top_p=0.9, top_k=5, seed=0, position=1, min_p=0.1),
)
"""Of either kind that needs kernels of its own."""


def warm_up(model: StepModel, kv: KVCache, plan: Plan) -> None:
    """Compile kernels and take the memory of the largest steps, which a first request would wait
    for else; not on the host, which does neither. What is in the cache is of no meaning before and
    after."""
    if kv.device.is_host:
        return
    for batch in _batches(plan, kv):
        _run(model, kv, batch)


def _batches(plan: Plan, kv: KVCache) -> Iterator[StepBatch]:
    """Decode steps of all sizes that are profiled, and a prompt that fills a step; of either the
    first there may be and the last, since what attention keeps meanwhile grows with the context."""
    last = plan.max_model_len - 1
    tokens = min(plan.config.max_num_batched_tokens, last)
    for context in (0, last):
        for rows in plan.profiled_rows:
            yield decode_batch(plan, rows, context, kv.device)
    for start in (0, last - tokens):
        blocks = [b % plan.num_blocks for b in range(-(-(start + tokens) // BLOCK_SIZE))]
        yield build_batch([ChunkInput([0] * tokens, start, blocks, samples=True)], kv.device)


def _run(model: StepModel, kv: KVCache, batch: StepBatch) -> None:
    """Through all layers, as if experts gave nothing where they are elsewhere."""
    x, layer, clock = model.embed(batch), 0, StageClock().of(0)
    while (point := model.advance(x, layer, batch, kv, clock)) is not None:
        model.shared(point.layer, point.hidden)
        layer = point.layer + 1
    logits = model.logits(x, batch.sample_rows)
    rows = [ROWS[row % len(ROWS)] for row in range(len(logits))]
    begin_sampling(logits, rows, model.tokens, kv.device).take()
