"""The configuration of a training run."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from megainfer.errors import ConfigError, cited
from megainfer.rl.config.section import Section
from megainfer.rl.config.sections import (
    AdvantageSection,
    ComputeSection,
    DataSection,
    LossSection,
    OptimiserSection,
    RewardSection,
    RolloutSection,
    RunSection,
)

Algorithm = Literal["tppo", "ppo", "grpo"]


class TrainConfig(Section):
    """tppo: answers are cut at a window, and go on under the next policy. ppo: they are generated
    whole; all else is the same. grpo: whole, without a value model; an answer's advantage is its
    reward among those to the same problem."""

    algorithm: Algorithm = Field(default="tppo", description="tppo, ppo or grpo.")
    model: str = Field(description="Folder, or hub id, of the policy to begin with.")
    value_model: str | None = Field(
        default=None,
        description="Folder, or hub id, of the value model; none: the policy's weights.",
    )
    data: DataSection
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection
    advantage: AdvantageSection = AdvantageSection()
    loss: LossSection = LossSection()
    optimiser: OptimiserSection = OptimiserSection()
    compute: ComputeSection = ComputeSection()
    run: RunSection

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From what a file and flags say. Raises ConfigError, which names every key at fault."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("; ".join(_told(each) for each in error.errors())) from None

    @property
    def window(self) -> int:
        """Tokens that a step adds to an answer, at most."""
        whole = self.rollout.max_answer_tokens
        return min(self.rollout.window, whole) if self.algorithm == "tppo" else whole

    @property
    def has_value_model(self) -> bool:
        return self.algorithm != "grpo"

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> Self:
        if self.algorithm == "grpo" and self.rollout.answers < 2:
            raise ValueError(
                "grpo compares answers to one problem: rollout.answers must be 2 or more"
            )
        if self.algorithm == "grpo" and self.value_model is not None:
            raise ValueError("grpo has no value model: leave value_model out")
        if self.advantage.edge >= self.window < self.rollout.max_answer_tokens:
            raise ValueError(
                f"advantage.edge must be below the window of {self.window} tokens, else no cut "
                f"answer trains the policy; it is {self.advantage.edge}"
            )
        return self


def _told(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors: the key, what is wrong, and what was given."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no key {key}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[:1].lower()}{message[1:]}, not {cited(error['input'])}"
