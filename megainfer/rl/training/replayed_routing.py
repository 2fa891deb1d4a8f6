"""A model whose gates choose the experts that they are told.

"Rollout routing replay": https://arxiv.org/abs/2510.11370. The weights of the chosen experts are
computed as ever, and trained.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from megainfer.errors import ModelError
from megainfer.messages.routed_experts import RoutedExperts

NONE = -1


class RoutingReplay:
    """Has the gates of a transformers model replay, until told otherwise.

    What was told holds for the backward pass too, where activations may be computed again. Raises
    ModelError where the model has no gates that can be told.
    """

    def __init__(self, model: nn.Module) -> None:
        self._told: Tensor | None = None
        gates = [module for module in model.modules() if _is_gate(module)]
        if not gates:
            raise ModelError(
                f"rollout.replay_routing: {type(model).__name__} has no gates that can replay"
            )
        for layer, gate in enumerate(gates):
            _replace_forward(gate, partial(self._of_layer, layer))
        self.layers = len(gates)

    def tell(self, experts: Tensor | None) -> None:
        """int64 [B, T, layers with experts, top_k], of the passes from now on; -1: as the gate
        itself chooses. None: so everywhere. Raises ModelError for another number of layers."""
        if experts is not None and experts.shape[2] != self.layers:
            raise ModelError(
                f"the rollout engine recorded {experts.shape[2]} layers with experts, the policy "
                f"has {self.layers} gates"
            )
        self._told = experts

    def _of_layer(self, layer: int) -> Tensor | None:
        return None if self._told is None else self._told[:, :, layer].flatten(0, 1)


def padded_routing(routing: Sequence[RoutedExperts | None], width: int) -> Tensor | None:
    """int64 [B, width, layers, top_k] of what the first tokens of B answers chose; -1 elsewhere.
    None where nothing is known of any."""
    known = next((one for one in routing if one is not None), None)
    if known is None:
        return None
    shape = known.layers, known.top_k
    experts = torch.full((len(routing), width, *shape), NONE, dtype=torch.int64)
    for row, one in enumerate(routing):
        if one is not None:
            ids = torch.frombuffer(bytearray(one.ids), dtype=torch.int16)
            experts[row, : one.stop] = ids.view(-1, *shape)
    return experts


def _is_gate(module: nn.Module) -> bool:
    """transformers' routers choose among `num_experts` by one call of topk."""
    named = type(module).__name__.lower().endswith("router")
    sizes = (getattr(module, name, None) for name in ("num_experts", "top_k"))
    return named and all(isinstance(size, int) for size in sizes)


def _replace_forward(gate: nn.Module, told: Callable[[], Tensor | None]) -> None:
    own = gate.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        experts = told()
        if experts is None:
            return own(*args, **kwargs)
        with _Choice(gate, experts) as choice:
            out = own(*args, **kwargs)
        if choice.made != 1:
            raise ModelError(
                f"{type(gate).__name__} chose its experts {choice.made} times, so they can't be "
                "replayed; leave out rollout.replay_routing"
            )
        return out

    gate.forward = forward


class _Choice(TorchFunctionMode):
    """topk over all of a gate's experts gives these, int64 [tokens, top_k]."""

    def __init__(self, gate: Any, experts: Tensor) -> None:
        super().__init__()
        self.made = 0
        self._experts = experts
        self._num_experts: int = gate.num_experts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return result
        scores = args[0] if args else (kwargs or {})["input"]
        if scores.shape[-1] != self._num_experts or result[1].shape != self._experts.shape:
            return result  # of groups of experts, or within them
        self.made += 1
        chosen = torch.where(self._experts == NONE, result[1], self._experts)
        return torch.return_types.topk((scores.gather(-1, chosen), chosen))
