"""What one request may ask of the model: tokens of its vocabulary, within its context."""

from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.errors import RequestError, cited
from megainfer.sampling import SamplingParams, check_count

MAX_PROMPT_SCORES = 2**22
"""Log-probabilities of one prompt, all of which are kept until the first token."""


class ContextTooLong(RequestError):
    """The prompt, or the prompt and what it asks for, is longer than the model's context."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """max_model_len: tokens of prompt and answer together. vocab_size: ids are below it.
    routing_bytes: of a token, what its gates chose; 0: nodes don't know that."""

    max_model_len: int
    vocab_size: int
    routing_bytes: int = 0

    def max_tokens(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """How many tokens may be generated: what was asked for, or what the context leaves.

        Raises RequestError for an impossible prompt or limit, naming the numbers.
        """
        self.check(params)
        return self.room(prompt_ids, params)

    def check(self, params: SamplingParams) -> None:
        """What doesn't depend on the prompt. Raises RequestError."""
        if params.return_routed_experts and not self.routing_bytes:
            raise RequestError(
                "return_routed_experts needs an instance that was started with "
                "--enable-return-routed-experts",
                "return_routed_experts",
            )
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        self._check_tokens("logit_bias", tuple(params.logit_bias))
        check_count("allowed_token_ids", params.allowed_token_ids, self.vocab_size, "token ids")
        self._check_tokens("allowed_token_ids", params.allowed_token_ids)

    def room(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """`max_tokens` of parameters that were checked."""
        self._check_tokens("prompt", prompt_ids)
        if not prompt_ids:
            raise RequestError("the prompt is empty; it must hold at least one token", "prompt")
        _check_scores(len(prompt_ids), params.prompt_logprobs)
        room = self.max_model_len - len(prompt_ids)
        if room < 1:
            raise ContextTooLong(
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"your prompt has {len(prompt_ids)} tokens, and at least one more is needed for "
                "the completion. Please reduce the length of the prompt.",
                "prompt",
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise ContextTooLong(
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"you requested {len(prompt_ids) + params.max_tokens} tokens ({len(prompt_ids)} "
                f"in the prompt, {params.max_tokens} in the completion). Please reduce the length "
                "of the prompt or max_tokens.",
                "max_tokens",
            )
        return room if params.max_tokens is None else params.max_tokens

    def _check_tokens(self, name: str, ids: Sequence[int]) -> None:
        if not ids or (set(map(type, ids)) == {int} and self._all_known(ids)):
            return
        bad = next(token for token in ids if type(token) is not int or not self._all_known([token]))
        raise RequestError(
            f"{name} must hold token ids from 0 to {self.vocab_size - 1}, but holds {cited(bad)}",
            name,
        )

    def _all_known(self, ids: Sequence[int]) -> bool:
        return min(ids) >= 0 and max(ids) < self.vocab_size


def _check_scores(prompt_tokens: int, wanted: int | None) -> None:
    scores = 0 if wanted is None else prompt_tokens * (wanted + 1)
    if scores > MAX_PROMPT_SCORES:
        raise RequestError(
            f"prompt_logprobs = {wanted} of a prompt of {prompt_tokens} tokens are {scores} "
            f"log-probabilities, each token's own included, and at most {MAX_PROMPT_SCORES} are "
            "given of one prompt; ask for fewer, or send a shorter prompt",
            "prompt_logprobs",
        )
