"""The weights of one layer's indexer."""

from dataclasses import dataclass

from megainfer.models.spec import IndexerSpec, ModelSpec
from megainfer.models.stored import Pieces, Source


@dataclass(frozen=True, slots=True)
class IndexerSources:
    """q_rank: of the attention's query latent, which its queries come from. rotated: channels."""

    spec: ModelSpec
    layer: int
    indexer: IndexerSpec
    q_rank: int
    rotated: int

    def _weight(self, template: str, outputs: int, inputs: int) -> Pieces:
        return (Source(template.format(layer=self.layer) + ".weight", (outputs, inputs)),)

    def q(self) -> Pieces:
        outputs = self.indexer.num_heads * self.indexer.head_dim
        return self._weight(self.spec.names.index_q, outputs, self.q_rank)

    def k(self) -> Pieces:
        return self._weight(self.spec.names.index_k, self.indexer.head_dim, self.spec.hidden_size)

    def weights(self) -> Pieces:
        """Of the heads."""
        return self._weight(
            self.spec.names.index_weights, self.indexer.num_heads, self.spec.hidden_size
        )

    def k_norm(self) -> Pieces:
        return self._norm(".weight")

    def k_norm_bias(self) -> Pieces:
        return self._norm(".bias")

    def _norm(self, end: str) -> Pieces:
        name = self.spec.names.index_k_norm.format(layer=self.layer)
        return (Source(name + end, (self.indexer.head_dim,)),)

    def all(self) -> Pieces:
        return (*self.q(), *self.k(), *self.weights(), *self.k_norm(), *self.k_norm_bias())
