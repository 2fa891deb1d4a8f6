"""What a step gives once it has been through all layers: tokens, and scores of prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace
from torch import Tensor

from megainfer.attention_node.model import StepModel
from megainfer.attention_node.prompt_scores import PendingScores, begin_scores
from megainfer.attention_node.routing_record import RoutingRecord
from megainfer.attention_node.sample_rows import NOBODYS_ROW, sample_row
from megainfer.attention_node.sampling.draws import Draws, SampleOutput
from megainfer.attention_node.sampling.row_errors import RowError
from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling
from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.compute.batch import StepBatch
from megainfer.device import Device
from megainfer.instruments.stage_clock import StageClock
from megainfer.messages.requests import RequestFailed, TokenEvent, TokenLogprobs
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.structured.grammar import GrammarFailed


class Failure(NamedTuple):
    """A request that ends with this step, alone; client_error: it asked for too much. spoiled: its
    keys and values are not to be used again."""

    request_id: str
    message: str
    client_error: bool = False
    spoiled: bool = False

    @classmethod
    def of(cls, request_id: str, error: RowError) -> "Failure":
        return cls(request_id, str(error), error.client_error, error.spoiled)

    def told_by(self, node: int) -> RequestFailed:
        return RequestFailed(node, self.request_id, self.message, self.client_error)


@dataclass(frozen=True, slots=True)
class StepResult:
    """A token, and log-probabilities where wanted, for each chunk that samples, in their order;
    those of `failures` mean nothing. routed: by request, where wanted."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    failures: list[Failure]
    routed: Mapping[str, RoutedExperts]

    def told_in(self, events: Sequence[TokenEvent]) -> Sequence[TokenEvent]:
        """The events of its tokens, with what their requests' tokens chose where that is wanted."""
        if not self.routed:
            return events
        return [replace(event, routed=self.routed.get(event.request_id)) for event in events]


class StepOutput:
    """A step's result, which is being found. chunks: that sample."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        scores: Sequence[PendingScores],
        grammars: Sequence[Failure],
        draws: Draws,
        record: RoutingRecord | None,
    ) -> None:
        self._chunks = chunks
        self._record = record
        self._scores = scores
        self._grammars = grammars
        self._draws = draws

    def done(self) -> bool:
        """Whether `take` would return at once; never blocks."""
        return self._draws.done() and all(score.done() for score in self._scores)

    def take(self) -> StepResult:
        """The result, and the sequences' `prompt_logprobs`; blocks until they are there."""
        failures = [*self._take_scores(), *self._grammars]
        output = self._draws.take()
        failures += self._row_failures(output)
        return StepResult(output.token_ids, output.logprobs, failures, self._take_routed())

    def _take_routed(self) -> dict[str, RoutedExperts]:
        """By request, what its tokens chose that nobody was told of."""
        if self._record is None:
            return {}
        routed = {}
        for chunk in self._chunks:
            sequence = chunk.sequence
            if sequence.submit.routed_experts:
                told, sequence.routed_told = sequence.routed_told, chunk.end
                routed[sequence.request_id] = self._record.of(sequence.block_ids, told, chunk.end)
        return routed

    def _take_scores(self) -> Iterator[Failure]:
        for scores in self._scores:
            try:
                scores.take()
            except RowError as error:
                yield Failure.of(scores.sequence.request_id, error)

    def _row_failures(self, output: SampleOutput) -> Iterator[Failure]:
        for error in output.errors:
            for row in error.rows:
                yield Failure.of(self._chunks[row].sequence.request_id, error)


def begin_output(
    model: StepModel, x: Tensor, batch: StepBatch, step: Step, device: Device, clock: StageClock
) -> StepOutput:
    """Begin to find what the finished x [T, D] of a step gives."""
    with clock.span("head", step.micro_batch):
        logits = model.logits(x, batch.sample_rows)
        scores = list(begin_scores(model, x, batch, step, device))
    with clock.span("sample", step.micro_batch):
        chunks = [chunk for chunk in step.chunks if chunk.samples]
        grammars: list[Failure] = []
        rows = [_row(chunk, grammars) for chunk in chunks]
        draws = begin_sampling(logits, rows, model.tokens, device)
    return StepOutput(chunks, scores, grammars, draws, model.record)


def _row(chunk: Chunk, failures: list[Failure]) -> SampleRow:
    try:
        return sample_row(chunk)
    except GrammarFailed as error:
        failures.append(Failure(chunk.sequence.request_id, str(error), client_error=True))
        return NOBODYS_ROW
