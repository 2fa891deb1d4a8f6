"""From a step's answers and their rewards to what is trained on."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megainfer.rl.advantages.egae import egae
from megainfer.rl.advantages.group import group_advantages
from megainfer.rl.advantages.length_lambda import length_lambda
from megainfer.rl.advantages.returns import rewards_to_go
from megainfer.rl.advantages.whitening import whitened
from megainfer.rl.samples.rows import PolicyRow, ValueRow
from megainfer.rl.samples.sample import Sample
from megainfer.rl.samples.spans import policy_span, value_span


@dataclass(frozen=True, slots=True)
class Estimation:
    """How advantages are estimated.

    window: tokens that a step may add to an answer; edge: how many of a cut answer's last ones
    aren't trained on; gamma: discount; alpha, least_lambda: of `length_lambda`; clamp: bound of
    whitened advantages; correct: the least reward of an answer that is correct.
    """

    window: int
    edge: int = 8
    gamma: float = 1.0
    alpha: float = 0.05
    least_lambda: float = 0.95
    clamp: float = 10.0
    correct: float = 1.0


def rows_by_value(
    samples: Sequence[Sample], rewards: Mapping[int, float], how: Estimation
) -> list[PolicyRow]:
    """T-PPO's and PPO's policy update: EGAE, whitened over all tokens that are trained.

    rewards: of finished answers, by their numbers. A finished one without is left out: nobody knows
    what it is worth. So are those without a token to train.
    """
    spans = {s.number: policy_span(s, how.edge) for s in samples}
    kept = [s for s in samples if spans[s.number] and (not s.finished or s.number in rewards)]
    estimated = [
        _window_advantages(s, rewards[s.number] if s.finished else 0.0, how)[: len(spans[s.number])]
        for s in kept
    ]
    return [
        _policy_row(sample, spans[sample.number], row, rewards, how)
        for sample, row in zip(kept, whitened(estimated, how.clamp), strict=True)
    ]


def rows_by_group(
    samples: Sequence[Sample], rewards: Mapping[int, float], how: Estimation
) -> list[PolicyRow]:
    """GRPO's policy update: every token of an answer has the answer's advantage in its group.

    Only answers that are finished and have a reward take part; `rewards` as in `rows_by_value`.
    """
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.finished and sample.number in rewards:
            groups[sample.group].append(sample)
    rows = []
    for group in groups.values():
        advantages = group_advantages([rewards[sample.number] for sample in group])
        for sample, advantage in zip(group, advantages, strict=True):
            span = policy_span(sample, how.edge)
            rows.append(_policy_row(sample, span, [advantage] * len(span), rewards, how))
    return rows


def latest_span(sample: Sample) -> range:
    """Indices in prompt and answer of the latest window's tokens."""
    start = sample.length - len(sample.latest.token_ids)
    return _shifted(sample, range(start, sample.length))


def value_rows(
    samples: Sequence[Sample], rewards: Mapping[int, float], gamma: float
) -> list[ValueRow]:
    """The value update: all tokens of finished answers that have a reward, of all their windows."""
    rows = []
    for sample in samples:
        if (span := value_span(sample)) and sample.number in rewards:
            given = _at_the_end(rewards[sample.number], len(span))
            returns, old = rewards_to_go(given, gamma), sample.response_values
            rows.append(ValueRow(sample.token_ids, _shifted(sample, span), returns, old))
    return rows


def _window_advantages(sample: Sample, reward: float, how: Estimation) -> list[float]:
    """Of all of the latest window's tokens. reward: of the answer, 0 where it goes on."""
    values = sample.latest.values
    lam = length_lambda(
        sample.length,
        finished=sample.finished,
        window=how.window,
        alpha=how.alpha,
        least=how.least_lambda,
    )
    rewards = _at_the_end(reward, len(values))
    return egae(rewards, values, finished=sample.finished, gamma=how.gamma, lam=lam)


def _policy_row(
    sample: Sample,
    span: range,
    advantages: Sequence[float],
    rewards: Mapping[int, float],
    how: Estimation,
) -> PolicyRow:
    correct = sample.finished and rewards[sample.number] >= how.correct
    old_logprobs = sample.latest.logprobs[: len(span)]
    tokens, shifted = sample.token_ids, _shifted(sample, span)
    return PolicyRow(tokens, shifted, old_logprobs, advantages, correct, routing=sample.routing)


def _at_the_end(reward: float, tokens: int) -> list[float]:
    """A verifiable reward is for the whole answer, and stands at its last token."""
    return [0.0] * (tokens - 1) + [reward]


def _shifted(sample: Sample, span: range) -> range:
    """From indices in the answer to those in prompt and answer."""
    prompt = len(sample.prompt_ids)
    return range(span.start + prompt, span.stop + prompt)
