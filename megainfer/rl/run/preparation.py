"""What must be known before a run takes anything: models, problems, who scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError, ModelError
from megainfer.model_folder.gguf import is_gguf_place
from megainfer.model_folder.resolve import ModelSource, resolve_model
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.data.files import read_problems
from megainfer.rl.data.problem import Keys
from megainfer.rl.data.prompts import Prompts, encode_problems
from megainfer.rl.ranks.commands import Open
from megainfer.rl.ranks.ranks import Ranks
from megainfer.rl.run.checkpoints import Checkpoints
from megainfer.rl.run.state import RunState
from megainfer.rl.training.learner import POLICY, Learner
from megainfer.rl.training.led_learner import led_learner
from megainfer.text.tokenizer import Tokenizer, load_tokenizer

Say = Callable[[str], None]
FIXED = (
    "algorithm",
    "data.train",
    "data.max_prompt_tokens",
    "rollout.max_answer_tokens",
    "rollout.answers",
    "run.seed",
)
"""Keys that a run that is resumed can't change: its answers and their order depend on them."""


def starting_point(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a new run. Raises ConfigError."""
    output = config.run.output
    latest = checkpoints_of(config).latest()
    if resume and latest is None:
        raise ConfigError(f"--resume: {output} has no checkpoint; leave it out to begin")
    if not resume and latest is not None:
        raise ConfigError(
            f"{output} holds a run, up to {latest.name}; --resume goes on with it, another "
            "--run.output begins a new one"
        )
    return latest


def checkpoints_of(config: TrainConfig) -> Checkpoints:
    """Of the run."""
    return Checkpoints(config.run.output / "checkpoints", config.run.keep)


def open_state(config: TrainConfig, checkpoint: Path | None, prompts: Prompts) -> RunState:
    """Where the run is. Raises ConfigError where a run is resumed with what it can't be."""
    told = config.model_dump(mode="json")
    if checkpoint is None:
        return RunState(problems=len(prompts), data=prompts.digest(), config=told)
    state = RunState.load(checkpoint)
    for key in FIXED:
        before, now = _at(state.config, key), _at(told, key)
        if before != now:
            raise ConfigError(f"--resume: {key} was {before!r} when the run began, and is {now!r}")
    if state.problems != len(prompts):
        raise ConfigError(
            f"--resume: there were {state.problems} problems when the run began, and are "
            f"{len(prompts)}"
        )
    if state.data != prompts.digest():
        raise ConfigError(
            f"--resume: {config.data.train} isn't what it was when the run began: prompts or "
            "answers have changed; give the run's own, or begin another with --run.output"
        )
    if len(state.running) > config.rollout.pool:
        raise ConfigError(
            f"--resume: {len(state.running)} answers go on, and rollout.prompts times "
            f"rollout.answers has room for {config.rollout.pool}; raise --rollout.prompts"
        )
    state.config = told
    return state


def open_learner(config: TrainConfig, checkpoint: Path | None, ranks: Ranks, say: Say) -> Learner:
    """The models and their optimisers. Raises ModelError, ConfigError, CheckpointError."""
    if checkpoint is not None:
        learner = led_learner(config, Open(str(checkpoint), resumed=True), ranks)
    else:
        policy = model_folder(config.model, say)
        value = policy if config.value_model is None else model_folder(config.value_model, say)
        opened = Open(str(policy), str(value) if config.has_value_model else None)
        learner = led_learner(config, opened, ranks)
    wanted = config.data.max_prompt_tokens + config.rollout.max_answer_tokens
    if learner.policy.context is not None and wanted > learner.policy.context:
        raise ConfigError(
            f"data.max_prompt_tokens and rollout.max_answer_tokens are {wanted} together; the "
            f"model's context has {learner.policy.context}"
        )
    return learner


def open_tokenizer(config: TrainConfig, checkpoint: Path | None, say: Say) -> Tokenizer:
    """The policy's. Raises ModelError, ConfigError."""
    folder = model_folder(config.model, say) if checkpoint is None else checkpoint / POLICY
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ConfigError(f"model: {folder} has no tokenizer, which problems need")
    return tokenizer


def open_prompts(config: TrainConfig, path: Path, tokenizer: Tokenizer, say: Say) -> Prompts:
    """Problems of a file, encoded. Raises ConfigError."""
    keys = Keys(config.data.prompt_key, config.data.answer_key)
    problems = read_problems(path, keys)
    prompts = encode_problems(problems, tokenizer, config.data.max_prompt_tokens)
    if prompts.too_long:
        say(
            f"{path}: {prompts.too_long} of {len(problems)} problems are left out, with more than "
            f"{config.data.max_prompt_tokens} tokens"
        )
    return prompts


def model_folder(model: str, say: Say) -> Path:
    """A local folder as it is, a hub id's fetched one. Raises ModelError."""
    source = ModelSource(model)
    if source.place is not None and is_gguf_place(source.place):
        raise ModelError(f"{model} is GGUF, which is served, but not trained; name a folder")
    return resolve_model(source, lambda what, share: say(what))


def _at(values: dict[str, Any], key: str) -> Any:
    """What stands under `section.name`."""
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
