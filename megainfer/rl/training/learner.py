"""All that is trained in a run: the policy, its value model, and their optimisers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from megainfer.errors import CheckpointError, ConfigError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.samples.rows import PolicyRow, ValueRow
from megainfer.rl.training.metrics import Metrics
from megainfer.rl.training.models import Policy, ValueModel, check_pair
from megainfer.rl.training.optimiser import Optimiser, Schedule
from megainfer.rl.training.passes import Passes
from megainfer.rl.training.policy_update import PolicyClip, PolicyUpdate
from megainfer.rl.training.value_update import ValueUpdate
from megainfer.small_file import MAX_JSON_BYTES, read_small

POLICY, VALUE = "policy", "value"
COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt")
"""What a model's folder has beside its weights: tokenizer, templates, sampling defaults."""
WRITTEN = ("config.json", "model.safetensors.index.json")
"""What transformers writes itself."""
GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and its optimiser."""

    model: Policy | ValueModel
    optimiser: Optimiser


class Learner:
    """Trains the policy that stands in `folder`, and the value model in value_folder, where there
    is one. The folders aren't needed afterwards. Raises ModelError, ConfigError."""

    def __init__(self, config: TrainConfig, folder: Path, value_folder: Path | None) -> None:
        self._companions = _companions(folder)
        device = _device(config.compute.device)
        policy = Policy.load(folder)
        self.vocab_size, self.context = policy.vocab_size, policy.context
        self._trained: dict[str, Trained] = {}
        self._add(POLICY, policy, config, device)
        passes = Passes(
            config.optimiser.policy_updates,
            config.compute.pass_tokens,
            getattr(torch, config.compute.dtype),
        )
        loss = config.loss
        clip = PolicyClip(loss.clip_low, loss.clip_high, loss.dual_clip, loss.language_weight)
        self._policy_update = PolicyUpdate(policy, self._trained[POLICY].optimiser, clip, passes)
        self._value_update: ValueUpdate | None = None
        if value_folder is not None:
            value = ValueModel.load(value_folder)
            check_pair(policy, value)
            self._add(VALUE, value, config, device)
            self._value_update = ValueUpdate(
                value,
                self._trained[VALUE].optimiser,
                Passes(config.optimiser.value_updates, passes.most_tokens, passes.dtype),
                loss.value_clip_low,
                loss.value_clip_high,
            )

    @classmethod
    def resumed(cls, config: TrainConfig, checkpoint: Path) -> Self:
        """As it was when `save` wrote the checkpoint. Raises CheckpointError, ModelError."""
        value_folder = checkpoint / VALUE if config.has_value_model else None
        learner = cls(config, checkpoint / POLICY, value_folder)
        for name, trained in learner._trained.items():
            path = checkpoint / f"{name}_optimiser.safetensors"
            try:
                state = load_file(path)
            except Exception as error:  # safetensors' own
                raise CheckpointError(f"{path} can't be read: {error}") from error
            trained.optimiser.load_state(state)
        return learner

    def predict(self, rows: Sequence[PolicyRow | ValueRow]) -> list[list[float]]:
        """V(s_t) of each row's span; there must be a value model."""
        assert self._value_update is not None
        return self._value_update.predict(rows)

    def learn(self, policy: Sequence[PolicyRow], value: Sequence[ValueRow]) -> Metrics:
        """A step's updates; either may have no rows, and changes nothing then."""
        metrics = {f"policy/{name}": v for name, v in self._policy_update(policy).items()}
        if self._value_update is not None:
            found = self._value_update(value)
            metrics |= {f"value/{name}": v for name, v in found.items()}
        return metrics

    def save(self, folder: Path) -> None:
        """Both models and their optimisers, from which `resumed` goes on."""
        self.save_policy(folder / POLICY)
        for name, trained in self._trained.items():
            if name != POLICY:
                trained.model.save(folder / name)
            save_file(trained.optimiser.state(), folder / f"{name}_optimiser.safetensors")

    def save_policy(self, folder: Path) -> None:
        """A folder that can be served: weights, config.json, tokenizer and sampling defaults."""
        self._trained[POLICY].model.save(folder)
        # transformers rewrites the defaults, and leaves out what it doesn't know.
        (folder / GENERATION).unlink(missing_ok=True)
        for name, content in self._companions.items():
            (folder / name).write_bytes(content)

    def _add(
        self, name: str, model: Policy | ValueModel, config: TrainConfig, device: torch.device
    ) -> None:
        _prepare(model, config.compute.checkpointing)
        model.to(device)
        own = config.optimiser
        rate = own.policy_rate if name == POLICY else own.value_rate
        betas = (own.beta1, own.beta2)
        schedule = Schedule(rate, own.warmup, own.weight_decay, betas, own.max_norm)
        self._trained[name] = Trained(model, Optimiser(model, schedule))


def _companions(folder: Path) -> dict[str, bytes]:
    """Name -> content of the small files; a tokenizer has tens of megabytes at most."""
    return {
        path.name: read_small(path, MAX_JSON_BYTES)
        for pattern in COMPANIONS
        for path in sorted(folder.glob(pattern))
        if path.name not in WRITTEN
    }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"compute.device {name!r} can't be used: {error}") from error
    return device


def _prepare(model: Policy | ValueModel, checkpointing: bool) -> None:
    """transformers checkpoints activations in training mode only, in which nothing random may
    happen: what is trained is the policy that drew the tokens."""
    if not checkpointing:
        return
    inner = model.model if isinstance(model, Policy) else model.backbone
    inner.gradient_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "jitter_noise"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
