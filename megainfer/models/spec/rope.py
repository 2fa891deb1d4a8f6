"""Rotary position embedding (Su et al., RoFormer), and how it is stretched to longer contexts."""

from dataclasses import dataclass

from megainfer.errors import ModelError


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All frequencies divided by `factor` (position interpolation, Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class NtkScaling:
    """theta is replaced by theta * alpha^(r / (r - 2)), r the rotated channels (Hunyuan)."""

    alpha: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, smoothly in between if there are any
    (Llama 3.1; not so in Llama 4 Scout).

    A frequency is low when its wavelength exceeds original_max_position / low_freq_factor, high
    when it is below original_max_position / high_freq_factor.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """NTK by parts (YaRN, Peng et al., 2023).

    beta_fast, beta_slow: rotations over the original context between which frequencies go from
    kept to divided by `factor`. attention_factor: cosines and sines are multiplied with it.
    truncate: the bounds of that range are rounded outwards to whole dimensions.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Each frequency divided by a factor of its own (LongRoPE, Ding et al., 2024).

    short_factors serve contexts up to original_max_position, long_factors longer ones. An instance
    uses one of them for all requests, by the longest context that it admits: keys in the cache
    can't change their mind. short_attention_factor, long_attention_factor: cosines and sines are
    multiplied with it.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_position: int
    short_attention_factor: float
    long_attention_factor: float


RopeScaling = LinearScaling | NtkScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Frequencies theta^(-2i/r), r the rotated channels, then scaled.

    rotated: the first channels of each head, which alone are rotated; all where it is None.
    interleaved: channels 2i and 2i + 1 are rotated together, else i and i + r/2.
    """

    theta: float
    scaling: RopeScaling | None = None
    rotated: int | None = None
    interleaved: bool = False

    def check(self, channels: int) -> None:
        """Raise ModelError unless so many channels of a head can be rotated."""
        if channels < 2 or channels % 2:
            raise ModelError(f"{channels} channels of a head can't be rotated: they form no pairs")
        if isinstance(self.scaling, NtkScaling) and channels == 2:
            raise ModelError("a rope scaling by alpha needs more than 2 rotated channels")
        if isinstance(self.scaling, LongRopeScaling):
            counts = {len(self.scaling.short_factors), len(self.scaling.long_factors)}
            if counts != {channels // 2}:
                raise ModelError(
                    f"longrope needs {channels // 2} factors, one for each pair of rotated "
                    f"channels, but has {' and '.join(map(str, sorted(counts)))}"
                )
