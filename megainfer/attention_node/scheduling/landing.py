"""What the end of a step does to its sequences."""

from collections.abc import Iterable

from megainfer.attention_node.scheduling.config import SchedulerConfig
from megainfer.attention_node.scheduling.pool import SequencePool
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.step import Chunk, Step
from megainfer.messages.requests import FinishReason, TokenEvent, TokenLogprobs
from megainfer.topology import FOLDERS_OWN


class Landing:
    """Of steps that are in flight no more. weights: the name of those that steps compute with."""

    def __init__(self, pool: SequencePool, config: SchedulerConfig) -> None:
        self.weights = FOLDERS_OWN.name
        self._pool = pool
        self._config = config

    def commit(
        self,
        step: Step,
        token_ids: Iterable[int],
        logprobs: Iterable[TokenLogprobs | None] | None,
    ) -> list[TokenEvent]:
        """Its keys and values stand; an event for each chunk that samples, as `Scheduler.complete`
        says."""
        sampling = [chunk.sequence for chunk in step.chunks if chunk.samples]
        if logprobs is None:
            logprobs = [None] * len(sampling)
        results = list(zip(sampling, token_ids, logprobs, strict=True))
        for chunk in step.chunks:
            self._commit(chunk)
        return [self._append(*r) for r in results if r[0].status is not Status.ABORTING]

    def take_back(self, step: Step) -> None:
        """Its rows are to be scheduled again."""
        for chunk in step.chunks:
            self._take_back(chunk)

    def resolve(self, step: Step) -> list[TokenEvent]:
        """What waited for its sequences to be at rest happens now; an event for each that ends."""
        at_rest = [c.sequence for c in step.chunks if c.sequence.is_at_rest]
        doomed = [s for s in at_rest if s.status is Status.ABORTING]
        for sequence in doomed:
            self._pool.end(sequence, FinishReason.ABORT)
        for sequence in at_rest:
            if sequence.status is Status.STALLED:
                self._go_on(sequence)
        return [TokenEvent(s.request_id, [], FinishReason.ABORT) for s in doomed]

    def _commit(self, chunk: Chunk) -> None:
        sequence, block_size = chunk.sequence, self._config.block_size
        assert sequence.num_computed == chunk.start, f"a gap in {sequence.request_id}"
        sequence.num_computed = chunk.end
        self._pool.publish(sequence, chunk.start // block_size, chunk.end // block_size)

    def _append(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> TokenEvent:
        scores = sequence.take_scores()
        sequence.token_ids.append(token)
        reason = sequence.reason_to_finish(self._config.max_model_len)
        if reason is not None:
            self._pool.end(sequence, reason)
        is_first = sequence.num_outputs == 1
        return TokenEvent(
            request_id=sequence.request_id,
            token_ids=[token],
            finish_reason=reason,
            cached_tokens=sequence.cached_tokens if is_first else 0,
            logprobs=None if logprobs is None else [logprobs],
            prompt_logprobs=scores,
            queued_seconds=(sequence.queued_seconds or 0.0) if is_first else 0.0,
            weights=self.weights,
            stale_tokens=sequence.stale_tokens,
        )

    def _take_back(self, chunk: Chunk) -> None:
        """Its sequence keeps its blocks, which the same tokens will need again, unless it has to
        begin again."""
        sequence = chunk.sequence
        sequence.num_scheduled = min(sequence.num_scheduled, chunk.start)
        goes_on = sequence.is_decoding and not self._config.recurrent
        if sequence.status is Status.RUNNING and not goes_on:
            self._pool.stall(sequence)

    def _go_on(self, sequence: Sequence) -> None:
        """A step of it was abandoned, and the others have ended."""
        if self._config.recurrent:
            self._pool.preempt(sequence)
        else:
            self._pool.resume(sequence)
