"""AdamW with a warm-up and a bound of the gradient's norm, for one model."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megainfer.errors import CheckpointError
from megainfer.rl.ranks.sharding import part_of, whole

STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class Schedule:
    """rate: learning rate after `warmup` updates, towards which it grows linearly. max_norm: the
    gradient's, beyond which it is scaled down."""

    rate: float
    warmup: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_norm: float = 1.0


class Optimiser:
    """Updates a model's parameters from their gradients, and forgets these."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._schedule = schedule
        self._adam = torch.optim.AdamW(
            self._named.values(),
            lr=schedule.rate,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
        )
        self.updates = 0

    @property
    def rate(self) -> float:
        """Of the next update."""
        warmed = (self.updates + 1) / self._schedule.warmup if self._schedule.warmup else 1.0
        return self._schedule.rate * min(1.0, warmed)

    def step(self) -> float:
        """One update; the gradient's norm before it was bounded. A gradient that isn't finite
        changes nothing: the norm says so."""
        own = nn.utils.clip_grad_norm_(self._named.values(), self._schedule.max_norm)
        norm = float(whole(own))
        for group in self._adam.param_groups:
            group["lr"] = self.rate
        if torch.isfinite(torch.tensor(norm)):
            self._adam.step()
            self.updates += 1
        self._adam.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """All that the next update depends on beside the parameters, for safetensors."""
        found = {"updates": torch.tensor(self.updates)}
        for name, parameter in self._named.items():
            for key, tensor in self._adam.state[parameter].items():
                found[f"{name}/{key}"] = whole(tensor).contiguous()
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave. Raises CheckpointError where it is of another model."""
        left = dict(state)
        try:
            self.updates = int(left.pop("updates"))
            for name, parameter in self._named.items():
                if f"{name}/step" in left:  # one that never had a gradient has no state
                    own = {key: left.pop(f"{name}/{key}") for key in STATE}
                    self._check_shape(name, parameter, own)
                    moved = {k: part_of(v, parameter) if k != "step" else v for k, v in own.items()}
                    self._adam.state[parameter] = moved
        except KeyError as error:
            raise CheckpointError(f"an optimiser's state lacks {error}") from error
        if left:
            raise CheckpointError(f"an optimiser's state has {min(left)!r}, the model has not")

    @staticmethod
    def _check_shape(name: str, parameter: Tensor, own: Mapping[str, Tensor]) -> None:
        for key in STATE[:2]:
            if own[key].shape != parameter.shape:
                raise CheckpointError(
                    f"an optimiser's state of {name} has shape {list(own[key].shape)}, the "
                    f"parameter {list(parameter.shape)}"
                )
