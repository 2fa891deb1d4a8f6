"""Which node computes on which GPU, decided from a wish and a machine's list of GPUs."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from megainfer.config import CPU_KERNELS, EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.machine import Machine
from megainfer.launch.nvml import Gpu
from megainfer.messages.message import Role

logger = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)
"""bfloat16 tensor cores, and cp.async, by which kernels are pipelined."""


_HELPS = "use --device cpu"


@dataclass(frozen=True, slots=True)
class NumberedGpu:
    """number: what `--gpus` and messages call it. host: by name, "" where there is only one.
    there: whether that host, when it last joined, still offered it to the node that has it."""

    number: int
    gpu: Gpu
    host: str = ""
    there: bool = True

    @property
    def place(self) -> tuple[str, str]:
        """Which GPU of which host, however much of it is free."""
        return self.host, self.gpu.uuid

    def __str__(self) -> str:
        return f"GPU {self.number}{self.host and f' of {self.host}'} ({self.gpu.name})"


NodeGpus = tuple[NumberedGpu, ...]
"""Of each of a node's ranks, in order."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The GPUs of each node that there may be, by its index; () of a role on the CPU. spare: others
    of several hosts, which have none."""

    attention: tuple[NodeGpus, ...] = ()
    experts: tuple[NodeGpus, ...] = ()
    spare: tuple[NumberedGpu, ...] = ()

    @property
    def gpus(self) -> tuple[NumberedGpu, ...]:
        """All of them, each once, attention nodes' first."""
        return tuple(dict.fromkeys(chain(*self.attention, *self.experts)))

    def beside(self, own: NumberedGpu) -> tuple[NumberedGpu, ...]:
        """The others of its host that nodes may be on, each once, those of nodes first. None that
        isn't there or can't compute: CUDA sees nothing that is named behind one that it can't
        find."""
        every = {
            gpu.place: gpu
            for gpu in (*self.gpus, *self.spare)
            if gpu.host == own.host and gpu.there and not unfitness(gpu)
        }
        every.pop(own.place, None)
        return tuple(every.values())

    def moved(
        self, role: Role, node: int, gpus: NodeGpus, more: Sequence[NumberedGpu] = ()
    ) -> "Devices":
        """The same with these GPUs for a node; what it had is spare, and what there is more."""
        own = [*(self.attention if role is Role.ATTENTION else self.experts)]
        spare, own[node] = (*self.spare, *own[node], *more), gpus
        if role is Role.ATTENTION:
            return replace(self, attention=tuple(own)).with_spare(spare)
        return replace(self, experts=tuple(own)).with_spare(spare)

    def with_spare(self, gpus: Iterable[NumberedGpu]) -> "Devices":
        """The same with those of these spare, each once, that are there and no node has."""
        had = {gpu.place for gpu in self.gpus if gpu.there}
        spare = {gpu.place: gpu for gpu in gpus if gpu.there and gpu.place not in had}
        return replace(self, spare=tuple(spare.values()))

    @property
    def mixed(self) -> bool:
        """Whether one role computes on GPUs and the other on the CPU."""
        return bool(self.attention) != bool(self.experts)

    def of(self, role: Role, node: int, rank: int = 0) -> NumberedGpu | None:
        """The GPU of this rank of a node; None of one on the CPU."""
        gpus = self.of_ranks(role, node)
        return gpus[rank] if gpus else None

    def of_ranks(self, role: Role, node: int) -> NodeGpus:
        """Of all ranks of a node; () of one on the CPU."""
        nodes = self.attention if role is Role.ATTENTION else self.experts
        return nodes[node] if nodes else ()


ON_CPU = Devices()


def choose_devices(config: EngineConfig, machine: Machine) -> Devices:
    """The first attention node gets the first GPUs, one for each of its ranks, the next node those
    behind, expert nodes those behind all of these; with room for nodes that may join.

    Raises ConfigError for GPUs that aren't there, aren't enough or can't compute.
    """
    roles = roles_on_gpus(config, _usable(config, machine), machine.gpu_problem)
    if not roles:
        return ON_CPU
    m, n = most_on_gpus(config, roles)
    if config.colocated:
        (only,) = _chosen(config, machine, 1)
        return Devices(((only,),), ((only,),))
    of_attention = m * config.attn_tp
    chosen = _chosen(config, machine, of_attention + n * config.ffn_tp)
    return Devices(
        _by_node(chosen[:of_attention], config.attn_tp),
        _by_node(chosen[of_attention:], config.ffn_tp),
    )


def _by_node(gpus: NodeGpus, ranks: int) -> tuple[NodeGpus, ...]:
    return tuple(gpus[first : first + ranks] for first in range(0, len(gpus), ranks))


