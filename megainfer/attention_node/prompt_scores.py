"""Log-probabilities of a prompt's own tokens, from the steps that compute the prompt."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megainfer.attention_node.model import StepModel
from megainfer.attention_node.sampling.logprobs import PendingLogprobs, begin_logprobs
from megainfer.attention_node.sampling.row_errors import NonFiniteLogits
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.step import Step
from megainfer.compute.batch import StepBatch
from megainfer.device import Device, Readback

HEAD_ROWS = 32  # whose logits exist at a time: 20 MB for a vocabulary of 152 thousand


@dataclass(frozen=True, slots=True)
class _Part:
    """Of consecutive positions of the prompt: the score of the token after each."""

    positions: range
    finite: Readback  # bool, one a position
    logprobs: PendingLogprobs


class PendingScores:
    """What one step gives of one sequence's `prompt_logprobs`, as it is being computed."""

    def __init__(self, sequence: Sequence, parts: list[_Part]) -> None:
        self.sequence = sequence
        self._parts = parts

    def done(self) -> bool:
        """Whether `take` would return at once; never blocks."""
        return all(part.finite.done() and part.logprobs.done() for part in self._parts)

    def take(self) -> None:
        """Extend the sequence's `prompt_logprobs`; blocks until they are there.

        One that is being aborted is passed over: an earlier chunk may have failed and left a gap.
        Raises NonFiniteLogits.
        """
        if self.sequence.status is not Status.ABORTING:
            for part in self._parts:
                self._extend(part)

    def _extend(self, part: _Part) -> None:
        known, positions = self.sequence.prompt_logprobs, part.positions
        assert positions.start == len(known), f"a gap in {self.sequence.request_id}"
        finite = part.finite.take()
        if not bool(finite.all()):
            wrong = (~finite).nonzero().flatten() + positions.start
            raise NonFiniteLogits(tuple(wrong.tolist()), of="prompt")
        known += part.logprobs.take(_tokens_after(self.sequence, positions)).values()


def begin_scores(
    model: StepModel, x: Tensor, batch: StepBatch, step: Step, device: Device
) -> Iterator[PendingScores]:
    """What the finished x gives of the `prompt_logprobs` of the step's sequences that want them."""
    for chunk, first_row in zip(step.chunks, batch.first_rows, strict=True):
        sequence = chunk.sequence
        if sequence.submit.prompt_logprobs is None or sequence.status is Status.ABORTING:
            continue
        wanted = sequence.unscored
        positions = range(max(wanted.start, chunk.start), min(wanted.stop, chunk.end))
        if positions:
            row = first_row - chunk.start  # of position 0
            parts = [_begin(model, x, row, sequence, part, device) for part in _parts(positions)]
            yield PendingScores(sequence, parts)


def _parts(positions: range) -> Iterator[range]:
    for start in range(positions.start, positions.stop, HEAD_ROWS):
        yield range(start, min(start + HEAD_ROWS, positions.stop))


@torch.inference_mode()
def _begin(
    model: StepModel, x: Tensor, row: int, sequence: Sequence, positions: range, device: Device
) -> _Part:
    rows = torch.tensor([row + position for position in positions])
    logits = model.logits(x, device.upload(rows))
    best, _ = model.tokens.best(logits)
    wanted = sequence.submit.prompt_logprobs
    assert wanted is not None, "positions are wanted, but no log-probabilities"
    tokens = device.upload(torch.tensor(_tokens_after(sequence, positions)))
    every_row = dict.fromkeys(range(len(positions)), wanted)
    logprobs = begin_logprobs(logits, tokens, every_row, model.tokens, device)
    return _Part(positions, device.read_back(best.isfinite()), logprobs)


def _tokens_after(sequence: Sequence, positions: range) -> list[int]:
    return sequence.token_ids[positions.start + 1 : positions.stop + 1]
