"""The types in which GGUF files store tensors: how many values a block has, and how many bytes.

Numbers, names and sizes are ggml's (ggml.h, ggml-common.h).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """values: that share a block, which a row has a whole number of. size: a block's bytes."""

    name: str
    values: int
    size: int


FLOATS = (Kind("F32", 1, 4), Kind("F16", 1, 2), Kind("BF16", 1, 2), Kind("F64", 1, 8))
BLOCKS = (
    Kind("Q4_0", 32, 18),
    Kind("Q4_1", 32, 20),
    Kind("Q5_0", 32, 22),
    Kind("Q5_1", 32, 24),
    Kind("Q8_0", 32, 34),
    Kind("Q4_K", 256, 144),
    Kind("Q5_K", 256, 176),
    Kind("Q6_K", 256, 210),
    Kind("IQ4_NL", 32, 18),
    Kind("MXFP4", 32, 17),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (*FLOATS, *BLOCKS)}
BLOCK_KINDS = frozenset(kind.name for kind in BLOCKS)

NAMES: Mapping[int, str] = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS"},
    **{17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"},
    **{30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
"""By the number that a file has; of those that aren't in `KINDS` nothing is read."""
