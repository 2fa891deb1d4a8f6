"""Multi-head latent attention in torch."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.batch import StepBatch
from megainfer.compute.latent_weights import rotated_apart, up_by_head
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.reference.indexer import Asked, Indexer
from megainfer.compute.reference.norm import Norm
from megainfer.models.sources import LatentSources, Pieces
from megainfer.models.spec import MlaSpec


class Queries:
    """From a layer's input to its heads' queries, through their own latent where they have one."""

    def __init__(self, sources: LatentSources, reader: WeightReader, dtype: torch.dtype) -> None:
        self._spec = spec = sources.attention
        self._down = _optional(reader, sources.q_down(), dtype)
        self._down_bias = _optional(reader, sources.q_down_bias(), dtype)
        self._norm = _optional(reader, sources.q_latent_norm(), dtype)
        self._up = rotated_apart(spec, reader.load(sources.q(), dtype), spec.qk_dim)

    def latent(self, hidden: Tensor) -> Tensor:
        """What queries are projected from; the input itself where they have no latent."""
        if self._down is None or self._norm is None:
            return hidden
        latent = linear(hidden, self._down, self._down_bias)
        return kernels.rms_norm(latent, self._norm, self._spec.latent_eps)

    def heads(self, latent: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """Of each head what isn't rotated [T, H, n], and what is [T, H, r]."""
        q = linear(latent, self._up).view(len(latent), -1, self._spec.qk_dim)
        plain, rotated = q.split_with_sizes([self._spec.nope_dim, self._spec.rope_dim], -1)
        return plain, kernels.rotate(rotated, factors)


