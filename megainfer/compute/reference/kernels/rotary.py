"""Rotary position embedding (Su et al., RoFormer): the angles, and the rotation by them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from megainfer.models.spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    RopeSpec,
    YarnScaling,
)


class RopeFrequencies(NamedTuple):
    """radians: float32 [channels / 2], what a pair of channels turns by from one position to the
    next. factor: what cosines and sines are multiplied with."""

    radians: Tensor
    factor: float = 1.0


def rope_frequencies(rope: RopeSpec, channels: int, longest_context: int) -> RopeFrequencies:
    """theta^(-2i/channels) for each pair i, scaled as the spec says.

    longest_context: in tokens, what `LongRopeScaling` chooses its factors by.
    """
    match rope.scaling:
        case None:
            return RopeFrequencies(_plain(rope.theta, channels))
        case LinearScaling(factor):
            return RopeFrequencies(_plain(rope.theta, channels) / factor)
        case NtkScaling(alpha):
            theta = rope.theta * alpha ** (channels / (channels - 2))
            return RopeFrequencies(_plain(theta, channels))
        case Llama3Scaling():
            return RopeFrequencies(_llama3(_plain(rope.theta, channels), rope.scaling))
        case YarnScaling():
            radians = _yarn(_plain(rope.theta, channels), rope.theta, rope.scaling)
            return RopeFrequencies(radians, rope.scaling.attention_factor)
        case LongRopeScaling():
            return _longrope(_plain(rope.theta, channels), rope.scaling, longest_context)


def _plain(theta: float, channels: int) -> Tensor:
    even = torch.arange(0, channels, 2, dtype=torch.float32)
    return 1.0 / (theta ** (even / channels))


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    rotations = scaling.original_max_position * plain / (2 * math.pi)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    width = high - low or 1e-6  # where both are the same frequency, as Llama 4 Scout has it
    kept = ((rotations - low) / width).clamp(0, 1)
    return torch.lerp(plain / scaling.factor, plain, kept)


def _yarn(plain: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    pairs = len(plain)

    def pair_with(rotations: float) -> float:
        """The pair, maybe between two, that turns so often over the original context."""
        context = scaling.original_max_position / (rotations * 2 * math.pi)
        return pairs * math.log(context) / math.log(theta)

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first or 0.001  # where both are the same pair
    divided = ((torch.arange(pairs, dtype=torch.float32) - first) / width).clamp(0, 1)
    return torch.lerp(plain, plain / scaling.factor, divided)


def _longrope(plain: Tensor, scaling: LongRopeScaling, longest_context: int) -> RopeFrequencies:
    if longest_context > scaling.original_max_position:
        divisors, factor = scaling.long_factors, scaling.long_attention_factor
    else:
        divisors, factor = scaling.short_factors, scaling.short_attention_factor
    return RopeFrequencies(plain / torch.tensor(divisors), factor)


def rotary_table(rope: RopeSpec, channels: int, max_position: int, dtype: torch.dtype) -> Tensor:
    """[max_position, 2, channels]: for each position the factors that `rotate` multiplies with.

    Row 0 holds cosines; row 1 sines, negated for the first channel of each pair. Angles are in
    float32, the same for both channels of a pair.
    """
    radians, factor = rope_frequencies(rope, channels, max_position)
    angles = torch.arange(max_position, dtype=torch.float32)[:, None] * radians
    cos, sin = angles.cos() * factor, angles.sin() * factor
    pairs = torch.stack((torch.stack((cos, -sin), 1), torch.stack((cos, sin), 1)), -1)
    # [P, 2, channels / 2, 2] -> pairs side by side, or first channels before second ones.
    table = pairs if rope.interleaved else pairs.transpose(-1, -2)
    return table.flatten(2).to(dtype)


def rotate(heads: Tensor, factors: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate heads [T, H, d] by the table's rows of their positions, [T, 2, r]; a new tensor.

    Channels beyond the first r stay. interleaved: as in `RopeSpec`.
    """
    channels = factors.shape[-1]
    cos, signed_sin = factors[:, 0, None], factors[:, 1, None]
    turned, rest = heads[..., :channels], heads[..., channels:]
    if interleaved:
        swapped = turned.reshape(*turned.shape[:-1], -1, 2).flip(-1).flatten(-2)
    else:
        swapped = turned.roll(channels // 2, -1)  # halves change places
    turned = turned * cos + swapped * signed_sin
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
