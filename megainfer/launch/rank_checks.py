"""Whether a model's experts can be shared among so many ranks, said before anything is started."""

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.devices import Devices
from megainfer.models.spec import ModelSpec
from megainfer.ranks import native_library


def check_ranks(config: EngineConfig, spec: ModelSpec, devices: Devices) -> None:
    """Raises ConfigError.

    Any part of a quantised weight can be had: what is on disk becomes float32, all of a line of it,
    before a rank's part is kept in the format that it computes with. So blocks of a checkpoint's
    codes needn't end where a part does.
    """
    if config.ffn_tp == 1:
        return
    if devices.experts:
        raise ConfigError(
            f"--ffn-tp {config.ffn_tp} splits expert nodes on CPUs, but these compute on GPUs; use "
            "--ffn-device cpu, or --ffn-tp 1"
        )
    native_library.load()
    channels = spec.expert.intermediate
    if channels % config.ffn_tp:
        raise ConfigError(
            f"--ffn-tp {config.ffn_tp} doesn't divide the {channels} intermediate channels of "
            f"this model's experts; use --ffn-tp {nearest_divisor(channels, config.ffn_tp)}"
        )


def nearest_divisor(size: int, wish: int) -> int:
    """The divisor of `size` that is the nearest to `wish`, the smaller of two.

    >>> nearest_divisor(768, 5), nearest_divisor(48, 7), nearest_divisor(7, 3)
    (4, 6, 1)
    """
    divisors = [each for each in range(1, size + 1) if size % each == 0]
    return min(divisors, key=lambda each: (abs(each - wish), each))
