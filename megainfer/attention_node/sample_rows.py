"""What sampling is told of a step's chunks."""

import numpy as np

from megainfer.attention_node.sampling.edits import LogitEdits
from megainfer.attention_node.sampling.sampler import SampleRow
from megainfer.attention_node.scheduling.sequence import Sequence
from megainfer.attention_node.scheduling.step import Chunk
from megainfer.compute.bitmask import Bitmask

NOBODYS_ROW = SampleRow(temperature=0.0, top_p=1.0, top_k=0, seed=0, position=0)
"""In the place of a request that failed."""


def sample_row(chunk: Chunk) -> SampleRow:
    """How the token after a chunk is chosen. Raises GrammarFailed."""
    submit = chunk.sequence.submit
    return SampleRow(
        temperature=submit.temperature,
        top_p=submit.top_p,
        top_k=submit.top_k,
        seed=submit.seed,
        position=chunk.end,
        logprobs=submit.logprobs,
        min_p=submit.min_p,
        edits=_edits(chunk.sequence) if chunk.sequence.edits_logits else None,
        processed=submit.processed_logprobs,
    )


def _edits(sequence: Sequence) -> LogitEdits:
    if sequence.history is not None:
        sequence.history.catch_up(sequence.token_ids)
    return LogitEdits(
        sequence.submit, sequence.token_ids, sequence.history, sequence.listed, _allowed(sequence)
    )


def _allowed(sequence: Sequence) -> Bitmask | None:
    """Tokens that its grammar allows next. Raises GrammarFailed."""
    matcher = sequence.matcher
    if matcher is None:
        return None
    matcher.take(sequence.token_ids[len(sequence.submit.prompt) + matcher.taken :])
    mask = matcher.mask()
    return None if mask is None else np.frombuffer(mask, dtype=np.int32)
