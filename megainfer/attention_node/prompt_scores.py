"""Log-probabilities of a prompt's own tokens, from the steps that compute the prompt."""

from collections.abc import Iterator

import torch
from torch import Tensor

from megainfer.attention_node.model import StepModel
from megainfer.attention_node.sampling.logprobs import logprobs_of
from megainfer.attention_node.sampling.sampler import NonFiniteLogits
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.compute.batch import StepBatch
from megainfer.messages import TokenLogprobs

HEAD_ROWS = 32  # whose logits exist at a time: 20 MB for a vocabulary of 152 thousand


def score_prompts(
    model: StepModel, x: Tensor, batch: StepBatch, step: Step
) -> Iterator[tuple[str, NonFiniteLogits]]:
    """Extend `prompt_logprobs` of the step's sequences that want it by what the finished x gives.

    Gives the request ids that have logits that are not finite, each with its error. Those that are
    being aborted are passed over: an earlier chunk may have failed and left a gap.
    """
    for chunk, first_row in zip(step.chunks, batch.first_rows, strict=True):
        sequence = chunk.sequence
        if sequence.submit.prompt_logprobs is None or sequence.status is Status.ABORTING:
            continue
        wanted = sequence.unscored
        positions = range(max(wanted.start, chunk.start), min(wanted.stop, chunk.end))
        if positions:
            try:
                _score(model, x, chunk, positions, first_row)
            except NonFiniteLogits as error:
                yield sequence.request_id, error


def _score(model: StepModel, x: Tensor, chunk: Chunk, positions: range, first_row: int) -> None:
    sequence = chunk.sequence
    assert positions.start == len(sequence.prompt_logprobs), f"a gap in {sequence.request_id}"
    for start in range(positions.start, positions.stop, HEAD_ROWS):
        part = range(start, min(start + HEAD_ROWS, positions.stop))
        rows = torch.tensor([first_row + position - chunk.start for position in part])
        sequence.prompt_logprobs += _logprobs(model, model.logits(x, rows), sequence, part)


@torch.inference_mode()
def _logprobs(
    model: StepModel, logits: Tensor, sequence: Sequence, positions: range
) -> list[TokenLogprobs]:
    best, _ = model.tokens.best(logits)
    if not bool(best.isfinite().all()):
        wrong = (~best.isfinite()).nonzero().flatten() + positions.start
        raise NonFiniteLogits(tuple(wrong.tolist()), of="prompt")
    wanted = sequence.submit.prompt_logprobs
    assert wanted is not None, "positions are wanted, but no log-probabilities"
    tokens = sequence.token_ids[positions.start + 1 : positions.stop + 1]
    return logprobs_of(logits, wanted, tokens)
