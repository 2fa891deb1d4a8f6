"""Linear attention with a recurrent state in one layer."""

from dataclasses import dataclass, replace

from megainfer.errors import ModelError
from megainfer.models.spec.cache import CacheFormat


@dataclass(frozen=True, slots=True)
class DeltaNetSpec:
    """Gated DeltaNet (Yang, Kautz and Hatamizadeh, 2024).

    Queries, keys and values go through a causal convolution of each channel by itself, over its
    last `taps` inputs, and silu; queries and keys then have length 1. Each value head has a state S
    [key_dim, value_dim], zero before the first token, that a token with decay a and rate b turns
    into

        S' = a S + k (b (v - (a S)^T k))^T

    and reads as S'^T q / sqrt(key_dim), which is RMS-normalised by head and gated with silu of a
    further projection. value_heads / key_heads neighbouring value heads share a query and a key.
    A sequence keeps the state and the last taps - 1 inputs of the convolution, whatever its length.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int

    def __post_init__(self) -> None:
        if self.value_heads % self.key_heads:
            raise ModelError(
                f"linear_num_value_heads {self.value_heads} is not a multiple of "
                f"linear_num_key_heads {self.key_heads}"
            )

    def of_rank(self, ranks: int) -> "DeltaNetSpec":
        """What each of so many ranks has of it: a part of the heads, with their states."""
        if ranks == 1:
            return self
        key_heads, value_heads = self.key_heads // ranks, self.value_heads // ranks
        return replace(self, key_heads=key_heads, value_heads=value_heads)

    def check_ranks(self, ranks: int) -> str | None:
        """Why it can't be shared by so many ranks; None: it can."""
        heads = self.key_heads
        return f"they don't divide its {heads} heads of keys" if heads % ranks else None

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values of all heads."""
        return 2 * self.key_size + self.value_size

    @property
    def cache_shapes(self) -> tuple[tuple[int, ...], ...]:
        """A token leaves nothing of its own."""
        return ()

    def cached_bytes(self, kept: CacheFormat) -> int:
        """As `cache_shapes`: nothing."""
        return 0

    def check_codes(self) -> str | None:
        """See `AttentionSpec.check_codes`; its states are float32 whatever the cache is."""
        return None

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of what a sequence keeps: the convolution's last inputs, oldest first, and S."""
        return (
            (self.taps - 1, self.channels),
            (self.value_heads, self.key_dim, self.value_dim),
        )
