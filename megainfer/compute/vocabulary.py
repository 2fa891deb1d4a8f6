"""The table of embeddings, or a rank's part of it."""

from torch import Tensor
from torch.nn.functional import embedding

from megainfer.models.sources import ModelSources
from megainfer.topology import WHOLE


class TokenTable:
    """weight: [tokens, D], of the tokens that `sources` has, where several ranks share them."""

    def __init__(self, weight: Tensor, sources: ModelSources) -> None:
        self.weight = weight
        self._first, self._end = sources.vocabulary
        self._is_whole = sources.shard == WHOLE

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int64 [T] -> [T, D] in the weight's dtype, a new tensor; zeros where others have it."""
        if self._is_whole:
            return embedding(token_ids, self.weight)
        own = token_ids.clamp(self._first, self._end - 1) - self._first
        theirs = own + self._first != token_ids
        return embedding(own, self.weight).masked_fill_(theirs[:, None], 0.0)
