"""Every field that the clients' types document, with a value that matters, and what becomes of it.

A field that they learn has to be decided upon here.
"""

from enum import Enum
from typing import Any

Json = dict[str, Any]


class Verdict(Enum):
    OBEYED = "obeyed"
    REFUSED = "refused"
    NOTHING = "changes nothing"


O, R, N = Verdict  # noqa: E741
Fields = dict[str, tuple[Any, Verdict]]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
IN_BOTH: Fields = {
    "model": ("org/alias", O),
    "frequency_penalty": (1.0, O),
    "logit_bias": ({"5": 3.0}, O),
    "max_tokens": (2, O),
    "n": (2, O),
    "presence_penalty": (1.0, O),
    "seed": (7, O),
    "stop": (" two", O),
    "stream": (True, O),
    "stream_options": ({"include_usage": True}, R),  # where nothing streams
    "temperature": (0.5, O),
    "top_p": (0.0, O),
    "user": ("u", N),
    "suffix": ("x", R),
    "best_of": (2, R),
    # vLLM's
    "allowed_token_ids": ([5, 6], O),
    "bad_words": (["no"], O),
    "detokenize": (True, N),
    "guided_choice": (["a"], O),
    "guided_decoding_backend": ("auto", N),
    "guided_grammar": ('root ::= "a"', O),
    "guided_json": (SCHEMA, O),
    "guided_regex": ("a+", O),
    "guided_whitespace_pattern": (" ", R),
    "ignore_eos": (True, O),
    "include_stop_str_in_output": (True, N),  # no stop string
    "length_penalty": (0.5, R),
    "logits_processors": (["x"], R),
    "logprob_token_ids": ([1], R),
    "min_p": (0.1, O),
    "min_tokens": (2, O),
    "priority": (3, O),
    "prompt_logprobs": (1, O),
    "repetition_penalty": (1.1, O),
    "return_token_ids": (True, O),
    "skip_special_tokens": (False, O),
    "spaces_between_special_tokens": (False, R),
    "stop_token_ids": ([5], O),
    "structured_outputs": ({"json": SCHEMA}, O),
    "top_k": (3, O),
    "truncate_prompt_tokens": (2, O),
    "use_beam_search": (True, R),
    "vllm_xargs": ({"a": 1}, R),
    # llama.cpp's
    "cache_prompt": (True, N),
    "dry_multiplier": (0.8, R),
    "dynatemp_range": (0.5, R),
    "grammar": ('root ::= "a"', O),
    "id_slot": (0, N),
    "json_schema": (SCHEMA, O),
    "mirostat": (2, R),
    "n_predict": (3, R),
    "n_probs": (2, R),
    "repeat_penalty": (1.1, R),
    "samplers": (["top_k"], R),
    "top_n_sigma": (1.0, R),
    "typical_p": (0.5, R),
    "xtc_probability": (0.5, R),
    # SGLang's
    "custom_logit_processor": ("x", R),
    "ebnf": ('root ::= "a"', O),
    "lora_path": ("x", R),
    "regex": ("a+", O),
    "stop_regex": ("a+", R),
    # Ollama's
    "format": ("json", O),
    "keep_alive": ("5m", N),
    "options": ({"temperature": 0}, R),
    "raw": (True, R),
    "template": ("{{ .Prompt }}", R),
    # TGI's, and transformers'
    "do_sample": (False, R),
    "inputs": ("x", R),
    "max_new_tokens": (3, R),
    "parameters": ({"temperature": 0}, R),
    "truncate": (3, R),
    "watermark": (True, R),
    "surely_unknown": (1, N),
}
COMPLETIONS: Fields = {
    **IN_BOTH,
    "prompt": ("else", O),
    "echo": (True, O),
    "logprobs": (1, O),
    "add_special_tokens": (None, N),
    "response_format": ({"type": "json_object"}, O),
    "tools": ([TOOL], R),
    "messages": ([{"role": "user", "content": "x"}], R),
    "max_completion_tokens": (2, R),
    "system": ("x", R),
}
CHATS: Fields = {
    **IN_BOTH,
    "messages": ([{"role": "user", "content": "else"}], O),
    "prompt": ("x", R),
    "add_generation_prompt": (False, O),
    "add_special_tokens": (None, N),
    "audio": ({"voice": "alloy", "format": "wav"}, R),
    "chat_template": ("x", R),
    "chat_template_kwargs": ({"greeting": "hello"}, O),
    "continue_final_message": (True, O),
    "documents": ([{"text": "x"}], O),
    "echo": (True, R),
    "enable_thinking": (True, O),
    "function_call": ({"name": "f"}, R),
    "functions": ([{"name": "f"}], R),
    "include_reasoning": (False, R),
    "logprobs": (True, O),
    "top_logprobs": (2, R),  # without logprobs
    "max_completion_tokens": (2, O),
    "metadata": ({"a": "b"}, N),
    "modalities": (["text", "audio"], R),
    "moderation": ({"model": "x"}, R),
    "parallel_tool_calls": (False, N),  # no tools
    "prediction": ({"type": "content", "content": "x"}, R),
    "prompt_cache_key": ("k", N),
    "prompt_cache_options": ({"ttl": "24h"}, N),
    "prompt_cache_retention": ("24h", N),
    "reasoning": ({"effort": "low"}, O),
    "reasoning_effort": ("low", O),
    "response_format": ({"type": "json_object"}, O),
    "safety_identifier": ("u", N),
    "service_tier": ("flex", N),
    "store": (True, R),
    "thinking": ({"type": "enabled"}, O),
    "thinking_budget": (100, R),
    "tool_choice": ("required", R),  # no tools
    "tools": ([TOOL], O),
    "verbosity": ("low", R),
    "web_search_options": ({}, R),
}
RESPONSES: Fields = {
    "access_programs": (["x"], R),
    "background": (True, R),
    "background_options": ({"x": 1}, N),  # nothing runs there
    "context_management": ([{"type": "compaction"}], R),
    "conversation": ("c", R),
    "image": ({"x": 1}, R),
    "include": (["message.output_text.logprobs"], O),
    "input": ("else", O),
    "instructions": ("be kind", O),
    "max_output_tokens": (2, O),
    "max_tool_calls": (1, R),
    "metadata": ({"a": "b"}, N),
    "model": ("org/alias", N),  # which is told beside the output
    "moderation": ({"model": "x"}, R),
    "parallel_tool_calls": (False, N),
    "previous_response_id": ("r", R),
    "prompt": ({"id": "p"}, R),
    "prompt_cache_key": ("k", N),
    "prompt_cache_options": ({"ttl": "24h"}, N),
    "prompt_cache_retention": ("24h", N),
    "reasoning": ({"effort": "low"}, O),
    "safety_identifier": ("u", N),
    "service_tier": ("flex", N),
    "store": (True, R),
    "stream": (True, O),
    "stream_options": ({"include_obfuscation": True}, N),  # it pads events, which isn't promised
    "temperature": (0.5, O),
    "text": ({"format": {"type": "json_object"}}, O),
    "tool_choice": ("required", R),
    "tools": ([{"type": "function", "name": "f", "parameters": SCHEMA}], O),
    "top_logprobs": (2, O),
    "top_p": (0.0, O),
    "truncation": ("auto", N),  # it fits
    "user": ("u", N),
    "grammar": ('root ::= "a"', O),
    "guided_json": (SCHEMA, O),
    "repeat_penalty": (1.1, R),
    "seed": (7, O),
    "stop": (" two", O),
    "suffix": ("x", R),
    "top_k": (3, O),
}
MESSAGES: Fields = {
    "betas": (["x"], N),
    "billing_policy": ("x", N),
    "cache_control": ({"type": "ephemeral"}, N),
    "compaction": ({"x": 1}, R),
    "container": ("c", R),
    "context_management": ({"edits": [{"type": "clear_tool_uses_20250919"}]}, R),
    "diagnostics": ({"x": 1}, N),
    "fallback_credit_token": ("x", N),
    "fallbacks": ([{"model": "x"}], N),  # this one answers
    "inference_geo": ("eu", N),
    "max_tokens": (2, O),
    "mcp_servers": ([{"type": "url", "url": "http://x", "name": "x"}], R),
    "messages": ([{"role": "user", "content": "else"}], O),
    "metadata": ({"user_id": "u"}, N),
    "model": ("org/alias", O),
    "output_config": ({"format": {"type": "json_schema", "schema": SCHEMA}}, O),
    "output_format": ({"type": "json_schema", "schema": SCHEMA}, O),
    "service_tier": ("auto", N),
    "speed": ("fast", N),
    "stop_sequences": ([" two"], O),
    "stream": (True, O),
    "system": ("be kind", O),
    "temperature": (0.5, O),
    "thinking": ({"type": "enabled", "budget_tokens": 1024}, O),
    "thread": ("x", R),
    "tool_choice": ({"type": "any"}, R),  # no tools
    "tools": ([{"name": "f", "input_schema": SCHEMA}], O),
    "top_k": (3, O),
    "top_p": (0.0, O),
    "user_profile_id": ("x", N),
    "workspace_id": ("x", N),
    "grammar": ('root ::= "a"', O),
    "repeat_penalty": (1.1, R),
    "seed": (7, O),
}
APIS: dict[str, tuple[Json, Fields]] = {
    "/v1/completions": ({"prompt": "some words", "temperature": 0, "seed": 1}, COMPLETIONS),
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": "some words"}], "temperature": 0, "seed": 1},
        CHATS,
    ),
    "/v1/responses": ({"input": "some words", "temperature": 0, "seed": 1}, RESPONSES),
    "/v1/messages": (
        {
            "messages": [{"role": "user", "content": "some words"}],
            "max_tokens": 60,
            "temperature": 0,
            "seed": 1,
        },
        MESSAGES,
    ),
}
