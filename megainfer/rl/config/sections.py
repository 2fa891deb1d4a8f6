"""The sections of a training run's configuration."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from megainfer.rl.config.section import Section


class DataSection(Section):
    """Problems, and where they stand in their files."""

    train: Path = Field(description="Problems to train on: JSON lines, or .parquet.")
    evaluation: Path | None = Field(
        default=None, description="Held-out problems; none: no evaluation."
    )
    prompt_key: str = Field(
        default="prompt", description="Field of the prompt: a text, or messages."
    )
    answer_key: str = Field(
        default="answer", description="Field of the answer that rewards compare with."
    )
    max_prompt_tokens: int = Field(
        default=1024, ge=1, description="Problems with longer prompts are left out, and counted."
    )


class RolloutSection(Section):
    """How answers are generated."""

    prompts: int = Field(
        default=512, ge=1, description="Problems a step, where all answers are new."
    )
    answers: int = Field(default=16, ge=1, description="Answers to each problem.")
    max_answer_tokens: int = Field(
        default=24576, ge=1, description="Tokens after which an answer ends."
    )
    window: int = Field(
        default=8192, ge=1, description="tppo: tokens that a step adds to an answer, at most."
    )
    stale_keys: bool = Field(
        default=False,
        description="tppo: go on from keys and values of earlier windows as their own weights left "
        "them, instead of computing them again; a resumed run isn't the undisturbed one then.",
    )
    replay_routing: bool = Field(
        default=False,
        description="Have the policy's gates choose the experts that the engine's chose.",
    )
    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the engine, named as those of `megainfer.LLM`, as JSON.",
    )

    @property
    def pool(self) -> int:
        """Answers that a step works on."""
        return self.prompts * self.answers


class RewardSection(Section):
    """What answers are worth."""

    function: str = Field(
        description="exact, numeric, math-verify, regex:PATTERN or module:function."
    )
    workers: int = Field(
        default=2, ge=1, le=256, description="Processes that score, where it needs any."
    )
    seconds: float = Field(
        default=10.0, gt=0, description="For one answer; longer is a counted skip."
    )
    correct: float = Field(
        default=1.0, description="The least reward of an answer that is correct."
    )


class AdvantageSection(Section):
    """How much better a token was than expected."""

    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount of rewards.")
    lambda_alpha: float = Field(
        default=0.05, gt=0, description="lambda = max(lambda_least, 1 - 1 / (lambda_alpha tokens))."
    )
    lambda_least: float = Field(default=0.95, ge=0, le=1, description="The least lambda.")
    edge: int = Field(
        default=8, ge=0, description="Last tokens of a cut answer that don't train the policy."
    )
    clamp: float = Field(default=10.0, gt=0, description="Bound of whitened advantages.")


class LossSection(Section):
    """What is minimised."""

    clip_low: float = Field(
        default=0.2, ge=0, lt=1, description="How far a ratio may fall below 1."
    )
    clip_high: float = Field(
        default=0.28, ge=0, le=1e5, description="How far a ratio may rise above 1."
    )
    dual_clip: float = Field(
        default=10.0,
        ge=1,
        le=1e6,
        description="Bound of the ratio where the advantage is negative.",
    )
    value_clip_low: float = Field(
        default=0.5, gt=0, description="How far a value may fall in a step."
    )
    value_clip_high: float = Field(
        default=0.6, gt=0, description="How far a value may rise in a step."
    )
    language_weight: float = Field(
        default=0.1, ge=0, description="Weight of the language-model loss of correct answers."
    )

    @model_validator(mode="after")
    def _dual_above_clip(self) -> Self:
        if self.dual_clip <= 1 + self.clip_high:
            raise ValueError(
                f"dual_clip must be above 1 + clip_high = {1 + self.clip_high:g}, but is "
                f"{self.dual_clip:g}"
            )
        return self


class OptimiserSection(Section):
    """How weights follow gradients."""

    policy_rate: float = Field(default=8e-7, ge=0, description="Learning rate of the policy.")
    value_rate: float = Field(default=2e-6, ge=0, description="Learning rate of the value model.")
    warmup: int = Field(
        default=0, ge=0, description="Updates over which learning rates grow to theirs."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's.")
    max_norm: float = Field(default=1.0, gt=0, description="Bound of a gradient's norm.")
    policy_updates: int = Field(default=1, ge=1, description="Updates of the policy a step.")
    value_updates: int = Field(default=1, ge=1, description="Updates of the value model a step.")
    value_first: int = Field(
        default=10, ge=0, description="First steps, in which only the value model is trained."
    )


class ComputeSection(Section):
    """On what, and how, gradients are computed."""

    device: str = Field(
        default="cpu", description="Device of the trained models, such as cpu or cuda:0."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="What forward and backward compute in; weights stay float32."
    )
    pass_tokens: int = Field(
        default=16384, ge=1, description="Tokens of a forward pass, padding included."
    )
    checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass, to save memory."
    )


class RunSection(Section):
    """How long, from what, and what is written."""

    output: Path = Field(description="Folder of checkpoints, metrics and texts.")
    steps: int = Field(default=1000, ge=1, description="Steps of the whole run.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Of the order of problems and all sampling."
    )
    evaluate_every: int = Field(default=20, ge=1, description="Steps between two evaluations.")
    evaluation_answers: int = Field(
        default=1,
        ge=1,
        description="Answers to each held-out problem, over which pass@1 is a mean.",
    )
    save_every: int = Field(default=50, ge=1, description="Steps between two checkpoints.")
    keep: int = Field(default=2, ge=1, description="Checkpoints that are kept, the latest.")
    texts: int = Field(
        default=2, ge=0, description="Answers a step that are written to texts.jsonl."
    )
    tensorboard: bool = Field(default=False, description="Write metrics for TensorBoard too.")
