"""The weights outside of layers."""

from dataclasses import dataclass

from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Pieces, Source


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The weights outside of layers."""

    spec: ModelSpec

    def embedding(self) -> Pieces:
        return (Source(self.spec.names.embedding, (self.spec.vocab_size, self.spec.hidden_size)),)

    def final_norm(self) -> Pieces:
        return (Source(self.spec.names.final_norm, (self.spec.hidden_size,)),)

    def final_norm_bias(self) -> Pieces:
        return norm_bias(self.final_norm(), self.spec.norm)

    def lm_head(self) -> Pieces:
        """Empty where the embedding serves as the head."""
        if self.spec.tie_word_embeddings:
            return ()
        return (Source(self.spec.names.lm_head, (self.spec.vocab_size, self.spec.hidden_size)),)

    def lm_head_bias(self) -> Pieces:
        if not self.spec.lm_head_bias:
            return ()
        name = self.spec.names.lm_head.removesuffix(".weight") + ".bias"
        return (Source(name, (self.spec.vocab_size,)),)

    def all(self) -> Pieces:
        return (
            *self.embedding(),
            *self.final_norm(),
            *self.final_norm_bias(),
            *self.lm_head(),
            *self.lm_head_bias(),
        )
