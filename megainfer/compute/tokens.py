"""Finding tokens in rows of logits: what is asked, whichever implementation answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class DrawWish(NamedTuple):
    """temperature: above 0. top_k: 1 to V, V keeps all. top_p: in (0, 1]; the smallest set of best
    tokens whose probabilities reach it is kept, after top_k and renormalised. min_p: in [0, 1];
    tokens less likely than this share of the likeliest are dropped first. uniform: in
    [0, 1 - 2^-52], where in the cumulative distribution the token stands."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


class TokenKernels(Protocol):
    """Of rows of logits, float32 [S, V]; none's token depends on the others."""

    def best(self, logits: "Tensor") -> "tuple[Tensor, Tensor]":
        """The largest value of each, NaN where it has one, and where that is, int64 [S], the first
        place of several."""

    def draw(self, logits: "Tensor", wishes: Sequence[DrawWish]) -> "Tensor":
        """A token id of each, int64 [S], on their device. Of a row that has NaN or +inf, or -inf
        only, it may be anything, a number that is no token too."""
