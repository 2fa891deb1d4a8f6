"""Steps of training in a steady state: what they take, and what comes of them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

from megainfer.rl.simulation.arithmetic import FORWARD, TRAINED, Arithmetic
from megainfer.rl.simulation.engine import DecodeTimes
from megainfer.rl.simulation.rollout import Growth, roll
from megainfer.rl.simulation.setting import Setting

GENERATIONS = 4
"""How often the longest answer's time passes before steps count, and while they do."""


@dataclass(frozen=True, slots=True)
class Spent:
    """A step, or the mean of several. Seconds: rollout, of decoding; contexts, of prompts and of
    earlier windows that are computed again before it; training, of both models. tokens: drawn, each
    of which trains the policy once. finished: answers that ended. occupancy: share of decoding
    places in use until the last answer has its window."""

    rollout: float
    contexts: float
    training: float
    decode_steps: float
    tokens: float
    finished: float
    occupancy: float

    @property
    def seconds(self) -> float:
        """One after the other, on the same devices."""
        return self.rollout + self.contexts + self.training

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class Growing:
    """An answer of the pool: tokens that it has, and will have."""

    done: int
    whole: int


@dataclass(frozen=True, slots=True)
class Training:
    """Both models, as large as each other, on all devices together."""

    arithmetic: Arithmetic
    flops_per_second: float

    def seconds(self, lengths: Sequence[int], drawn: int, finished: Sequence[int]) -> float:
        """lengths: of all texts with their prompts: each goes through the policy's update, and
        through the value model once, for what it says of the new tokens. drawn: new tokens.
        finished: those texts that the value model learns of."""
        own = self.arithmetic
        flops = (TRAINED + FORWARD) * own.texts_flops(lengths)
        flops += TRAINED * (own.head_flops(drawn) + own.texts_flops(finished))
        return flops / self.flops_per_second


def mean_step(setting: Setting, window: int, engine: DecodeTimes, training: Training) -> Spent:
    """Of steps that add at most `window` tokens to an answer; `setting.most` is PPO's."""
    generation = ceil(setting.most / window)
    before = GENERATIONS * generation if generation > 1 else 0
    steps = _steps(setting, window, engine, training)
    return _mean(list(islice(steps, before, before + GENERATIONS * generation)))


def _steps(
    setting: Setting, window: int, engine: DecodeTimes, training: Training
) -> Iterator[Spent]:
    lengths = setting.lengths.draws(random.Random(setting.seed))
    pool = [Growing(0, next(lengths)[1]) for _ in range(setting.pool)]
    while True:
        yield _step(setting, pool, window, engine, training)
        for growing in pool:
            growing.done = min(growing.done + window, growing.whole)
        pool = [growing for growing in pool if growing.done < growing.whole]
        pool += [Growing(0, next(lengths)[1]) for _ in range(setting.pool - len(pool))]


def _step(
    setting: Setting,
    pool: Sequence[Growing],
    window: int,
    engine: DecodeTimes,
    training: Training,
) -> Spent:
    growths = [Growth(setting.prompt + own.done, min(window, own.whole - own.done)) for own in pool]
    rolled = roll(growths, engine)
    texts = [growth.context + growth.tokens for growth in growths]
    ended = [
        text for text, own in zip(texts, pool, strict=True) if text == setting.prompt + own.whole
    ]
    return Spent(
        rolled.seconds,
        _contexts_seconds(setting, pool, engine),
        training.seconds(texts, rolled.tokens, ended),
        rolled.decode_steps,
        rolled.tokens,
        len(ended),
        rolled.occupancy(min(engine.places, setting.pool)),
    )


def _contexts_seconds(setting: Setting, pool: Sequence[Growing], engine: DecodeTimes) -> float:
    """New problems' prompts, one for all answers to it; earlier windows with their prompts, which
    nothing of is kept under new weights."""
    new = sum(own.done == 0 for own in pool) / setting.answers
    seconds = engine.prefill_seconds(new * setting.prompt, setting.prompt)
    again = [setting.prompt + own.done for own in pool if own.done]
    if again and not setting.keeps_prefixes:
        tokens = sum(again)
        seconds += engine.prefill_seconds(tokens, sum(n * n for n in again) / tokens)
    return seconds


def _mean(steps: Sequence[Spent]) -> Spent:
    count = len(steps)
    return Spent(
        sum(step.rollout for step in steps) / count,
        sum(step.contexts for step in steps) / count,
        sum(step.training for step in steps) / count,
        sum(step.decode_steps for step in steps) / count,
        sum(step.tokens for step in steps) / count,
        sum(step.finished for step in steps) / count,
        sum(step.occupancy for step in steps) / count,
    )
