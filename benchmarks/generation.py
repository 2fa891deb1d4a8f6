"""Greedy generation of a fixed number of tokens by an instance in this process's hands, timed."""

from collections.abc import Sequence
from time import monotonic

from megainfer import LLM, SamplingParams


def generate(llm: LLM, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Seconds from sending all prompts to everybody's last of so many tokens."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started = monotonic()
    llm.generate([list(prompt) for prompt in prompts], params, progress=False)
    return monotonic() - started
