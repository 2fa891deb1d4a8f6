"""Sampling on the host, begun and taken at once."""

from collections.abc import Sequence

from torch import Tensor

from megainfer.attention_node.sampling.draws import SampleOutput
from megainfer.attention_node.sampling.sampler import SampleRow, begin_sampling
from megainfer.compute.reference import kernels as reference
from megainfer.device import HOST


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> SampleOutput:
    """Raises the first of its errors."""
    output = begin_sampling(logits, rows, reference, HOST).take()
    for error in output.errors:
        raise error
    return output
