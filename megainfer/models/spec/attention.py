"""The attention of one layer."""

from dataclasses import dataclass, replace
from enum import StrEnum

from megainfer.errors import ModelError
from megainfer.models.spec.cache import LATENT_GROUP, CacheFormat
from megainfer.models.spec.indexer import IndexerSpec
from megainfer.models.spec.rope import RopeSpec


class QkNorm(StrEnum):
    """Whether queries and keys are RMS-normalised, and over what."""

    NONE = "none"
    HEAD = "head"  # each head by itself, one weight [d] for all heads
    FULL = "full"  # all heads together, a weight as long as the projection
    UNIT = "unit"  # each head by itself, without a weight


@dataclass(frozen=True, slots=True)
class QueryTemperature:
    """Queries at position p are multiplied with 1 + scale * ln(1 + floor((p + 1) / floor)).

    After the paper on scalable softmax (Nakanishi, 2025), as Llama 4 does in layers without
    positions.
    """

    floor: float
    scale: float


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Softmax attention with grouped key and value heads.

    rope: None where positions don't enter. norm_after_rope: queries and keys are normalised after
    they were rotated. clip_qkv: q, k and v are clamped to [-clip, clip]. scale: what scores are
    multiplied with, 1 / sqrt(head_dim) where None. sinks: each head has a learned score that takes
    part in the softmax and has no value (Xiao et al., 2023; gpt-oss). window: a query sees this
    many positions, its own included. chunk: a query sees the positions of its own chunk of so many
    only. gated: the output is multiplied with sigmoid of a second projection, head by head, which
    is stored behind each head's query.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    clip_qkv: float | None = None
    norm_after_rope: bool = False
    scale: float | None = None
    sinks: bool = False
    window: int | None = None
    chunk: int | None = None
    temperature: QueryTemperature | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.norm_after_rope and self.qk_norm is QkNorm.FULL:
            raise ModelError("norms over all heads of a query come before its rotation")
        if self.rope is not None:
            self.rope.check(self.rotary_dim)

    def of_rank(self, ranks: int) -> "AttentionSpec":
        """What each of so many ranks has of it: a part of the heads, with their keys and values;
        where there are fewer of these than ranks, neighbours have the same one."""
        if ranks == 1:
            return self
        heads, kv_heads = self.num_heads // ranks, max(1, self.num_kv_heads // ranks)
        return replace(self, num_heads=heads, num_kv_heads=kv_heads)

    def check_ranks(self, ranks: int) -> str | None:
        """Why it can't be shared by so many ranks; None: it can."""
        if self.qk_norm is QkNorm.FULL:
            return "its queries and keys are normalised over all heads together"
        kv_heads = self.num_kv_heads
        if self.num_heads % ranks:
            return f"they don't divide its {self.num_heads} heads"
        if kv_heads % ranks and ranks % kv_heads:
            return f"they neither divide its {kv_heads} heads of keys nor are a multiple of them"
        return None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        if self.rope is None:
            return 0
        return self.head_dim if self.rope.rotated is None else self.rope.rotated

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Outputs of the projections: queries, with the gate where there is one, keys, values."""
        return (self.q_size * (2 if self.gated else 1), self.kv_size, self.kv_size)

    @property
    def score_scale(self) -> float:
        """What scores are multiplied with."""
        return float(self.head_dim**-0.5) if self.scale is None else self.scale

    @property
    def cache_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of what one token leaves in the cache, a tensor each: here its key, its value."""
        head_shape = (self.num_kv_heads, self.head_dim)
        return (head_shape, head_shape)

    def cached_bytes(self, kept: CacheFormat) -> int:
        """What one token leaves in the cache."""
        head = self.head_dim * kept.element_bytes + kept.scale_bytes
        return 2 * self.num_kv_heads * head

    def check_codes(self) -> str | None:
        """Why what a token leaves can't be kept in eight bits; None: it can."""
        d = self.head_dim
        return f"its heads' {d} channels aren't a multiple of 4" if d % 4 else None


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2): keys and values are projected from one latent.

    A token leaves its normalised latent [kv_lora_rank] and one rotated key [rope_dim], shared by
    all heads. q_lora_rank: of the queries' own latent; None where they are projected at once. A
    head's query is nope_dim channels, not rotated, then rope_dim that are; its value has v_dim.
    scale: what scores are multiplied with. bias: the projections to both latents and the one of the
    output have one. interleaved: on disk, channels 2i and 2i + 1 are rotated together; loading
    moves them half apart, of queries and keys alike, which changes no score. latent_eps: of the
    latents' norms, which config.json says nothing of. indexer: None where a query attends to all
    that it sees.
    """

    num_heads: int
    kv_lora_rank: int
    q_lora_rank: int | None
    nope_dim: int
    rope_dim: int
    v_dim: int
    rope: RopeSpec
    scale: float
    bias: bool = False
    interleaved: bool = True
    latent_eps: float = 1e-6
    indexer: IndexerSpec | None = None

    def __post_init__(self) -> None:
        self.rope.check(self.rope_dim)
        if self.indexer is not None:
            self.indexer.check(self.rope_dim)
            if self.q_lora_rank is None:
                raise ModelError("q_lora_rank is missing, which an indexer's queries come from")

    def of_rank(self, ranks: int) -> "MlaSpec":
        """What each of so many ranks has of it: a part of the heads; latents are all of it."""
        if ranks == 1:
            return self
        return replace(self, num_heads=self.num_heads // ranks)

    def check_ranks(self, ranks: int) -> str | None:
        """Why it can't be shared by so many ranks; None: it can."""
        if self.indexer is not None:
            return "its indexer chooses positions by all of its heads together"
        return f"they don't divide its {self.num_heads} heads" if self.num_heads % ranks else None

    @property
    def q_size(self) -> int:
        return self.num_heads * self.qk_dim

    @property
    def qk_dim(self) -> int:
        """Channels of a head's query."""
        return self.nope_dim + self.rope_dim

    @property
    def latent_dim(self) -> int:
        """Channels of what a token leaves: its latent, then its rotated key."""
        return self.kv_lora_rank + self.rope_dim

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        return self.rope_dim

    @property
    def cache_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of what one token leaves in the cache: its latent and its rotated key as one, and
        the indexer's key where there is one."""
        indexer = () if self.indexer is None else ((self.indexer.head_dim,),)
        return ((self.latent_dim,), *indexer)

    def cached_bytes(self, kept: CacheFormat) -> int:
        """What one token leaves in the cache."""
        scales = -(-self.kv_lora_rank // LATENT_GROUP) + 1
        indexer = 0 if self.indexer is None else self.indexer.head_dim
        return (self.latent_dim + indexer) * kept.element_bytes + scales * kept.scale_bytes

    def check_codes(self) -> str | None:
        """Why what a token leaves can't be kept in eight bits; None: it can."""
        return None if self.indexer is None else "its indexer chooses positions by what is cached"
