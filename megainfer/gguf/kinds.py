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

_GROUPS: Mapping[int, str] = {
    0: "F32 F16 Q4_0 Q4_1",
    6: "Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K",
    16: "IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS",
    24: "I8 I16 I32 I64 F64 IQ1_M BF16",
    34: "TQ1_0 TQ2_0",
    39: "MXFP4",
}
NAMES: Mapping[int, str] = {
    number: name
    for first, names in _GROUPS.items()
    for number, name in enumerate(names.split(), first)
}
"""By the number that a file has; of those that aren't in `KINDS` nothing is read."""
