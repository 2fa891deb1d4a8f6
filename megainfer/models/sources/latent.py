"""The weights of one layer's multi-head latent attention."""

from dataclasses import dataclass

from megainfer.models.sources.indexer import IndexerSources
from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import MlaSpec, ModelSpec
from megainfer.models.stored import Pieces, Source, columns_of, rows_of
from megainfer.topology import WHOLE, Shard


@dataclass(frozen=True, slots=True)
class LatentSources:
    """The attention half of one layer whose keys and values come from a latent.

    q: from the queries' latent where they have one, else from the layer's input. shard: a rank's
    part of its heads; latents are every rank's own. What the output's bias adds, the first rank
    does.
    """

    spec: ModelSpec
    layer: int
    shard: Shard = WHOLE

    @property
    def attention(self) -> MlaSpec:
        """Of this rank."""
        return self._whole.of_rank(self.shard.ranks)

    @property
    def _whole(self) -> MlaSpec:
        attention = self.spec.layers[self.layer].attention
        assert isinstance(attention, MlaSpec)
        return attention

    def _own_heads(self, weight: Pieces, size: int) -> Pieces:
        return weight if self.shard == WHOLE else rows_of(weight, self.shard.of(size))

    def _vector(self, template: str, size: int) -> Pieces:
        return (Source(template.format(layer=self.layer), (size,)),)

    def _weight(self, template: str, outputs: int, inputs: int) -> Pieces:
        return (Source(template.format(layer=self.layer) + ".weight", (outputs, inputs)),)

    def _bias(self, template: str, size: int) -> Pieces:
        return self._vector(template + ".bias", size) if self.attention.bias else ()

    def norm(self) -> Pieces:
        return self._vector(self.spec.names.attention_norm, self.spec.hidden_size)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

    def q_down(self) -> Pieces:
        """Empty where queries have no latent, like its bias and norm."""
        rank = self.attention.q_lora_rank
        return (
            ()
            if rank is None
            else self._weight(self.spec.names.q_down, rank, self.spec.hidden_size)
        )

    def q_down_bias(self) -> Pieces:
        rank = self.attention.q_lora_rank
        return () if rank is None else self._bias(self.spec.names.q_down, rank)

    def q_latent_norm(self) -> Pieces:
        rank = self.attention.q_lora_rank
        return () if rank is None else self._vector(self.spec.names.q_latent_norm, rank)

    def q(self) -> Pieces:
        rank, q_size = self._whole.q_lora_rank, self._whole.q_size
        if rank is None:
            whole = self._weight(self.spec.names.qkv[0], q_size, self.spec.hidden_size)
        else:
            whole = self._weight(self.spec.names.q_up, q_size, rank)
        return self._own_heads(whole, q_size)

    def kv_down(self) -> Pieces:
        """The latent's rows, then those of the rotated key."""
        return self._weight(
            self.spec.names.kv_down, self.attention.latent_dim, self.spec.hidden_size
        )

    def kv_down_bias(self) -> Pieces:
        return self._bias(self.spec.names.kv_down, self.attention.latent_dim)

    def kv_latent_norm(self) -> Pieces:
        return self._vector(self.spec.names.kv_latent_norm, self.attention.kv_lora_rank)

    def kv_up(self) -> Pieces:
        """Head by head the rows of the key that isn't rotated, then those of the value."""
        a = self._whole
        if self.spec.names.kv_up_split is not None:
            return self._kv_up_by_head(*self.spec.names.kv_up_split)
        size = a.num_heads * (a.nope_dim + a.v_dim)
        return self._own_heads(self._weight(self.spec.names.kv_up, size, a.kv_lora_rank), size)

    def _kv_up_by_head(self, keys: str, values: str) -> Pieces:
        a = self._whole
        rank = a.kv_lora_rank
        names = [f"{name.format(layer=self.layer)}.weight" for name in (keys, values)]
        turned = (a.num_heads, rank, a.nope_dim)
        straight = (a.num_heads, a.v_dim, rank)
        return tuple(
            source
            for head in range(*self.shard.of(a.num_heads))
            for source in (
                Source(names[0], (a.nope_dim, rank), turned, head, transposed=True),
                Source(names[1], (a.v_dim, rank), straight, head),
            )
        )

    def out(self) -> Pieces:
        size = self._whole.num_heads * self._whole.v_dim
        whole = self._weight(self.spec.names.out, self.spec.hidden_size, size)
        return whole if self.shard == WHOLE else columns_of(whole, *self.shard.of(size))

    def out_bias(self) -> Pieces:
        return self._bias(self.spec.names.out, self.spec.hidden_size) if self.shard.leads else ()

    def indexer(self) -> IndexerSources | None:
        a = self.attention
        if a.indexer is None:
            return None
        assert a.q_lora_rank is not None
        return IndexerSources(self.spec, self.layer, a.indexer, a.q_lora_rank, a.rope_dim)

    def all(self) -> Pieces:
        indexer = self.indexer()
        return (
            *self.norm(),
            *self.norm_bias(),
            *self.q_down(),
            *self.q_down_bias(),
            *self.q_latent_norm(),
            *self.q(),
            *self.kv_down(),
            *self.kv_down_bias(),
            *self.kv_latent_norm(),
            *self.kv_up(),
            *self.out(),
            *self.out_bias(),
            *(indexer.all() if indexer else ()),
        )
