"""Answers drawn by MegaInfer's own attention and expert nodes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError
from megainfer.frontend.outputs import CompletionOutput, RequestOutput
from megainfer.llm import LLM
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.rl.rollout.engine import Context, Drawn, Ended
from megainfer.sampling import SamplingParams
from megainfer.text.given_prompts import GivenPrompt

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
        prompts, params = self._wishes(contexts, greedy)
        return list(map(_drawn, self._llm.generate(prompts, params, progress=False)))

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        """Each as it ends. Raises as `draw`."""
        prompts, params = self._wishes(contexts)
        for place, result, at in self._llm.generate_each(prompts, params):
            yield Ended(place, _drawn(result), at)

    def _wishes(
        self, contexts: Sequence[Context], greedy: bool = False
    ) -> tuple[list[GivenPrompt], list[SamplingParams]]:
        params = [
            SamplingParams(
                temperature=0.0 if greedy else 1.0,
                max_tokens=context.max_tokens,
                seed=context.seed,
                logprobs=0,
                return_routed_experts=self._routing and not greedy,
                stale_prefix=context.stale_prefix,
            )
            for context in contexts
        ]
        return [list(context.token_ids) for context in contexts], params

    def update_weights(self, folder: Path) -> None:
        """All nodes switch before it returns. Raises CheckpointError."""
        self._llm.update_weights(folder)

    def close(self) -> None:
        """End all processes."""
        self._llm.shutdown()


def _drawn(result: RequestOutput) -> Drawn:
    (output,) = result.outputs
    tables = output.logprobs or []
    rows = zip(output.token_ids, tables, strict=True)
    logprobs = [table[token].logprob for token, table in rows]
    stale = max((span.stale_tokens for span in output.weight_versions), default=0)
    return Drawn(output.token_ids, logprobs, _routing(output), stale)


def _routing(output: CompletionOutput) -> RoutedExperts | None:
    experts = output.routed_experts
    if experts is None:
        return None
    _, layers, top_k = experts.shape
    return RoutedExperts(0, layers, top_k, experts.tobytes())
