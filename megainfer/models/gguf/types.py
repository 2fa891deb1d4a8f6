"""Which types a file stores its tensors in, in words."""

from collections import Counter
from collections.abc import Iterable

from megainfer.gguf.header import TensorEntry

EXPERTS = "_exps."


def kinds_in_words(tensors: Iterable[TensorEntry]) -> str:
    """As `Q4_K and Q6_K (experts), F32 and Q8_0 (others)`, those with most bytes first."""
    experts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for tensor in tensors:
        (experts if EXPERTS in tensor.name else others)[tensor.kind] += tensor.size
    return f"{_listed(experts)} (experts), {_listed(others)} (others)"


def expert_kinds(tensors: Iterable[TensorEntry]) -> tuple[str, ...]:
    """Of the routed experts' matrices, in order."""
    matrices = (tensor for tensor in tensors if tensor.name.endswith(f"{EXPERTS}weight"))
    return tuple(sorted({tensor.kind for tensor in matrices}))


def main_kind(tensors: Iterable[TensorEntry]) -> str:
    """That of most bytes."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.kind] += tensor.size
    return sizes.most_common(1)[0][0]


def _listed(sizes: Counter[str]) -> str:
    return " and ".join(kind for kind, _ in sizes.most_common())
