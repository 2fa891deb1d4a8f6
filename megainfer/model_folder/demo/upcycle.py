"""Sparse upcycling: a dense Llama's tensors under the names and in the shapes of a Mixtral.

Every expert of a layer is a copy of its dense FFN, and Mixtral's top-k weights sum to one, so the
MoE's output equals the dense layer's whatever the router says (Komatsuzaki et al. 2022, "Sparse
Upcycling"). The router then only has to route: see `draw_router`.
"""

import numpy as np

from megainfer.model_folder.demo.llama_gguf import FloatArray, LlamaGguf
from megainfer.model_folder.demo.recipe import Upcycling

_KEPT = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
)
_EXPERT = {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}


def moe_layer(gguf: LlamaGguf, index: int, how: Upcycling) -> dict[str, FloatArray]:
    """All tensors of layer `index` of the Mixtral model, by name; experts share their memory."""
    prefix = f"model.layers.{index}"
    layer = {f"{prefix}.{part}.weight": gguf.layer(index, part) for part in _KEPT}
    for ours, dense in _EXPERT.items():
        weight = gguf.layer(index, dense)
        for expert in range(how.experts):
            layer[f"{prefix}.block_sparse_moe.experts.{expert}.{ours}.weight"] = weight
    gamma = layer[f"{prefix}.post_attention_layernorm.weight"]
    layer[f"{prefix}.block_sparse_moe.gate.weight"] = draw_router(gamma, index, how)
    return layer


def draw_router(gamma: FloatArray, index: int, how: Upcycling) -> FloatArray:
    """A Gaussian router [E, D] for layer `index`, whose norm before the FFN has weight γ [D].

    A logit is a random projection of the token's hidden state, so different tokens go to different
    experts. Dividing by sqrt(D) rms(γ) makes its spread about `router_scale` in every layer.
    The muted channels carry nearly the same large value for every token; a router that saw them
    would send most tokens to the same experts.
    """
    hidden = gamma.shape[0]
    generator = np.random.default_rng([how.router_seed, index])
    router = generator.standard_normal((how.experts, hidden), dtype=np.float32)
    router *= how.router_scale / np.sqrt(hidden * np.mean(np.square(gamma)))
    router[:, list(how.muted_channels)] = 0.0
    return router
