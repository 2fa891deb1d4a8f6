"""The weights outside of layers."""

from dataclasses import dataclass

from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Pieces, Source, rows_of
from megainfer.topology import WHOLE, Shard


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The weights outside of layers; shard: a rank's part of the vocabulary."""

    spec: ModelSpec
    shard: Shard = WHOLE

    @property
    def vocabulary(self) -> tuple[int, int]:
        """This rank's tokens, (first, end)."""
        return self.shard.about(self.spec.vocab_size)

    def _own(self, weight: Source) -> Pieces:
        return (weight,) if self.shard == WHOLE else rows_of((weight,), self.vocabulary)

    def embedding(self) -> Pieces:
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        return self._own(Source(self.spec.names.embedding, shape))

    def final_norm(self) -> Pieces:
        return (Source(self.spec.names.final_norm, (self.spec.hidden_size,)),)

    def final_norm_bias(self) -> Pieces:
        return norm_bias(self.final_norm(), self.spec.norm)

    def lm_head(self) -> Pieces:
        """Empty where the embedding serves as the head."""
        if self.spec.tie_word_embeddings:
            return ()
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        return self._own(Source(self.spec.names.lm_head, shape))

    def lm_head_bias(self) -> Pieces:
        if not self.spec.lm_head_bias:
            return ()
        name = self.spec.names.lm_head.removesuffix(".weight") + ".bias"
        return self._own(Source(name, (self.spec.vocab_size,)))

    def all(self) -> Pieces:
        return (
            *self.embedding(),
            *self.final_norm(),
            *self.final_norm_bias(),
            *self.lm_head(),
            *self.lm_head_bias(),
        )
