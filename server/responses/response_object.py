"""The response object, complete by Open Responses' words."""

import time
from typing import Any

from megainfer.sampling import SamplingParams
from server.openai.translation import Json
from server.responses.protocol import ResponsesRequest


def response_object(
    body: ResponsesRequest,
    params: SamplingParams,
    head: Json,
    status: str,
    output: list[Json],
    usage: Json | None,
) -> Json:
    """head: id, creation and model. status: `in_progress` until it is done."""
    extra: dict[str, Any] = body.model_extra or {}
    cut = status == "incomplete"
    return {
        **head,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": _text(extra.get("prompt_cache_key")),
        "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
        "safety_identifier": _text(extra.get("safety_identifier")),
        "service_tier": "default",
        "store": False,
        "background": False,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "top_logprobs": params.logprobs or 0,
        "text": {"format": {"type": "text"}, **(body.text or {})},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "truncation": body.truncation or "disabled",
        "user": _text(extra.get("user")),
        "usage": usage,
    }


def _text(given: Any) -> str | None:
    """Of a field that nobody has checked."""
    return given if isinstance(given, str) else None
