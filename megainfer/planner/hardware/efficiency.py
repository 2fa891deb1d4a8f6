"""How much of its peak rates a device reaches, by the shape of the work."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megainfer.errors import ConfigError
from megainfer.planner.hardware.curve import Utilisation

ANY = "any"
"""The name of the curve that holds for every dtype without one of its own."""
Curves = Mapping[str, Utilisation]
"""By dtype: of weights, or of the KV cache. One is named ANY."""
BY_DTYPE = ("products", "expert_products", "attention_read")
BY_SIZE = ("weights_read", "experts_read", "copied", "link", "nic")
SECONDS = (
    *("launch_seconds", "attention_layer_seconds", "expert_layer_seconds"),
    *("attention_channel_seconds", "expert_channel_seconds"),
    *("step_seconds", "sequence_seconds"),
)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Curves of one device, and what each kernel costs whatever it does.

    A stage takes the larger of two times, and `launch_seconds` a kernel:
    FLOPs / (device.rate(dtype) * product(dtype).at(rows)) and
    bytes / (device.memory_bytes_per_second * weights_read.at(bytes)), or the like.
    """

    products: Curves = field(hash=False)  # of dense products' arithmetic, by rows
    expert_products: Curves = field(hash=False)  # the same of experts', by rows of one expert
    attention_read: Curves = field(hash=False)  # of memory, by bytes of KV that one layer reads
    weights_read: Utilisation  # of memory, by bytes of one dense product's weights
    experts_read: Utilisation  # of memory, by bytes of all experts that one layer reads
    copied: Utilisation  # of memory, by bytes that are read and written (rows gathered, scattered)
    link: Utilisation  # of `Device.link`, by bytes of one message
    nic: Utilisation  # of `Device.nic`, by bytes of one message
    launch_seconds: float  # that each kernel takes, also one without rows
    attention_layer_seconds: float = 0.0  # beside kernels, of one micro-batch: the host's work
    expert_layer_seconds: float = 0.0  # the same on an expert node
    # Of a layer beside products and caches, for each channel of a row's hidden state: norms,
    # rotation, choosing experts; on an expert node of each row that an expert has.
    attention_channel_seconds: float = 0.0
    expert_channel_seconds: float = 0.0
    step_seconds: float = 0.0  # once a step: scheduling, sampling, detokenising
    sequence_seconds: float = 0.0  # the same, once a step and sequence

    def __post_init__(self) -> None:
        for name in BY_DTYPE:
            if ANY not in getattr(self, name):
                raise ConfigError(f"{name} needs a curve named {ANY!r}, for all other dtypes")
        for name in SECONDS:
            if not 0 <= (seconds := getattr(self, name)) < 3600:
                raise ConfigError(f"{name} is {seconds}, but must be at least 0 and less than 3600")

    def product(self, dtype: str) -> Utilisation:
        """Of a dense product whose weights have this dtype, by rows."""
        return self.products.get(dtype, self.products[ANY])

    def expert_product(self, dtype: str) -> Utilisation:
        """Of an expert's products, by rows of one expert."""
        return self.expert_products.get(dtype, self.expert_products[ANY])

    def attention(self, dtype: str) -> Utilisation:
        """Of reading a KV cache of this dtype, by bytes that one layer reads."""
        return self.attention_read.get(dtype, self.attention_read[ANY])
