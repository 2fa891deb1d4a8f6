"""Normalisation of the residual stream."""

from dataclasses import dataclass
from enum import StrEnum


class NormKind(StrEnum):
    """What is computed of x, over its last axis."""

    RMS = "rms"  # x / sqrt(mean(x^2) + eps) * weight
    LAYER = "layer"  # (x - mean(x)) / sqrt(var(x) + eps) * weight


@dataclass(frozen=True, slots=True)
class NormSpec:
    """bias: one is added. unit_offset: what is stored is the weight less 1, also of queries' and
    keys' norms."""

    eps: float
    kind: NormKind = NormKind.RMS
    bias: bool = False
    unit_offset: bool = False