class LatentAttention:
    """Multi-head latent attention over the paged cache, its input norm included."""

    def __init__(
        self, sources: LatentSources, reader: WeightReader, rotary: Tensor, dtype: torch.dtype
    ) -> None:
        """dtype: what it computes in; the cache may be narrower."""
        self._spec = spec = sources.attention
        self._rotary = rotary
        self._norm = Norm(sources.spec.norm, sources.norm(), sources.norm_bias(), reader, dtype)
        self._queries = Queries(sources, reader, dtype)
        down = reader.load(sources.kv_down(), dtype)
        self._down = rotated_apart(spec, down, spec.latent_dim)
        bias = _optional(reader, sources.kv_down_bias(), dtype)
        self._down_bias = None if bias is None else rotated_apart(spec, bias, spec.latent_dim)
        self._latent_norm = reader.load(sources.kv_latent_norm(), dtype)
        self._up = reader.load(sources.kv_up(), dtype)
        self._key_up, self._value_up = up_by_head(spec, self._up)
        index = sources.indexer()
        self._indexer = Indexer(index, reader, dtype) if index else None
        self._out = reader.load(sources.out(), dtype)
        self._out_bias = _optional(reader, sources.out_bias(), dtype)

    def forward(self, x: Tensor, batch: StepBatch, caches: tuple[Tensor, ...]) -> Tensor:
        """What is added to x [T, D]; the latents and keys of x's tokens go into the cache."""
        hidden, factors = self._norm(x), self._rotary[batch.positions]
        cache = caches[0]
        latents = self._latents(hidden, factors)
        kernels.write_cache(cache, latents.to(cache.dtype), batch.kept_at)
        q_latent = self._queries.latent(hidden)
        asked = None
        if self._indexer is not None:
            asked = self._indexer.ask(hidden, q_latent, factors, caches[1], batch.kept_at)
        q, rotated = self._queries.heads(q_latent, factors)
        found = self._attend(q, rotated, cache, batch, asked)
        return linear(found.flatten(1), self._out, self._out_bias)

    def _latents(self, hidden: Tensor, factors: Tensor) -> Tensor:
        """What each token leaves, [T, R + r]: its normalised latent and its rotated key."""
        sizes = [self._spec.kv_lora_rank, self._spec.rope_dim]
        down = linear(hidden, self._down, self._down_bias)
        latent, key = down.split_with_sizes(sizes, -1)
        latent = kernels.rms_norm(latent, self._latent_norm, self._spec.latent_eps)
        return torch.cat((latent, kernels.rotate(key[:, None], factors)[:, 0]), -1)

    def _attend(
        self, q: Tensor, rotated: Tensor, cache: Tensor, batch: StepBatch, asked: Asked | None
    ) -> Tensor:
        """Attention of all rows, [T, H, v]: the decodes together, each prefill by itself.

        asked: what says which of the positions that a row sees it attends to; all where None.
        """
        results = []
        if batch.decodes is not None:
            table, visible = batch.decodes.block_table, batch.decodes.mask[:, 0]
            latents = kernels.gather_latents(cache, table, visible).to(q.dtype)
            rows = slice(len(table))
            if asked is not None:
                visible = asked.chosen(rows, table, visible)
            results.append(self._absorbed(q[rows, None], rotated[rows, None], latents, visible))
        for part in batch.prefills:
            rows = slice(part.start, part.stop)
            visible = torch.arange(part.context, device=q.device) <= batch.positions[rows, None]
            latents = kernels.gather_latents(cache, part.blocks[None], visible[None]).to(q.dtype)
            if asked is not None:
                visible = asked.chosen(rows, part.blocks[None], visible[None])[0]
            results.append(self._prefill(q[rows], rotated[rows], latents, visible))
        return torch.cat([result.flatten(0, -3) for result in results])

    def _prefill(self, q: Tensor, rotated: Tensor, latents: Tensor, visible: Tensor) -> Tensor:
        """Of one sequence's rows, by whichever form takes fewer multiplications."""
        if expansion_pays(self._spec, *visible.shape):
            return self._expanded(q, rotated, latents[0], visible)
        return self._absorbed(q[None], rotated[None], latents, visible[None])

    def _absorbed(self, q: Tensor, rotated: Tensor, latents: Tensor, visible: Tensor) -> Tensor:
        """q: [S, T, H, n], rotated: [S, T, H, r], latents: [S, L, R + r] -> [S, T, H, v]."""
        spec = self._spec
        projected = torch.einsum("sthn,hnr->sthr", q, self._key_up)
        queries = torch.cat((projected, rotated), -1)
        found = kernels.absorbed_attention(queries, latents, visible, spec.kv_lora_rank, spec.scale)
        return torch.einsum("sthr,hvr->sthv", found, self._value_up)

    def _expanded(self, q: Tensor, rotated: Tensor, latents: Tensor, visible: Tensor) -> Tensor:
        """q: [T, H, n], rotated: [T, H, r], latents: [L, R + r] -> [T, H, v]."""
        spec = self._spec
        latent, key = latents.split_with_sizes([spec.kv_lora_rank, spec.rope_dim], -1)
        both = linear(latent, self._up).view(len(latent), spec.num_heads, -1)
        plain, values = both.split_with_sizes([spec.nope_dim, spec.v_dim], -1)
        keys = torch.cat((plain, key[:, None].expand(-1, spec.num_heads, -1)), -1)
        queries = torch.cat((q, rotated), -1)
        return kernels.expanded_attention(queries, keys, values, visible, spec.scale)


def expansion_pays(spec: MlaSpec, tokens: int, context: int) -> bool:
    """Whether these many queries are cheaper with the context's keys and values expanded.

    Multiplications a head: absorbed, each query is projected to a latent and what it finds from
    one, R (n + v), and meets each row of the context with 2 R + r; expanded, each row of the
    context is projected, R (n + v), and met with n + r + v. That pays from about 170 tokens a chunk
    on with DeepSeek-V3's sizes, and for a prompt from its beginning always.
    """
    projection = spec.kv_lora_rank * (spec.nope_dim + spec.v_dim)
    absorbed = tokens * (projection + context * (spec.kv_lora_rank + spec.latent_dim))
    return context * (projection + tokens * (spec.qk_dim + spec.v_dim)) < absorbed


def _optional(reader: WeightReader, pieces: Pieces, dtype: torch.dtype) -> Tensor | None:
    return reader.load(pieces, dtype) if pieces else None
