"""What a token's keys and values are cached in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """Bytes of a channel, and of a scale: what is kept in eight bits has one of each key, value and
    head, latents one of `LATENT_GROUP` channels and one of the rotated key."""

    element_bytes: int
    scale_bytes: int = 0


LATENT_GROUP = 128
"""Of the CPU kernels: `latent_group` of level.h."""
CACHE_FORMATS = {
    "float32": CacheFormat(4),
    "bfloat16": CacheFormat(2),
    "int8": CacheFormat(1, 2),
    "fp8": CacheFormat(1, 2),
}
"""By the names of `config.KV_CACHE_DTYPES`."""
