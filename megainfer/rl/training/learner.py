"""All that is trained in a run: the policy, its value model, and their optimisers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file

from megainfer.errors import CheckpointError
from megainfer.rl.config.train_config import TrainConfig
from megainfer.rl.ranks.ranks import ALONE, Ranks
from megainfer.rl.ranks.sharding import shard
from megainfer.rl.samples.rows import PolicyRow, Row, ValueRow
from megainfer.rl.training.companions import read_companions, write_companions
from megainfer.rl.training.metrics import Metrics
from megainfer.rl.training.models import Policy, ValueModel, check_pair, checkpoint_activations
from megainfer.rl.training.optimiser import Optimiser, Schedule
from megainfer.rl.training.passes import Passes
from megainfer.rl.training.policy_update import PolicyObjective, PolicyUpdate
from megainfer.rl.training.value_update import ValueUpdate

POLICY, VALUE = "policy", "value"


class Learner:
    """Trains the policy that stands in `folder`, and the value model in value_folder, where there
    is one. The folders aren't needed afterwards. Of several ranks each has one, and all do the same
    with theirs. Raises ModelError, ConfigError."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        value_folder: Path | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        device = ranks.device(config.compute.device)
        self._companions = read_companions(folder)
        self._optimisers: dict[str, Optimiser] = {}
        self.policy = Policy.load(folder)
        if config.rollout.replay_routing:
            self.policy.replay_routing()
        self._prepare(POLICY, self.policy, config, device)
        own = config.loss
        self._policy_update = PolicyUpdate(
            self.policy,
            self._optimisers[POLICY],
            PolicyObjective(own.clip_low, own.clip_high, own.dual_clip, own.language_weight),
            _passes(config, config.optimiser.policy_updates, ranks),
        )
        self.value_model: ValueModel | None = None
        self._value_update: ValueUpdate | None = None
        if value_folder is not None:
            self.value_model = ValueModel.load(value_folder)
            check_pair(self.policy, self.value_model)
            self._prepare(VALUE, self.value_model, config, device)
            self._value_update = ValueUpdate(
                self.value_model,
                self._optimisers[VALUE],
                _passes(config, config.optimiser.value_updates, ranks),
                own.value_clip_low,
                own.value_clip_high,
            )

    @classmethod
    def resumed(cls, config: TrainConfig, checkpoint: Path, ranks: Ranks = ALONE) -> Self:
        """As it was when `save` wrote the checkpoint. Raises CheckpointError, ModelError."""
        value_folder = checkpoint / VALUE if config.has_value_model else None
        learner = cls(config, checkpoint / POLICY, value_folder, ranks)
        for name, optimiser in learner._optimisers.items():
            path = checkpoint / _optimiser_file(name)
            try:
                state = load_file(path)
            except Exception as error:  # safetensors' own
                raise CheckpointError(f"{path} can't be read: {error}") from error
            optimiser.load_state(state)
        return learner

    def predict(self, rows: Sequence[Row]) -> list[list[float]]:
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
        """Both models and their optimisers, from which `resumed` goes on. The first rank writes."""
        self._write_policy(folder / POLICY)
        if self.value_model is not None:
            self.value_model.save(folder / VALUE, self._ranks)
        for name, optimiser in self._optimisers.items():
            state = optimiser.state()
            if self._ranks.first:
                save_file(state, folder / _optimiser_file(name))

    def save_policy(self, folder: Path) -> None:
        """A folder that can be served: weights, config.json, tokenizer and sampling defaults. The
        first rank writes it."""
        self._write_policy(folder)

    def close(self) -> None:
        """Nothing follows; it can be called twice."""

    def _write_policy(self, folder: Path) -> None:
        self.policy.save(folder, self._ranks)
        if self._ranks.first:
            write_companions(self._companions, folder)

    def _prepare(
        self, name: str, model: Policy | ValueModel, config: TrainConfig, device: torch.device
    ) -> None:
        """Move the model to where it is trained, and make its optimiser."""
        if config.compute.checkpointing:
            checkpoint_activations(model)
        model.to(device)
        shard(model, model.transformer, model.METHOD, self._ranks, device.type)
        own = config.optimiser
        rate = own.policy_rate if name == POLICY else own.value_rate
        betas = (own.beta1, own.beta2)
        schedule = Schedule(rate, own.warmup, own.weight_decay, betas, own.max_norm)
        self._optimisers[name] = Optimiser(model, schedule)


def _optimiser_file(name: str) -> str:
    return f"{name}_optimiser.safetensors"


def _passes(config: TrainConfig, updates: int, ranks: Ranks) -> Passes:
    own = config.compute
    return Passes(updates, own.pass_tokens, getattr(torch, own.dtype), config.run.seed, ranks)
