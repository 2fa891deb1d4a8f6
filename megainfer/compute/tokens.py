"""Finding tokens in rows of logits: what is asked, whichever implementation answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from megainfer.compute.edits import RowEdits


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


class Scores(NamedTuple):
    """Log-probabilities of R rows.

    ids, values: int64 and float32, as long as all that is wanted: those of each row's best tokens,
    one row after the other, the best first. own: float32 [R], of a token of each. ranks: int64 [R],
    1 where none has a larger logit than that token.
    """

    ids: "Tensor"
    values: "Tensor"
    own: "Tensor"
    ranks: "Tensor"


class TokenKernels(Protocol):
    """Of rows of logits, float32 [S, V] and contiguous; none's result depends on the others."""

    def best(self, logits: "Tensor") -> "tuple[Tensor, Tensor]":
        """The largest value of each, NaN where it has one, and where that is, int64 [S], the first
        place of several."""

    def draw(self, logits: "Tensor", wishes: Sequence[DrawWish]) -> "Tensor":
        """A token id of each, int64 [S], on their device. Of a row that has NaN or +inf, or -inf
        only, it may be anything, a number that is no token too."""

    def edit(self, logits: "Tensor", edits: "Sequence[RowEdits]") -> None:
        """Change the rows that these name, in place; the edits are read now."""

    def scores(
        self, logits: "Tensor", tokens: "Tensor", rows: Sequence[int], wanted: Sequence[int]
    ) -> Scores:
        """Of these rows, of so many of each one's best tokens (at most V), and of its own token,
        tokens: int64 [S] of all rows, brought into the vocabulary where they are none. Which of
        several that tie are among the best depends on nothing but the row and the number."""
