"""What a trainer asks of whoever draws answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from megainfer.messages.routed_experts import RoutedExperts


@dataclass(frozen=True, slots=True)
class Context:
    """What is continued: token_ids, by at least one and at most max_tokens tokens.

    seed: the token at a place in the sequence is a function of the weights, of all tokens before it
    and of (seed, place), whatever else is drawn. So an answer that is drawn in windows is the one
    that is drawn at once, while weights stand still. stale_prefix: whether keys and values may be
    used that earlier weights have computed, where they are still there.
    """

    token_ids: Sequence[int]
    max_tokens: int
    seed: int
    stale_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens, an end token included where one came, and log p of each.

    routing: where it is to be replayed, what all tokens before the last chose, the context's too.
    stale: tokens of the context whose keys and values were of earlier weights.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    routing: RoutedExperts | None = None
    stale: int = 0


class Ended(NamedTuple):
    """place: in the contexts. at: when it ended, in seconds of `perf_counter`."""

    place: int
    drawn: Drawn
    at: float


class RolloutEngine(Protocol):
    """Draws from the model's own distribution: temperature 1, no other limits than length.

    It raises MegaInferError where it can't go on.
    """

    @property
    def end_tokens(self) -> Sequence[int]:
        """An answer ends with any of them."""

    def draw(self, contexts: Sequence[Context], greedy: bool = False) -> list[Drawn]:
        """One a context, in their order. greedy: the likeliest token each time."""

    def draw_each(self, contexts: Sequence[Context]) -> Iterator[Ended]:
        """Each as it ends, while others are drawn; nothing is drawn any more once it is closed."""

    def update_weights(self, folder: Path) -> None:
        """Draw by the weights in the folder from now on: config.json and safetensors."""

    def close(self) -> None:
        """End what it has started; it can be called twice."""
