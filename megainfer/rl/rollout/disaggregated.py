"""Answers drawn by MegaInfer's own attention and expert nodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError
from megainfer.frontend.outputs import CompletionOutput
from megainfer.llm import LLM
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.rl.rollout.engine import Context, Drawn
from megainfer.sampling import SamplingParams

RECORDS = "enable_return_routed_experts"
OURS = ("model", "progress", RECORDS)
"""Options of `LLM` that a run decides."""


class DisaggregatedEngine:
    """An `LLM` with the policy's weights.

    options: as `LLM` takes them. routing: whether what gates chose is told. Raises ConfigError for
    an option that there isn't, and what `LLM` does.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], routing: bool = False) -> None:
        self._routing = routing
        if taken := set(options) & set(OURS):
            raise ConfigError(f"rollout.engine can't set {min(taken)!r}: the run does")
        try:
            own = {**options, RECORDS: routing}
            self._llm = LLM(str(folder), progress=False, **own)
        except TypeError as error:
            raise ConfigError(f"rollout.engine: {error}") from error

    @property
    def llm(self) -> LLM:
        """For its tokenizer, and what its nodes count."""
        return self._llm

    @property
    def end_tokens(self) -> Sequence[int]:
        """As the model's generation_config.json has them."""
        return self._llm.end_tokens

    def draw(self, contexts: Sequence[Context], greedy: bool = False) -> list[Drawn]:
        """One a context, in their order; raises RequestError, NodeDied."""
        params = [
            SamplingParams(
                temperature=0.0 if greedy else 1.0,
                max_tokens=context.max_tokens,
                seed=context.seed,
                logprobs=0,
                return_routed_experts=self._routing and not greedy,
            )
            for context in contexts
        ]
        prompts = [list(context.token_ids) for context in contexts]
        results = self._llm.generate(prompts, params, progress=False)
        return [_drawn(result.outputs[0]) for result in results]

    def update_weights(self, folder: Path) -> None:
        """All nodes switch before it returns. Raises CheckpointError."""
        self._llm.update_weights(folder)

    def close(self) -> None:
        """End all processes."""
        self._llm.shutdown()


def _drawn(output: CompletionOutput) -> Drawn:
    tables = output.logprobs or []
    rows = zip(output.token_ids, tables, strict=True)
    logprobs = [table[token].logprob for token, table in rows]
    return Drawn(output.token_ids, logprobs, _routing(output))


def _routing(output: CompletionOutput) -> RoutedExperts | None:
    experts = output.routed_experts
    if experts is None:
        return None
    _, layers, top_k = experts.shape
    return RoutedExperts(0, layers, top_k, experts.tobytes())
