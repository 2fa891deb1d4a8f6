"""Models of which each rank holds a part, by FSDP2 (https://arxiv.org/abs/2304.11277)."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from megainfer.rl.ranks.ranks import Ranks


def shard(model: nn.Module, inner: nn.Module, method: str, ranks: Ranks, device: str) -> None:
    """Keep this rank's part of each parameter, layer by layer; whole ones are there while their
    layer computes. Gradients become the sum over ranks.

    inner: transformers' part of the model, which knows its layers; method: what computes.
    """
    if ranks.world == 1:
        return
    mesh = init_device_mesh(device, (ranks.world,))
    layers = set(getattr(inner, "_no_split_modules", None) or ())  # transformers has no public name
    for module in list(inner.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a loss counts all ranks' tokens already
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sums with factors


def whole(tensor: Tensor) -> Tensor:
    """All ranks' parts together; every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> Mapping[str, Tensor]:
    """Its tensors by name, of which those that are tied stay one; every rank has to ask."""
    named = module.state_dict(keep_vars=True)
    wholes = {id(tensor): whole(tensor.detach()) for tensor in named.values()}
    return {name: wholes[id(tensor)] for name, tensor in named.items()}


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as a parameter's `like`, of which each rank has a part."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)
