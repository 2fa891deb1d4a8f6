"""Answers for tests of the trainer, without a model."""

from collections.abc import Sequence

from megainfer.rl.samples.sample import Sample, Window

END = 2


def window_of(tokens: Sequence[int], values: Sequence[float] = (), version: int = 0) -> Window:
    """A window whose i-th token had log-probability -(i + 1) / 8."""
    logprobs = tuple(-(i + 1) / 8 for i in range(len(tokens)))
    return Window(tuple(tokens), logprobs, version, tuple(values))


def sample_of(
    *windows: Sequence[int],
    prompt: Sequence[int] = (5, 6, 7),
    number: int = 0,
    group: int = 0,
    most: int = 10**6,
    value: float = 0.5,
) -> Sample:
    """An answer of these windows, which is finished where the last ends with END or has `most`
    tokens; every value is `value`."""
    sample = Sample(number, group, 0, tuple(prompt))
    for version, tokens in enumerate(windows):
        sample.add(window_of(tokens, [value] * len(tokens), version), most, [END])
    return sample
