"""What is compared, and all that its runs have in common."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning.task import Task
from megainfer.rl.config.train_config import TrainConfig

ARMS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"algorithm": "ppo"},
    "tppo": {"algorithm": "tppo"},
    "tppo-half": {"algorithm": "tppo"},
    "tppo-whole": {"algorithm": "tppo"},
    "tppo-cold": {"algorithm": "tppo", "optimiser": {"value_first": 0}},
    "tppo-stale": {"algorithm": "tppo", "rollout": {"stale_keys": True}},
    "grpo": {"algorithm": "grpo"},
}
"""T-PPO with l = L/4, L/2 and L; with l = L/4 without the value model's warm-up, and from the keys
and values that earlier windows' weights left."""
WINDOWS = {"tppo": 4, "tppo-half": 2, "tppo-cold": 4, "tppo-stale": 4}
"""Into how many windows a longest answer is cut; else into one."""
UPDATES = {1: 6, 2: 5, 4: 4}
"""Of the policy a step, by windows: an update has as many tokens in all arms, some 750."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a run. steps: of arms that draw answers whole; T-PPO's steps are shorter, so that it has
    `shorter` times as many, and as many times of all else that is counted in steps. first: steps
    that train the value model alone. evaluations: how often in a run held-out problems are tried.
    """

    steps: int = 60
    prompts: int = 32
    answers: int = 8
    first: int = 5
    evaluations: int = 20
    shorter: int = 2


def config_of(arm: str, task: Task, size: Size, output: Path, seed: int) -> TrainConfig:
    """Of one run in `output`, beside which model and problems are. All arms have the same but for
    what ARMS says."""
    models, longest = output.parent, task.answer_tokens
    windows = WINDOWS.get(arm, 1)
    times = size.shorter if windows > 1 else 1
    evaluate_every = max(1, size.steps * times // size.evaluations)
    values: dict[str, Any] = {
        "model": str(models / "model"),
        "data": {
            "train": models / "train.jsonl",
            "evaluation": models / "held-out.jsonl",
            "max_prompt_tokens": task.prompt_tokens,
        },
        "rollout": {
            "prompts": size.prompts,
            "answers": size.answers,
            "max_answer_tokens": longest,
            "window": math.ceil(longest / windows),
            "engine": {"micro_batches": 1, "max_model_len": task.context, "max_num_seqs": 256},
        },
        "reward": {"function": "exact"},
        "advantage": {"edge": 1},  # of windows of 10 tokens: the only one that tells nothing
        "optimiser": {
            "policy_rate": 1.5e-4,
            "value_rate": 1e-3,
            "policy_updates": UPDATES[windows],
            "value_updates": 4 * UPDATES[windows],
            "value_first": size.first * times,
        },
        "compute": {"pass_tokens": 512},  # answers of like length together: few are long
        "run": {
            "output": output,
            "steps": size.steps * times,
            "seed": seed,
            "evaluate_every": evaluate_every,
            "save_every": evaluate_every,
            "keep": 1,
        },
    }
    for name, own in ARMS[arm].items():
        values[name] = {**values[name], **own} if isinstance(own, dict) else own
    return TrainConfig.of(values)
