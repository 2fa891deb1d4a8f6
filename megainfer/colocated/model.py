"""A model whose experts are where its attention is: a step goes through all layers at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megainfer.attention_node.model import AttentionModel, MoEPoint
from megainfer.checkpoint.reader import WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.colocated.chains import run_chain
from megainfer.compute.batch import StepBatch
from megainfer.compute.chain import Chain
from megainfer.compute.half import ModelHalf
from megainfer.compute.kv_cache import KVCache
from megainfer.compute.tokens import TokenKernels
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import MicroBatchClock, StageClock
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.spec import ModelSpec
from megainfer.topology import Placement

Forward = Callable[[int, Sequence[Dispatch], Sequence[Tensor]], None]
"""`ExpertModel.forward`."""


class ColocatedModel:
    """`attention_node.model.StepModel` with experts of its own; it never waits for any.

    The result is that of one attention and one expert node, bit for bit. Where the half
    has chains of layers, each goes through in a single call. expert_clock: where the experts' time
    is counted, as an expert node would count it.
    """

    def __init__(
        self,
        attention: AttentionModel,
        experts: ExpertModel,
        kv: KVCache,
        expert_clock: StageClock,
    ) -> None:
        self.spec: ModelSpec = attention.spec
        self.record = attention.record
        self._attention = attention
        self._experts = experts
        self._kv = kv
        self._expert_clock = expert_clock
        self.chains = self._chains()

    def _chains(self) -> Sequence[Chain]:
        """None where it is recorded what gates choose: chains don't tell."""
        if self.record is not None:
            return ()
        return self._attention.half.chains(self._experts.by_layer, self._kv)

    @property
    def half(self) -> ModelHalf:
        """The attention's."""
        return self._attention.half

    def place(self, placement: Placement) -> None:
        """See `StepModel.place`."""
        self._experts.enter(placement)
        self._attention.place(placement)

    def renewed(self, reader: WeightReader, placement: Placement) -> Switch:
        """See `StepModel.renewed`; both halves at once."""
        to_half = self._attention.renewed(reader, placement)
        to_experts = self._experts.renewed(reader, placement)

        def switch() -> None:
            to_half()
            to_experts()
            self.chains = self._chains()

        return switch

    def embed(self, batch: StepBatch) -> Tensor:
        """See `StepModel.embed`."""
        return self._attention.embed(batch)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `StepModel.logits`."""
        return self._attention.logits(x, rows)

    @property
    def tokens(self) -> TokenKernels:
        """See `StepModel.tokens`."""
        return self._attention.tokens

    def counters(self) -> dict[str, int]:
        """See `StepModel.counters`."""
        return self._attention.counters()

    def shared(self, layer: int, hidden: Tensor) -> Tensor | None:
        """See `StepModel.shared`."""
        return self._attention.shared(layer, hidden)

    @torch.inference_mode()
    def advance(
        self, x: Tensor, layer: int, batch: StepBatch, kv: KVCache, clock: MicroBatchClock
    ) -> MoEPoint | None:
        """Compute from `layer` to the end; never a MoEPoint."""
        assert kv is self._kv, "a colocated model is bound to one cache"
        while layer < len(self.spec.layers):
            chain = next((chain for chain in self.chains if layer in chain.layers), None)
            if chain is None:
                layer = self._to_next_experts(x, layer, batch, clock, self._experts.forward)
            else:
                of_experts = self._expert_clock.of(clock.micro_batch)
                run_chain(chain, x, layer, batch, clock, of_experts)
                layer = chain.layers.stop
        return None

    @torch.inference_mode()
    def through(self, x: Tensor, batch: StepBatch) -> None:
        """`advance` from the first layer to the last for whoever records it: nothing is timed, and
        what experts have served is counted in the end, at once."""
        counts, layer = list[Tensor](), 0

        def forward(layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> None:
            counts.append(self._experts.compute(layer, dispatches, outs))

        while layer < len(self.spec.layers):
            layer = self._to_next_experts(x, layer, batch, _NO_CLOCK, forward)
        self._experts.count_all(counts)

    def _to_next_experts(
        self, x: Tensor, layer: int, batch: StepBatch, clock: MicroBatchClock, forward: Forward
    ) -> int:
        point = self._attention.advance(x, layer, batch, self._kv, clock)
        if point is None:
            return len(self.spec.layers)
        out = torch.empty_like(point.hidden)
        with self._expert_clock.of(clock.micro_batch).span("expert", point.layer):
            forward(point.layer, [_everything(point, batch.count)], [out])
        with clock.span("shared", point.layer):
            shared = self._attention.shared(point.layer, point.hidden)
            if shared is not None:
                x += shared
        with clock.span("combine", point.layer):
            x += out
        return point.layer + 1


_NO_CLOCK = StageClock().of(0)


def _everything(point: MoEPoint, count: Tensor | None) -> Dispatch:
    """All rows as one message: each has its experts here. count: of those that aren't padding."""
    part = point.parts[0]
    return Dispatch(
        source=0,
        micro_batch=0,
        layer=point.layer,
        sequence=0,
        hidden=point.hidden,
        local_ids=part.local_ids,
        weights=part.weights,
        count=count,
    )
