"""What a scheduler has to work with, and what it therefore can't take."""

from dataclasses import dataclass

from megainfer.errors import ConfigError, RequestError
from megainfer.messages.requests import Submit

FAIR_PROMPT_ROWS_ON_CPUS = 24
"""Arithmetic bounds their kernels from about 8 rows on. Beside 32 of another client 8 sequences had
less than half of their pace, beside 24 more (`benchmarks/attacks.py`, of scored prompts)."""
FAIR_PROMPT_ROWS_ON_GPUS = 256
"""What a GPU multiplies in about the time in which it reads the weights: FLOP/s over bytes/s."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """recurrent: the model keeps states that take a sequence's tokens in as they come; a slot of
    them is a sequence's own while it runs. fair_prompt_rows: of one client in a round of all
    micro-batches, prompts and next tokens together, while others have something short to compute;
    None: as many as there is room for. scored_row_cost: what a row of a prompt costs whose logits
    are wanted, in rows of others.

    Raises ConfigError where one sequence of the greatest length couldn't be served, or with a
    prefix cache beside recurrent states: blocks hold none, so that a hit would skip them.
    """

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int  # running at once, over all micro-batches
    max_num_batched_tokens: int  # rows of one step
    max_model_len: int  # prompt and output tokens of one sequence
    num_micro_batches: int
    enable_prefix_cache: bool = True
    recurrent: bool = False
    fair_prompt_rows: int | None = None
    scored_row_cost: float = 1.0

    def __post_init__(self) -> None:
        self._check_at_least("num_blocks", 1)
        self._check_at_least("block_size", 1)
        self._check_at_least("max_num_seqs", 1)
        self._check_at_least("max_num_batched_tokens", 1)
        self._check_at_least("max_model_len", 2)
        self._check_at_least("num_micro_batches", 1)
        if self.fair_prompt_rows is not None:
            self._check_at_least("fair_prompt_rows", 1)
        self._check_at_least("scored_row_cost", 1)
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ConfigError(
                f"the KV cache holds {self.num_blocks * self.block_size} tokens, one sequence may "
                f"have max_model_len = {self.max_model_len}: lower it, or give the cache more "
                "memory"
            )
        if self.recurrent and self.enable_prefix_cache:
            raise ConfigError("recurrent states don't go with a prefix cache; switch it off")

    def _check_at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def check(self, submit: Submit) -> None:
        """Raises RequestError if the request could never be served."""
        longest = self.max_model_len - 1
        if not submit.prompt:
            raise RequestError("the prompt is empty; it needs at least one token", "prompt")
        if len(submit.prompt) > longest:
            raise RequestError(
                f"the prompt has {len(submit.prompt)} tokens; at most {longest} leave room for an "
                f"answer in the context of {self.max_model_len}",
                "prompt",
            )
        if submit.max_tokens < 1:
            raise RequestError(
                f"max_tokens must be at least 1, not {submit.max_tokens}", "max_tokens"
            )
        room = min(submit.max_tokens, self.max_model_len - len(submit.prompt))
        if len(submit.output) >= room:
            raise RequestError(
                f"{len(submit.output)} tokens were made of the answer already, and {room} are all "
                "that it may have",
                "output",
            )
