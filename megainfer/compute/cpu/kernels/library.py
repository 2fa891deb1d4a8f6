"""The compiled library: whether it is there, what it can do here, and its functions. No torch."""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from megainfer.native.library import find_library, load_library

FOLDER = Path(__file__).parent.parent
"""Where the build puts the library."""


class Activation(Structure):
    """`Activation` of level.h."""

    _fields_ = (
        ("kind", c_int32),
        ("limit", c_float),
        ("alpha", c_float),
        ("up_offset", c_float),
    )


class ExpertShape(Structure):
    """`ExpertShape` of experts.h."""

    _fields_ = (
        ("experts", c_int64),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("top_k", c_int64),
        ("activation", Activation),
        ("weight_on_input", c_int32),
    )


class ExpertWeights(Structure):
    """`ExpertWeights` of experts.h: addresses of arrays of addresses."""

    _fields_ = (
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("gate_up_bias", c_void_p),
        ("down_bias", c_void_p),
    )


class Slot(Structure):
    """`Slot` of experts.h: addresses, and the number of rows."""

    _fields_ = (
        ("hidden", c_void_p),
        ("ids", c_void_p),
        ("weights", c_void_p),
        ("out", c_void_p),
        ("rows", c_int64),
    )


class Linear(Structure):
    """`Linear` of attention_layer.h."""

    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("format", c_int32),
    )


