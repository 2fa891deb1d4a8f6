"""From a plan that is served to what hardware's figures say of it."""

from collections.abc import Mapping
from contextlib import suppress

from megainfer.errors import ConfigError
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role
from megainfer.planner.costs import ModelCosts
from megainfer.planner.hardware import Device, find_device
from megainfer.planner.live.expected import Hardware
from megainfer.planner.live.naming import BESIDE, COLOCATED, node_on_cpu
from megainfer.planner.search.deployment import Nodes
from megainfer.planner.search.model_stages import ModelStages


def expectation_of(plan: Plan, devices: Mapping[str, Device], name: str | None) -> Hardware:
    """devices: by name. name: of the machine that `calibrate` has measured, where nodes are on the
    CPU and devices tell of several; GPUs are found by their own names.

    Raises ConfigError for nodes whose hardware isn't described.
    """
    stages = ModelStages(ModelCosts.of(plan.spec, plan.precision))
    together = plan.config.colocated
    attention, experts = (
        _nodes(plan, devices, role, name, "") for role in (Role.ATTENTION, Role.EXPERT)
    )
    if together:
        return Hardware(stages, attention, experts, attention, experts, together=True)
    busy_attention, busy_experts = (
        _nodes(plan, devices, role, name, BESIDE) for role in (Role.ATTENTION, Role.EXPERT)
    )
    return Hardware(stages, attention, experts, busy_attention, busy_experts)


def _nodes(
    plan: Plan, devices: Mapping[str, Device], role: Role, name: str | None, busy: str
) -> Nodes:
    """busy: what the name of a CPU's device ends with; nothing else is measured where there are no
    other cores."""
    count = plan.num_attention if role is Role.ATTENTION else plan.num_expert
    gpu = plan.devices.of(role, 0)
    if gpu is not None:
        device = _gpu(devices, name or gpu.gpu.name.removeprefix("NVIDIA "))
    elif plan.config.colocated:
        device = node_on_cpu(devices, name, COLOCATED)
    else:
        attention = role is Role.ATTENTION
        own = plan.cores_of_attention(0) if attention else plan.cores_of_expert(0)
        device = node_on_cpu(devices, name, f"-{own.threads}")
        device = devices.get(device.name + busy, device)
    return Nodes(device, plan.ranks(role), count)


def _gpu(devices: Mapping[str, Device], name: str) -> Device:
    """The one whose name is the longest beginning of this one, in whole words: drivers tell of
    memory and sockets as well, as in "H100 80GB HBM3" or "A100-SXM4-80GB"."""
    words = name.replace("-", " ").split()
    for count in range(len(words), 0, -1):
        with suppress(ConfigError):
            return find_device(devices, " ".join(words[:count]))
    return find_device(devices, name)
