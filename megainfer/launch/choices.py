"""What a wish leaves open about how nodes compute, decided by model and machine."""

from collections.abc import Sequence
from dataclasses import replace

from megainfer.compute.selection import IMPLEMENTATIONS, Precision, resolve_kernels
from megainfer.config import SCALING_LIMIT, EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.devices import Devices
from megainfer.launch.machine import Machine
from megainfer.models.quantization import QuantizationSpec
from megainfer.models.sources import FfnSources
from megainfer.models.spec import CACHE_FORMATS, ModelSpec
from megainfer.topology import (
    CoreAssignment,
    Socket,
    assign_cores,
    assign_cores_beside,
    assign_sockets,
    have_own_cores,
    join_cores,
    share_cores,
)


def choose_kernels(config: EngineConfig, devices: Devices) -> tuple[str, str]:
    """Of attention nodes and of expert nodes. Raises ConfigError."""
    if devices.attention and devices.experts:
        return "gpu", "gpu"
    on_cpu = resolve_kernels("auto" if config.kernels == "gpu" else config.kernels)
    return "gpu" if devices.attention else on_cpu, "gpu" if devices.experts else on_cpu


def choose_precision(
    config: EngineConfig,
    spec: ModelSpec,
    machine: Machine,
    devices: Devices,
    stored: str | None = None,
) -> Precision:
    """As asked for; `auto` is the checkpoint's own on GPUs, half precision being bfloat16; on the
    CPU its own bfloat16 where the cores have it, else float32. Of experts it is `stored`, see
    `stored_experts`, where they are in such a format.

    Raises ConfigError where the model's keys and values can't be kept so."""
    if devices.gpus:
        own = "float32" if spec.dtype == "float32" else "bfloat16"
    else:
        narrow = spec.dtype == "bfloat16" and machine.bfloat16_arithmetic
        own = "bfloat16" if narrow else "float32"
    dtype = own if config.dtype == "auto" else config.dtype
    experts = stored if stored and config.expert_dtype == "auto" else config.expert_dtype
    precision = Precision(dtype, experts, config.attention_dtype, config.kv_cache_dtype)
    _check_cache(precision, spec)
    return precision


def _check_cache(precision: Precision, spec: ModelSpec) -> None:
    if not CACHE_FORMATS[precision.cache_dtype].scale_bytes:
        return
    for index, layer in enumerate(spec.layers):
        if why := layer.attention.check_codes():
            raise ConfigError(
                f"--kv-cache-dtype {precision.cache_dtype} can't be had with this model's layer "
                f"{index}: {why}; use {precision.dtype} or auto"
            )


def stored_experts(
    spec: ModelSpec, kernels: tuple[str, str], quantization: QuantizationSpec | None, ranks: int = 1
) -> str | None:
    """How the checkpoint stores all experts, where the CPU kernels compute with them as they are
    stored. ranks: that share each; none keeps a group of inputs with two scales."""
    if quantization is None or kernels[1] != "cpu" or not quantization.kept_as:
        return None
    if ranks > 1 and not quantization.keeps_parts(spec.expert.intermediate // ranks):
        return None
    experts = (
        FfnSources(spec, layer).expert(expert)
        for layer in spec.moe_layers
        for expert in range(spec.num_experts)
    )
    pieces = (source for own in experts for source in (*own.gate_up(), *own.down()))
    names = {source.name.removesuffix(".weight") for source in pieces}
    return quantization.kept_as if all(map(quantization.quantises, names)) else None


def choose_micro_batches(
    config: EngineConfig, cores: tuple[CoreAssignment, ...], devices: Devices
) -> int | None:
    """The user's own m, or 1 where nothing can overlap: on the CPU, whoever works has the cores of
    the others too, and a second micro-batch would only read the experts twice. None: it takes a
    measurement."""
    if config.micro_batches is not None:
        return config.micro_batches
    overlaps = bool(devices.gpus) or have_own_cores(cores)
    return 1 if config.colocated or not overlaps else None


def choose_cores(
    config: EngineConfig, kernels: tuple[str, str], devices: Devices, machine: Machine
) -> tuple[CoreAssignment, ...]:
    """Of each node; its ranks share them. `auto`: one attention and one expert node whose single
    micro-batch is always on one side or the other take turns anyway, and each is faster with all
    cores, unless half of these are beside the other's memory. Torch's threads would be in each
    other's way: they stay awake for long. Beside a GPU, whose node needs one core, the CPU nodes
    have the others."""
    sockets = numa_sockets(config, machine)
    found = _cores(config, kernels, devices, machine.cores, sockets)
    return tuple(replace(each, near=bool(sockets)) for each in found)


def numa_sockets(config: EngineConfig, machine: Machine) -> tuple[Socket, ...]:
    """Those that processes are told apart by; none where all memory is alike."""
    return machine.sockets if config.numa != "off" and len(machine.sockets) > 1 else ()


def _cores(
    config: EngineConfig,
    kernels: tuple[str, str],
    devices: Devices,
    cores: tuple[int, ...],
    sockets: tuple[Socket, ...],
) -> tuple[CoreAssignment, ...]:
    if config.colocated:
        return share_cores(1, cores)
    num_nodes = config.attn_gpus + config.ffn_gpus
    own_threads = all(IMPLEMENTATIONS[name].own_threads for name in kernels)
    turns = num_nodes == 2 and config.micro_batches in (None, 1) and own_threads and not sockets
    if config.cores == "shared" or (config.cores == "auto" and turns):
        return share_cores(num_nodes, cores)
    ranks = config.attn_gpus * [config.attn_tp] + config.ffn_gpus * [config.ffn_tp]
    if devices.mixed:
        on_gpus = [bool(devices.attention)] * sum(ranks[: config.attn_gpus])
        on_gpus += [bool(devices.experts)] * sum(ranks[config.attn_gpus :])
        return join_cores(assign_cores_beside(on_gpus, cores), ranks)
    return join_cores(own_cores(sum(ranks), cores, sockets), ranks)


def own_cores(
    processes: int, cores: tuple[int, ...], sockets: Sequence[Socket]
) -> tuple[CoreAssignment, ...]:
    """Of each process, none of two sockets where it can be helped."""
    return assign_sockets(processes, sockets) if sockets else assign_cores(processes, cores)


def most_nodes(wish: int | None, least: int, fixed: bool) -> int:
    """Nodes of a role on the CPU that there may be once an instance serves."""
    if fixed:
        return least
    return max(least, SCALING_LIMIT) if wish is None else wish


def choose_max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    """Raises ConfigError."""
    if config.max_model_len == 1:
        raise ConfigError("--max-model-len 1 has no room for a prompt and an answer; use 2 or more")
    if config.max_model_len is None:
        return spec.max_position
    if config.max_model_len > spec.max_position:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the model's "
            f"max_position_embeddings of {spec.max_position}; use at most {spec.max_position}"
        )
    return config.max_model_len
