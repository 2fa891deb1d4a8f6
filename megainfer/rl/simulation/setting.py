"""What is simulated: a pool of answers, how long they are, and how they are trained on."""

from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.simulator.lengths import LogNormal


@dataclass(frozen=True, slots=True)
class Setting:
    """Defaults are T-PPO's sizes (arXiv 2506.15050), and lengths as reasoning models have them.

    prompts, answers: problems, and answers to each, that a step works on. most: tokens after which
    an answer ends; window: that a step of T-PPO adds at most. mean: tokens of an answer, where no
    more than `most`; sigma: standard deviation of the logarithm. prompt: tokens of a problem.
    utilisation: of the devices' arithmetic while models are trained.
    keeps_prefixes: keys and values of earlier windows stay, stale, in place of being computed again
    under new weights.
    """

    prompts: int = 512
    answers: int = 16
    most: int = 24576
    window: int = 8192
    mean: int = 8192
    sigma: float = 0.8
    prompt: int = 256
    utilisation: float = 0.4
    keeps_prefixes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "answers", "most", "window", "mean", "prompt"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.mean >= self.most:
            raise ConfigError(
                f"answers of {self.mean} tokens in the mean must have room for longer ones: they "
                f"end at {self.most}"
            )
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"utilisation must be above 0 and at most 1, not {self.utilisation}")

    @property
    def pool(self) -> int:
        """Answers that a step works on."""
        return self.prompts * self.answers

    @property
    def lengths(self) -> LogNormal:
        """Of answers: log-normal with this mean, none beyond `most`. Raises ConfigError."""
        return LogNormal(self.prompt, self.mean, self.sigma, self.most / self.mean)
