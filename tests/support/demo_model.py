"""The demo model's origin, and what transformers makes of either."""

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel


@torch.inference_mode()
def logits_and_greedy(
    model: PreTrainedModel, prompt: torch.Tensor, tokens: int
) -> tuple[torch.Tensor, list[int]]:
    """Logits [T, V] over the prompt and the greedy answer, and that answer."""
    mask = torch.ones_like(prompt)
    ids = model.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return model(ids).logits[0], ids[0].tolist()


def dense_of(folder: Path) -> LlamaForCausalLM:
    """The dense model that the demo was made from: every layer's expert 0 as its FFN."""
    shape = AutoConfig.from_pretrained(folder)
    dense = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            max_position_embeddings=shape.max_position_embeddings,
            rms_norm_eps=shape.rms_norm_eps,
            rope_theta=shape.rope_parameters["rope_theta"],
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    state = dense_state(folder)
    missing, unexpected = dense.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return dense.eval()


def dense_state(folder: Path) -> dict[str, torch.Tensor]:
    dense_names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    state = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if "block_sparse_moe" not in name:
                    state[name] = file.get_tensor(name).float()
                elif ".experts.0." in name:
                    layer, part = name.split(".block_sparse_moe.experts.0.")
                    dense_name = f"{layer}.mlp.{dense_names[part.removesuffix('.weight')]}.weight"
                    state[dense_name] = file.get_tensor(name).float()
    return state