class Norm(Structure):
    """`Norm` of level.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("eps", c_float),
        ("kind", c_int32),
    )


class AttentionLayer(Structure):
    """`AttentionLayer` of attention_layer.h."""

    _fields_ = (
        ("qkv", Linear),
        ("out", Linear),
        ("norm", Norm),
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("rotary", c_void_p),
        ("sinks", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("rotary_dim", c_int64),
        ("window", c_int64),
        ("chunk", c_int64),
        ("clip", c_float),
        ("scale", c_float),
        ("residual", c_float),
        ("temperature_floor", c_float),
        ("temperature_scale", c_float),
        ("norm_each_head", c_int32),
        ("norm_after_rope", c_int32),
        ("interleaved", c_int32),
        ("gated", c_int32),
    )


class StepRows(Structure):
    """`StepRows` of attention_half.h."""

    _fields_ = (
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("row_starts", c_void_p),
        ("blocks", c_void_p),
        ("rows", c_int64),
        ("sequences", c_int64),
        ("blocks_a_sequence", c_int64),
    )


class LayerCache(Structure):
    """`LayerCache` of attention_layer.h."""

    _fields_ = (
        ("data", c_void_p),
        ("type", c_int32),
    )


class Homes(Structure):
    """`Homes` of routing.h."""

    _fields_ = (
        ("nodes", c_void_p),
        ("local_ids", c_void_p),
        ("num_nodes", c_int64),
        ("num_ways", c_int64),
    )


class Router(Structure):
    """`Router` of routing.h."""

    _fields_ = (
        ("selection_bias", c_void_p),
        ("table", c_void_p),
        ("experts", c_int64),
        ("top_k", c_int64),
        ("groups", c_int64),
        ("kept_groups", c_int64),
        ("ranked_by", c_int64),
        ("epsilon", c_float),
        ("least_sum", c_float),
        ("scale", c_float),
        ("jitter", c_float),
        ("score", c_int32),
        ("normalise", c_int32),
        ("weight_type", c_int32),
    )


class GateLayer(Structure):
    """`GateLayer` of attention_half.h."""

    _fields_ = (
        ("linear", Linear),
        ("norm", Norm),
        ("homes", Homes),
        ("router", Router),
    )


class HeadsLinear(Structure):
    """`HeadsLinear` of latent_half.h."""

    _fields_ = (
        ("panels", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("format", c_int32),
    )


class LatentLayer(Structure):
    """`LatentLayer` of latent_half.h."""

    _fields_ = (
        ("q_down", Linear),
        ("q", Linear),
        ("kv_down", Linear),
        ("out", Linear),
        ("key_up", HeadsLinear),
        ("value_up", HeadsLinear),
        ("norm", c_void_p),
        ("q_norm", c_void_p),
        ("kv_norm", c_void_p),
        ("rotary", c_void_p),
        ("heads", c_int64),
        ("nope", c_int64),
        ("rope", c_int64),
        ("rank", c_int64),
        ("value", c_int64),
        ("eps", c_float),
        ("latent_eps", c_float),
        ("scale", c_float),
        ("residual", c_float),
    )


class ChainLayer(Structure):
    """`ChainLayer` of layer_chain.h."""

    _fields_ = (
        ("attention", POINTER(AttentionLayer)),
        ("gate", POINTER(GateLayer)),
        ("cache", LayerCache),
        ("experts", ExpertWeights),
        ("counts", c_void_p),
    )


class DeltaNetLayer(Structure):
    """`DeltaNetLayer` of delta_net.h."""

    _fields_ = (
        ("weights", c_void_p),
        ("time_bias", c_void_p),
        ("decay_factor", c_void_p),
        ("norm", c_void_p),
        ("key_heads", c_int64),
        ("value_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("taps", c_int64),
        ("eps", c_float),
    )


class DeltaNetStep(Structure):
    """`DeltaNetStep` of delta_net.h."""

    _fields_ = (
        ("row_starts", c_void_p),
        ("first_positions", c_void_p),
        ("slots", c_void_p),
        ("sequences", c_int64),
    )


class DeltaNetState(Structure):
    """`DeltaNetState` of delta_net.h."""

    _fields_ = (("past", c_void_p), ("state", c_void_p))


class DrawWish(Structure):
    """`DrawWish` of level.h."""

    _fields_ = (
        ("top_p", c_double),
        ("min_p", c_double),
        ("uniform", c_double),
        ("top_k", c_int64),
        ("temperature", c_float),
    )


class Scatter(Structure):
    """`Scatter` of routing.h."""

    _fields_ = (
        ("counts", c_void_p),
        ("rows", c_void_p),
        ("ids", c_void_p),
        ("weights", c_void_p),
    )


_FUNCTIONS = {
    "megainfer_level": (c_char_p, [c_int32]),
    "megainfer_read": (c_float, [c_void_p, c_int64]),
    "megainfer_pool_new": (c_void_p, [c_int32]),
    "megainfer_pool_delete": (None, [c_void_p]),
    "megainfer_experts_new": (c_void_p, [c_char_p, c_int32, POINTER(ExpertShape), c_void_p]),
    "megainfer_experts_delete": (None, [c_void_p]),
    "megainfer_experts_gate_up_bytes": (c_int64, [c_void_p]),
    "megainfer_experts_down_bytes": (c_int64, [c_void_p]),
    "megainfer_experts_gate_up_channels": (c_int64, [c_void_p]),
    "megainfer_experts_pack": (c_int32, [c_void_p] * 5),
    "megainfer_experts_pack_gate_up_bias": (None, [c_void_p] * 3),
    "megainfer_experts_forward": (
        None,
        [c_void_p, POINTER(ExpertWeights), POINTER(Slot), c_int32, c_int32, c_void_p],
    ),
    "megainfer_half_new": (c_void_p, [c_char_p, c_void_p]),
    "megainfer_half_delete": (None, [c_void_p]),
    "megainfer_half_linear_bytes": (c_int64, [c_void_p, c_int32, c_int64, c_int64]),
    "megainfer_half_pack": (c_int32, [c_void_p, c_int32, c_void_p, c_int64, c_int64, c_void_p]),
    "megainfer_half_linear": (None, [c_void_p, POINTER(Linear), c_void_p, c_int64, c_void_p]),
    "megainfer_half_norm": (
        None,
        [c_void_p, POINTER(Norm), c_void_p, c_int64, c_int64, c_void_p],
    ),
    "megainfer_half_sigmoid": (None, [c_void_p, c_void_p, c_int64]),
    "megainfer_half_attend": (
        None,
        [c_void_p, POINTER(AttentionLayer), POINTER(StepRows), POINTER(LayerCache), c_void_p],
    ),
    "megainfer_half_gate": (
        None,
        [
            c_void_p,
            POINTER(GateLayer),
            *[c_void_p] * 3,
            c_int64,
            c_int32,
            c_void_p,
            POINTER(Scatter),
        ],
    ),
    "megainfer_half_head": (
        None,
        [c_void_p, POINTER(Linear), POINTER(Norm), *[c_void_p] * 2, c_int64, c_void_p],
    ),
    "megainfer_half_argmax": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
    "megainfer_half_draw": (
        None,
        [c_void_p, c_void_p, c_int64, c_int64, POINTER(DrawWish), c_void_p],
    ),
    "megainfer_latent_new": (c_void_p, [c_void_p, c_void_p]),
    "megainfer_latent_delete": (None, [c_void_p]),
    "megainfer_latent_attend": (
        None,
        [c_void_p, POINTER(LatentLayer), POINTER(StepRows), POINTER(LayerCache), c_void_p],
    ),
    "megainfer_delta_new": (c_void_p, [c_char_p, c_void_p]),
    "megainfer_delta_delete": (None, [c_void_p]),
    "megainfer_delta_recur": (
        None,
        [
            c_void_p,
            POINTER(DeltaNetLayer),
            POINTER(DeltaNetStep),
            c_void_p,
            c_void_p,
            POINTER(DeltaNetState),
            c_void_p,
        ],
    ),
    "megainfer_chain_new": (c_void_p, [c_void_p, c_void_p]),
    "megainfer_chain_delete": (None, [c_void_p]),
    "megainfer_chain_run": (
        None,
        [c_void_p, POINTER(ChainLayer), c_int64, POINTER(StepRows), c_int32, *[c_void_p] * 3],
    ),
}


def is_built() -> bool:
    """Whether the package was built with a compiler, and so has the library."""
    return find_library(FOLDER) is not None


@cache
def load() -> ctypes.CDLL:
    """The library, its functions typed.

    Raises ConfigError when it was not built, or from older sources than these.
    """
    return load_library(FOLDER, _FUNCTIONS, "the CPU kernels", "use --kernels reference")


@cache
def levels() -> tuple[str, ...]:
    """The instruction sets that this machine can run and the library was built for, best last."""
    library, names = load(), list[str]()
    while (name := library.megainfer_level(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)
