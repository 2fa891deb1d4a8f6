"""What blocks of ggml's types mean, by arithmetic on many at a time.

A block has some scales and a code for each of its 32 or 256 values. Every value is computed in
float32, in the order that ggml does (ggml-quants.c, dequantize_row_*), so that it is the same bits.
Letters: n blocks, s sub-blocks, l values of one.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from megainfer.checkpoint.codes import e2m1_pairs
from megainfer.gguf.kinds import KINDS

SUB_BLOCKS = 8
"""Of 256 values, in Q4_K and Q5_K: each has a scale and a minimum of six bits."""
IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 16 codes of IQ4_NL stand for (kvalues_iq4nl)."""


def dequantise(rows: Tensor, kind: str) -> Tensor:
    """rows: uint8 [R, bytes], whole blocks of this type each. float32 [R, values]."""
    blocks = rows.reshape(-1, KINDS[kind].size)
    return _DECODERS[kind](blocks).reshape(len(rows), -1)


def _halves(blocks: Tensor, first: int) -> Tensor:
    """The float16 at this byte of each block, float32 [n, 1]."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).to(torch.float32)


def _low_then_high(bytes_: Tensor) -> Tensor:
    """The lower halves of all bytes, then the upper ones: [..., b] to [..., 2 b]."""
    return torch.cat((bytes_ & 15, bytes_ >> 4), -1)


def _fifth_bits(blocks: Tensor, first: int) -> Tensor:
    """16 where bit l of the 32 that begin at this byte is set: uint8 [n, 32]."""
    bytes_ = blocks[:, first : first + 4, None]
    bits = (bytes_ >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    codes = _low_then_high(blocks[:, 2:]).to(torch.float32)
    return codes.sub_(8).mul_(_halves(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    codes = _low_then_high(blocks[:, 4:]).to(torch.float32)
    return codes.mul_(_halves(blocks, 0)).add_(_halves(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    codes = (_low_then_high(blocks[:, 6:]) | _fifth_bits(blocks, 2)).to(torch.float32)
    return codes.sub_(16).mul_(_halves(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    codes = (_low_then_high(blocks[:, 8:]) | _fifth_bits(blocks, 4)).to(torch.float32)
    return codes.mul_(_halves(blocks, 0)).add_(_halves(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    codes = blocks[:, 2:].view(torch.int8).to(torch.float32)
    return codes.mul_(_halves(blocks, 0))


def _six_bit_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of Q4_K's and Q5_K's sub-blocks, by the block's own: float32 [n, 8, 1].

    Of the 12 bytes from the fifth on, the first four hold the first four scales in their lower six
    bits, the next four the minima so, the last four the lower halves of the other scales and
    minima, whose upper two bits are those left over in the first eight.
    """
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((low & 63, (high & 15) | (low >> 6 << 4)), -1).to(torch.float32)
    minima = torch.cat((middle & 63, (high >> 4) | (middle >> 6 << 4)), -1).to(torch.float32)
    scales.mul_(_halves(blocks, 0))
    return scales[..., None], minima.mul_(_halves(blocks, 2))[..., None]


def _in_sub_blocks(bytes_: Tensor) -> Tensor:
    """Of 128 bytes, the first 32 hold sub-block 0 in their lower halves, 1 in the upper ones, and
    so on: uint8 [n, 8, 32]."""
    return _low_then_high(bytes_.reshape(len(bytes_), 4, 32)).view(-1, SUB_BLOCKS, 32)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_scales(blocks)
    return _in_sub_blocks(blocks[:, 16:]).to(torch.float32).mul_(scales).sub_(minima)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_scales(blocks)
    shifts = torch.arange(SUB_BLOCKS, dtype=torch.uint8)[:, None]
    fifth = ((blocks[:, 16:48, None].mT >> shifts) & 1) << 4
    codes = _in_sub_blocks(blocks[:, 48:]) | fifth
    return codes.to(torch.float32).mul_(scales).sub_(minima)


def _q6_k(blocks: Tensor) -> Tensor:
    """Each half of a block, 128 values, has 64 bytes of lower halves and 32 of upper two bits."""
    low = _low_then_high(blocks[:, :128].reshape(-1, 2, 64)).view(-1, 2, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    codes = (low | (high << 4)).to(torch.float32).sub_(32).view(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    return codes.mul_(scales.mul_(_halves(blocks, 208))[..., None])


def _iq4_nl(blocks: Tensor) -> Tensor:
    table = torch.tensor(IQ4_NL_VALUES, dtype=torch.float32)
    codes = _low_then_high(blocks[:, 2:])
    return table[codes.to(torch.int32)].mul_(_halves(blocks, 0))


def _mxfp4(blocks: Tensor) -> Tensor:
    """Twice the value of each code by half the block's power of two, which is subnormal for the
    least two exponents."""
    exponents = blocks[:, :1].to(torch.int32)
    bits = torch.where(exponents < 2, 0x200000 << exponents.clamp(max=1), (exponents - 1) << 23)
    codes = _low_then_high(blocks[:, 1:])
    values = e2m1_pairs(codes[:, 0::2] | codes[:, 1::2] << 4)
    # ggml has one zero: adding 0 makes -0 of it too.
    return values.mul_(2).add_(0.0).mul_(bits.view(torch.float32))


_DECODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
}
