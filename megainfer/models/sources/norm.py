"""What belongs to a normalisation beside its weight."""

from megainfer.models.spec import NormSpec
from megainfer.models.stored import Pieces, Source


def norm_bias(weight: Pieces, norm: NormSpec) -> Pieces:
    """The bias stored beside this weight; empty where the model's norms have none."""
    if not norm.bias:
        return ()
    return tuple(Source(w.name.removesuffix(".weight") + ".bias", w.shape) for w in weight)
