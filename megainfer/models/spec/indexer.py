"""Which positions a query attends to at all."""

from dataclasses import dataclass

from megainfer.errors import ModelError


@dataclass(frozen=True, slots=True)
class IndexerSpec:
    """DeepSeek-V3.2's sparse attention: a query attends to its `top_k` best positions only.

    A position's score is the sum over heads of weight * relu(query . key): queries [num_heads,
    head_dim] from the attention's query latent, weights [num_heads] from the layer's input, and one
    key [head_dim] a token, layer-normalised, which stays in a cache of its own. The first channels
    of each are rotated, as many as of the attention's heads. interleaved: on disk, channels 2i and
    2i + 1 together, as in `MlaSpec`.
    """

    num_heads: int
    head_dim: int
    top_k: int
    interleaved: bool = False
    eps: float = 1e-6

    def check(self, rotated: int) -> None:
        """Raises ModelError where a head has fewer channels than are rotated."""
        if self.head_dim < rotated:
            raise ModelError(
                f"index_head_dim {self.head_dim} is less than the {rotated} channels of a head "
                "that are rotated"
            )
