"""Whether a model can be shared among so many ranks, said before anything is started."""

from collections.abc import Callable

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.devices import Devices
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
        _check_device("--ffn-tp", config.ffn_tp, "expert", bool(devices.experts))
        _check_size("--ffn-tp", config.ffn_tp, spec, _of_experts)
    if config.attn_tp > 1:
        _check_device("--attn-tp", config.attn_tp, "attention", bool(devices.attention))
        if kernels != "cpu":
            raise ConfigError(
                f"--attn-tp {config.attn_tp} needs the CPU kernels, but --kernels {kernels} serves "
                "on attention nodes; use --kernels cpu, or --attn-tp 1"
            )
        _check_size("--attn-tp", config.attn_tp, spec, _of_halves)


def _check_device(option: str, ranks: int, role: str, on_gpus: bool) -> None:
    if on_gpus:
        short = "attn" if role == "attention" else "ffn"
        raise ConfigError(
            f"{option} {ranks} splits {role} nodes on CPUs, but these compute on GPUs; use "
            f"--{short}-device cpu, or {option} 1"
        )
    native_library.load()


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
