"""The tables that a model's attention rotates with."""

import torch
from torch import Tensor

from megainfer.compute.reference import kernels as kernels
from megainfer.device import HOST, Device
from megainfer.models.spec import AttentionSpec, DeltaNetSpec, MlaSpec, ModelSpec, RopeSpec

RotaryTables = dict[tuple[RopeSpec, int], Tensor]
"""By rope and rotated channels; `kernels.rotary_table` says what a table holds."""


def rotary_tables(
    spec: ModelSpec, max_positions: int, dtype: torch.dtype, device: Device = HOST
) -> RotaryTables:
    """One table for each kind of rotation in the model."""
    attentions = [layer.attention for layer in spec.layers]
    kinds = {(a.rope, a.rotary_dim) for a in attentions if not isinstance(a, DeltaNetSpec)}
    return {
        (rope, channels): device.upload(kernels.rotary_table(rope, channels, max_positions, dtype))
        for rope, channels in kinds
        if rope is not None
    }


def rotary_of(attention: AttentionSpec | MlaSpec, tables: RotaryTables) -> Tensor | None:
    """The table of this attention; None where positions don't enter."""
    return None if attention.rope is None else tables[attention.rope, attention.rotary_dim]
