"""Whether a model can be shared among so many ranks, said before anything is started."""

from collections.abc import Callable, Sequence

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.devices import Devices, NodeGpus
from megainfer.models.spec import DenseSpec, ModelSpec, MoESpec, SharedExpertSpec
from megainfer.ranks import native_library

MOST_RANKS = 64


def check_ranks(config: EngineConfig, spec: ModelSpec, devices: Devices, kernels: str) -> None:
    """kernels: of attention nodes. Raises ConfigError.

    Any part of a quantised weight can be had: what is on disk becomes float32, all of a line of it,
    before a rank's part is kept in the format that it computes with. So blocks of a checkpoint's
    codes needn't end where a part does.
    """
    if config.ffn_tp > 1:
        native_library.load()
        _check_gpus("--ffn-tp", config.ffn_tp, devices.experts)
        _check_size("--ffn-tp", config.ffn_tp, spec, _of_experts)
    if config.attn_tp > 1:
        native_library.load()
        _check_gpus("--attn-tp", config.attn_tp, devices.attention)
        if kernels == "reference":
            raise ConfigError(
                f"--attn-tp {config.attn_tp} needs the kernels for CPUs or GPUs, but --kernels "
                "reference serves on attention nodes; use --kernels cpu, or --attn-tp 1"
            )
        _check_size("--attn-tp", config.attn_tp, spec, _of_halves)


def _check_gpus(option: str, ranks: int, nodes: Sequence[NodeGpus]) -> None:
    """NCCL has one rank on a GPU."""
    for gpus in nodes:
        if len(set(gpus)) < len(gpus):
            numbers = ",".join(str(gpu.number) for gpu in gpus)
            raise ConfigError(
                f"{option} {ranks} needs a GPU for each rank of a node, but --gpus gives one node "
                f"{numbers}; name others, or use {option} 1"
            )


def _check_size(
    option: str, ranks: int, spec: ModelSpec, why_not: Callable[[ModelSpec, int], str | None]
) -> None:
    problem = why_not(spec, ranks)
    if problem is None:
        return
    possible = [each for each in range(1, MOST_RANKS + 1) if why_not(spec, each) is None]
    nearest = min(possible or [1], key=lambda each: (abs(each - ranks), each))
    raise ConfigError(f"{option} {ranks}: {problem}; use {option} {nearest}")


def _of_experts(spec: ModelSpec, ranks: int) -> str | None:
    channels = spec.expert.intermediate
    if channels % ranks:
        return f"that many ranks don't divide the {channels} channels of this model's experts"
    return None


def _of_halves(spec: ModelSpec, ranks: int) -> str | None:
    if ranks == 1:
        return None
    for number, layer in enumerate(spec.layers):
        if (problem := layer.attention.check_ranks(ranks)) is not None:
            return f"layer {number}'s attention can't be shared by so many ranks: {problem}"
        name, network = _network(layer.ffn)
        if network is not None and network.intermediate % ranks:
            return (
                f"that many ranks don't divide the {network.intermediate} channels of layer "
                f"{number}'s {name}"
            )
    if spec.vocab_size < ranks:
        return f"a vocabulary of {spec.vocab_size} tokens has fewer than that"
    return None


def _network(ffn: DenseSpec | MoESpec) -> tuple[str, DenseSpec | SharedExpertSpec | None]:
    """What of it every token goes through, by its name."""
    if isinstance(ffn, DenseSpec):
        return "dense network", ffn
    return "shared expert", ffn.shared
