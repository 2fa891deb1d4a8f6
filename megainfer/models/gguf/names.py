"""What GGUF files call tensors. One table for all architectures: a tensor that a model lacks has a
name here all the same."""

from dataclasses import replace

from megainfer.models.names import ExpertLayout, ExpertStorage, TensorNames

_BLOCK = "blk.{layer}"

NAMES = TensorNames(
    embedding="token_embd.weight",
    final_norm="output_norm.weight",
    lm_head="output.weight",
    attention_norm=f"{_BLOCK}.attn_norm.weight",
    qkv=(f"{_BLOCK}.attn_q", f"{_BLOCK}.attn_k", f"{_BLOCK}.attn_v"),
    out=f"{_BLOCK}.attn_output",
    q_norm=f"{_BLOCK}.attn_q_norm.weight",
    k_norm=f"{_BLOCK}.attn_k_norm.weight",
    q_down=f"{_BLOCK}.attn_q_a",
    q_latent_norm=f"{_BLOCK}.attn_q_a_norm.weight",
    q_up=f"{_BLOCK}.attn_q_b",
    kv_down=f"{_BLOCK}.attn_kv_a_mqa",
    kv_latent_norm=f"{_BLOCK}.attn_kv_a_norm.weight",
    kv_up=f"{_BLOCK}.attn_kv_b",
    sinks=f"{_BLOCK}.attn_sinks.weight",
    ffn_norm=f"{_BLOCK}.ffn_norm.weight",
    dense_gate_up=(f"{_BLOCK}.ffn_gate.weight", f"{_BLOCK}.ffn_up.weight"),
    dense_down=f"{_BLOCK}.ffn_down.weight",
    router=f"{_BLOCK}.ffn_gate_inp.weight",
    selection_bias=f"{_BLOCK}.exp_probs_b.bias",
    experts=ExpertLayout(ExpertStorage.STACKED),
    expert_gate_up=(f"{_BLOCK}.ffn_gate_exps.weight", f"{_BLOCK}.ffn_up_exps.weight"),
    expert_down=f"{_BLOCK}.ffn_down_exps.weight",
    shared_gate_up=(f"{_BLOCK}.ffn_gate_shexp.weight", f"{_BLOCK}.ffn_up_shexp.weight"),
    shared_down=f"{_BLOCK}.ffn_down_shexp.weight",
    shared_gate=f"{_BLOCK}.ffn_gate_inp_shexp.weight",
)

AFTER_ATTENTION = replace(NAMES, ffn_norm=f"{_BLOCK}.post_attention_norm.weight")
"""Of architectures that call the norm before the feed-forward half after what comes before it."""

SPLIT_LATENT = replace(NAMES, kv_up_split=(f"{_BLOCK}.attn_k_b", f"{_BLOCK}.attn_v_b"))
"""Of latent attention whose key's and value's projections are apart, as files of since 2025 have
them."""
