"""How much of its peak rates a device reaches, by the shape of the work."""

from collections.abc import Mapping
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.planner.hardware.curve import Utilisation

ANY = "any"
"""The name of the curve of products that holds for every dtype without one of its own."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Curves of one device, and what each kernel costs whatever it does.

    A stage takes the larger of two times, and `launch_seconds` a kernel:
    FLOPs / (device.rate(dtype) * products(dtype).at(rows)) and
    bytes / (device.memory_bytes_per_second * ..._read.at(bytes)).
    """

    products: Mapping[str, Utilisation]  # of dense products' arithmetic, by rows; by weights' dtype
    expert_products: Mapping[str, Utilisation]  # the same of an expert's, by rows of one expert
    weights_read: Utilisation  # of memory, by bytes of one dense product's weights
    experts_read: Utilisation  # of memory, by bytes of all experts that one layer reads
    attention_read: Utilisation  # of memory, by bytes of KV that one layer reads
    copied: Utilisation  # of memory, by bytes that are read and written (rows gathered, scattered)
    link: Utilisation  # of `Device.link`, by bytes of one message
    nic: Utilisation  # of `Device.nic`, by bytes of one message
    launch_seconds: float  # that each kernel takes, also one without rows
    layer_seconds: float = 0.0  # beside kernels, of one stage of one micro-batch: the host's work
    step_seconds: float = 0.0  # once a step: scheduling, sampling, detokenising
    sequence_seconds: float = 0.0  # the same, once a step and sequence

    def __post_init__(self) -> None:
        for name in ("products", "expert_products"):
            if ANY not in getattr(self, name):
                raise ConfigError(f"{name} needs a curve named {ANY!r}, for all other dtypes")
        for name in ("launch_seconds", "layer_seconds", "step_seconds", "sequence_seconds"):
            if not 0 <= (seconds := getattr(self, name)) < 3600:
                raise ConfigError(f"{name} is {seconds}, but must be at least 0 and less than 3600")

    def product(self, dtype: str) -> Utilisation:
        """Of a dense product whose weights have this dtype, by rows."""
        return self.products.get(dtype, self.products[ANY])

    def expert_product(self, dtype: str) -> Utilisation:
        """Of an expert's products, by rows of one expert."""
        return self.expert_products.get(dtype, self.expert_products[ANY])
