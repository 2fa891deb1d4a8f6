"""Fields that would change the answer but aren't offered, OpenAI's and those of other servers.

They are refused by name rather than ignored, unless their value asks for nothing.
"""

from collections.abc import Mapping
from typing import Any

from megainfer.errors import RequestError, cited

Neutral = Mapping[str, tuple[Any, ...]]
"""Field -> values that ask for nothing, beside null."""

SAMPLERS: Neutral = {
    "do_sample": (True,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "typical_p": (1,),
    "top_a": (0,),
    "tfs": (1,),
    "tfs_z": (1,),
    "top_n_sigma": (-1, 0),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dynatemp_range": (0,),
    "smoothing_factor": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "repeat_penalty": (0, 1),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "penalize_nl": (False,),
    "samplers": (),
    "sampler_order": (),
    "watermark": (False,),
}
LENGTHS: Neutral = {
    "n_predict": (-1,),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "t_max_predict_ms": (0,),
    "n_indent": (0,),
    "truncate": (),
    "stop_regex": ([], ""),
    "no_stop_trim": (False,),
}
ENGINES: Neutral = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "logits_processors": ([],),
    "custom_logit_processor": ("",),
    "logprob_token_ids": ([],),
    "prompt_embeds": ([],),
    "input_ids": (),
    "image_data": ([],),
    "images": ([],),
    "mm_processor_kwargs": ({},),
    "spaces_between_special_tokens": (True,),
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "repetition_detection": (),
    "vllm_xargs": ({},),
    "kv_transfer_params": ({},),
    "lora": ([],),
    "lora_path": (),
    "adapter_id": (),
    "return_hidden_states": (False,),
    "session_params": ({},),
    "n_probs": (0,),
    "top_n_tokens": (0,),
    "post_sampling_probs": (False,),
    "options": ({},),
    "parameters": ({},),
    "inputs": (),
    "template": ("",),
    "raw": (False,),
    "context": ([],),
    "plugins": ([],),
    "transforms": ([],),
}
COMMON: Neutral = {**SAMPLERS, **LENGTHS, **ENGINES, "chat_template": (), "suffix": ("",)}
COMPLETION: Neutral = {
    **COMMON,
    "system": ("",),
    "messages": (),
    "tools": ([],),
    "max_completion_tokens": (),
    "top_logprobs": (0,),
    "reasoning_effort": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
}
CHAT: Neutral = {
    **COMMON,
    "prompt": (),
    "system": ("",),
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "enable_search": (False,),
    "verbosity": ("medium",),
    "store": (False,),
    "include_reasoning": (True,),
    "separate_reasoning": (True,),
    "thinking_budget": (),
    "thinking_token_budget": (),
    "reasoning_budget": (-1,),
    "reasoning_format": ("auto", "deepseek"),
}
INSTEAD = {
    "do_sample": "send temperature: 0",
    "repeat_penalty": "send repetition_penalty, which looks at the whole text",
    "n_predict": "send max_tokens",
    "max_new_tokens": "send max_tokens",
    "min_new_tokens": "send min_tokens",
    "truncate": "send truncate_prompt_tokens",
    "input_ids": "send token ids as the prompt of /v1/completions",
    "top_n_tokens": "send logprobs",
    "n_probs": "send logprobs",
    "options": "send its fields beside the others",
    "parameters": "send its fields beside the others",
    "inputs": "send prompt, or messages",
    "functions": "send tools",
    "function_call": "send tool_choice",
    "max_completion_tokens": "send max_tokens",
    "top_logprobs": "send the number as logprobs",
}
"""What is offered for the same."""


def refuse_not_offered(fields: Mapping[str, Any], known: Neutral) -> None:
    """Raises RequestError for the first of these fields that asks for something."""
    for name, value in fields.items():
        if value is None or name not in known:
            continue
        if not any(_same(value, harmless) for harmless in known[name]):
            hint = f"; {INSTEAD[name]}" if name in INSTEAD else ""
            message = f"{name} isn't offered by this server, but is {cited(value)}{hint}"
            raise RequestError(message, name)


def _same(value: Any, harmless: Any) -> bool:
    """Equal and of one kind: `best_of: true` asks for something where `1` doesn't; 1.0 is 1."""
    return isinstance(value, bool) == isinstance(harmless, bool) and bool(value == harmless)