def roles_on_gpus(config: EngineConfig, usable: bool, problem: str) -> tuple[Role, ...]:
    """Which roles compute on GPUs. usable: whether some can be had; problem: why not. Raises
    ConfigError for what can't be."""
    attention = _on_gpus(config, "attn_device", usable)
    experts = _on_gpus(config, "ffn_device", usable)
    if config.colocated and attention != experts:
        raise ConfigError(
            "--colocated computes both roles on one device; --attn-device and --ffn-device must "
            "then be the same"
        )
    _check_kernels(config, attention, experts)
    if attention and config.enable_return_routed_experts:
        raise ConfigError(
            "--enable-return-routed-experts is for attention nodes on CPUs; use --attn-device cpu, "
            "or leave it out"
        )
    if not (attention or experts):
        if config.gpus is not None:
            raise ConfigError(
                f"--gpus {_numbers(config.gpus)} chooses GPUs, but no node computes on one; use "
                "--device cuda"
            )
        return ()
    if not usable:
        raise ConfigError(f"no GPU can be used: {problem or 'there is none'}; {_HELPS}")
    roles = {Role.ATTENTION: attention, Role.EXPERT: experts}
    return tuple(role for role, on_gpus in roles.items() if on_gpus)


def most_on_gpus(config: EngineConfig, roles: Sequence[Role]) -> tuple[int, int]:
    """Attention and expert nodes that there may be on GPUs, where these roles are."""
    m = _most(config.attn_gpus, config.max_attn_gpus) if Role.ATTENTION in roles else 0
    n = _most(config.ffn_gpus, config.max_ffn_gpus) if Role.EXPERT in roles else 0
    return m, n


def _most(count: int, most: int | None) -> int:
    """Nodes of a role that there may be, where each has a GPU."""
    return count if most is None else most


def _usable(config: EngineConfig, machine: Machine) -> bool:
    """Whether nodes can compute on GPUs here; says so where that isn't for want of one."""
    if machine.gpus and machine.gpu_problem and config.device == "auto":
        logger.warning("the GPUs of this machine can't be used: %s", machine.gpu_problem)
    return bool(machine.gpus) and not machine.gpu_problem


def _on_gpus(config: EngineConfig, role: str, usable: bool) -> bool:
    own: str | None = getattr(config, role)
    wish = config.device if own is None else own
    if wish == "auto":
        return config.kernels == "gpu" or (usable and config.kernels not in CPU_KERNELS)
    return wish == "cuda"


def _check_kernels(config: EngineConfig, attention: bool, experts: bool) -> None:
    if config.kernels in CPU_KERNELS and attention and experts:
        raise ConfigError(
            f"--kernels {config.kernels} computes on the CPU, but nodes are to be on GPUs; "
            f"{_HELPS}, or --kernels gpu"
        )
    if config.kernels == "gpu" and not (attention or experts):
        raise ConfigError("--kernels gpu computes on GPUs; use --device cuda, or --kernels cpu")


def _chosen(config: EngineConfig, machine: Machine, processes: int) -> NodeGpus:
    """One for each of so many processes."""
    there = len(machine.gpus)
    numbers = range(there) if config.gpus is None else config.gpus
    if len(numbers) < processes:
        if max(config.attn_tp, config.ffn_tp) > 1:  # NCCL has one rank on a GPU
            remedy = "nodes or ranks"
        else:
            doubled = _numbers([number % there for number in range(processes)])
            remedy = f"nodes, --gpus {doubled} for several on one,"
        raise ConfigError(
            f"{wish_of_nodes(config)} {'need' if processes > 1 else 'needs'} {processes} GPUs, but "
            f"{_supply(config, there)}; use fewer {remedy} or --device cpu"
        )
    return tuple(_checked(number, machine) for number in numbers[:processes])


def _checked(number: int, machine: Machine) -> NumberedGpu:
    if number >= len(machine.gpus):
        raise ConfigError(
            f"--gpus names GPU {number}, but this machine has {len(machine.gpus)}, from 0 on"
        )
    return fit_to_compute(NumberedGpu(number, machine.gpus[number]))


def fit_to_compute(chosen: NumberedGpu) -> NumberedGpu:
    """This one. Raises ConfigError where nothing can be computed on it."""
    if problem := unfitness(chosen):
        raise ConfigError(f"{chosen} {problem}, or another by --gpus")
    return chosen


def unfitness(chosen: NumberedGpu) -> str:
    """Why nothing can be computed on it, and what helps; "" where it can."""
    if chosen.gpu.capability < LEAST_CAPABILITY:
        return (
            f"is of {chosen.gpu.architecture}; the kernels need sm_80 (Ampere) or later; {_HELPS}"
        )
    if chosen.gpu.split:
        return (
            "is split into instances (MIG), which isn't supported; switch that off "
            "(nvidia-smi -mig 0)"
        )
    return ""


def wish_of_nodes(config: EngineConfig) -> str:
    """How many of each role were asked for, in words."""
    names = (
        ("attn", config.attn_gpus, config.max_attn_gpus, config.attn_tp),
        ("ffn", config.ffn_gpus, config.max_ffn_gpus, config.ffn_tp),
    )
    return " and ".join(
        f"--{name}-gpus {count}"
        + (f" (at most {most})" if most is not None else "")
        + (f" with --{name}-tp {ranks}" if ranks > 1 else "")
        for name, count, most, ranks in names
    )


def _supply(config: EngineConfig, there: int) -> str:
    if config.gpus is None:
        return f"this machine has {there}"
    return f"--gpus {_numbers(config.gpus)} names {len(config.gpus)}"


def _numbers(numbers: "tuple[int, ...] | list[int]") -> str:
    return ",".join(map(str, numbers))
