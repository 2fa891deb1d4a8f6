"""One sequence that is to be generated, and the message that asks a node for it."""

import secrets
from dataclasses import dataclass

from megainfer.messages.requests import Submit
from megainfer.sampling import PROCESSED, SamplingParams
from megainfer.structured.grammar import Grammar


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence to generate: `params.n` has been unfolded (`unfold`) and isn't looked at.

    bad_words: token ids of `params.bad_words`. priority: smaller is served first. grammar: what the
    text must look like; it then ends where that allows it, whatever `ignore_eos` says. seed:
    instead of that of `params`. cache_salt: the prefix cache is shared with the same one only.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    grammar: Grammar | None = None
    seed: int | None = None
    cache_salt: str = ""

    def asks_as(self, other: "SequenceRequest") -> bool:
        """Whether only id, prompt and seed are different."""
        return (
            self.params is other.params
            and self.bad_words is other.bad_words
            and self.grammar is other.grammar
            and (self.eos_token_ids, self.priority, self.cache_salt)
            == (other.eos_token_ids, other.priority, other.cache_salt)
        )

    def drawn_seed(self) -> int:
        """Its own, its parameters', or a new one."""
        own = self.params.seed if self.seed is None else self.seed
        return draw_seed() if own is None else own


def draw_seed() -> int:
    """A seed for a request that has none."""
    return secrets.randbits(63)


def submit_message(
    sequence: SequenceRequest, max_tokens: int, max_queue_seconds: float | None, client: str = ""
) -> Submit:
    """What a node is told of a sequence. max_tokens: at most what the context leaves."""
    params = sequence.params
    ignores_eos = params.ignore_eos and sequence.grammar is None
    end_tokens = () if ignores_eos else sequence.eos_token_ids
    return Submit(
        request_id=sequence.request_id,
        prompt=sequence.prompt_ids,
        temperature=float(params.temperature),
        top_p=float(params.top_p),
        top_k=params.top_k,
        seed=sequence.drawn_seed(),
        max_tokens=max_tokens,
        stop_token_ids=sorted({*params.stop_token_ids, *end_tokens}),
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        min_p=float(params.min_p),
        min_tokens=params.min_tokens,
        presence_penalty=float(params.presence_penalty),
        frequency_penalty=float(params.frequency_penalty),
        repetition_penalty=float(params.repetition_penalty),
        logit_bias=dict(params.logit_bias),
        allowed_token_ids=list(params.allowed_token_ids),
        bad_words=[list(word) for word in sequence.bad_words],
        priority=sequence.priority,
        grammar=sequence.grammar,
        max_queue_seconds=max_queue_seconds,
        processed_logprobs=params.logprobs_mode == PROCESSED,
        routed_experts=params.return_routed_experts,
        stale_prefix=params.stale_prefix,
        cache_salt=sequence.cache_salt,
        client=client,
    )
