"""The expert node's share of a model: the routed experts of every MoE layer that live here.

With tensor parallelism a rank has a part of each of these experts, all have the same ones, and what
they compute is the sum over all ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from threading import Lock

from torch import Tensor

from megainfer.checkpoint.reader import WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.compute.backend import Backend
from megainfer.compute.chain import CountedExperts
from megainfer.compute.experts import ExpertsShape, LayerExperts
from megainfer.device import OnGraph, Recordings
from megainfer.errors import ConfigError
from megainfer.expert_node.loading import load_experts_into
from megainfer.expert_node.other_ranks import ALONE, Rank
from megainfer.expert_node.stage_graphs import StageBounds, StageGraphs
from megainfer.expert_node.tally import PerExpert, Tally
from megainfer.m2n.mailbox import Dispatch
from megainfer.models.sources import FfnSources
from megainfer.models.spec import ModelSpec
from megainfer.topology import EMPTY, WHOLE, Placement, Shard

Place = tuple[int, int]
"""A layer, and the global id of one of its experts."""


class ExpertModel:
    """Weights of one node's experts, and their computation for whatever rows arrive.

    rank: whose part of each expert it has, and whose results `forward` adds. moving: of each layer,
    how many are on their way to it at most, beside those in its slots: for these there is memory
    before any comes.

    What each slot holds changes with the placement that it enters; what is new by it must have been
    taken in before. All of it changes with the weights (`renewed`). Beside that its only state is a
    count of what each expert has served.

    reader: None, where `bring` and `load` are to fill the slots.

    Raises CheckpointError when a weight is missing or misshapen, and what `Backend.experts` does.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reader: WeightReader | None,
        placement: Placement,
        node: int,
        backend: Backend,
        rank: Rank = ALONE,
        moving: int = 0,
    ) -> None:
        self.spec = spec
        self.node = node
        self.shard = rank.shard
        self._others = rank.others
        self._backend, self._moving = backend, moving
        self.held = placement.slots_of(node)  # by layer, what each slot holds
        self._layers = self._made(placement)
        if reader is not None:
            self._load(self._layers, reader, self.held)
        self._changing = Lock()  # what slots hold, beside whoever copies it
        self._aside: dict[Place, object] = {}  # prepared, and in no slot yet
        self._tally = Tally(spec.moe_layers, spec.num_experts, backend.device)
        self._uncounted: tuple[int, Tensor] | None = None  # a layer, and what was chosen of it
        self._graphs: StageGraphs | None = None

    def _made(self, placement: Placement) -> dict[int, LayerExperts]:
        """By layer, with a kernel of their own, so that their memory goes with them."""
        spec, held = self.spec, placement.slots_of(self.node)
        new_layer = self._backend.experts(shape_of(spec, self.shard))
        return {n: new_layer(len(held[n]) + self._moving) for n in spec.moe_layers}

    def _load(
        self,
        layers: Mapping[int, LayerExperts],
        reader: WeightReader,
        slots: Mapping[int, Sequence[int]],
    ) -> None:
        for layer, held in slots.items():
            sources = FfnSources(self.spec, layer)
            load_experts_into(layers[layer], sources, reader, held, self.shard)

    def bring(self, prepared: Callable[[LayerExperts, Place], object | None]) -> list[Place]:
        """Fill slots, which are empty, with what others give; what is lacking then, for `load`.
        prepared: an expert, for `LayerExperts.put`, None where nobody gives it."""
        lacking = []
        for layer, slots in self.held.items():
            experts = self._layers[layer]
            for slot, expert in enumerate(slots):
                if expert == EMPTY:
                    continue
                if (found := prepared(experts, (layer, expert))) is None:
                    lacking.append((layer, expert))
                else:
                    experts.put(slot, found)
        return lacking

    def load(self, reader: WeightReader, lacking: Sequence[Place]) -> None:
        """Fill the slots of these experts, which are empty."""
        wanted = frozenset(lacking)
        slots = {
            layer: [e if (layer, e) in wanted else EMPTY for e in held]
            for layer, held in self.held.items()
        }
        self._load(self._layers, reader, slots)

    def lend(self, layer: int, expert: int) -> Tensor | None:
        """A copy of an expert, as `LayerExperts.copied` gives it; None where it isn't here. Any
        thread may ask; a new placement waits for it."""
        with self._changing:
            slots = self.held.get(layer, ())
            if expert == EMPTY or expert not in slots:
                return None
            return self._layers[layer].copied(slots.index(expert))

    def renewed(self, reader: WeightReader, placement: Placement) -> Switch:
        """Load what this node holds by the placement, of other weights, in any thread, while it
        computes with those that it has.

        Raises what the first loading does, and ConfigError where stages were recorded, which hold
        the addresses of the weights.
        """
        if self._graphs is not None:
            raise ConfigError("stages that a GPU has recorded can't be computed with other weights")
        layers, held = self._made(placement), placement.slots_of(self.node)
        self._load(layers, reader, held)

        def switch() -> None:
            self.count()
            for layer, slots in self.held.items():
                if slots != held[layer]:
                    self._tally.move(layer, slots)
            self._aside.clear()  # of the old ones
            with self._changing:
                self._layers, self.held = layers, held

        return switch

    def missing(self, placement: Placement) -> list[Place]:
        """What this node holds by the placement and has not loaded, layer by layer."""
        return [
            (layer, expert)
            for layer, slots in placement.slots_of(self.node).items()
            for expert in slots
            if expert not in (EMPTY, *self.held[layer]) and (layer, expert) not in self._aside
        ]

    def take_in(self, place: Place, prepared: object) -> None:
        """Keep an expert, prepared by `LayerExperts.prepare`, for a placement by which it is
        here."""
        layer, _ = place
        if place in self._aside:
            self._layers[layer].forget(prepared)
        else:
            self._aside[place] = prepared

    def keep_aside(self, placement: Placement) -> None:
        """Of what was taken in, only what this placement needs."""
        slots = placement.slots_of(self.node)
        for layer, expert in [*self._aside]:
            if expert not in slots[layer] or expert in self.held[layer]:
                self._layers[layer].forget(self._aside.pop((layer, expert)))

    def enter(self, placement: Placement) -> None:
        """Hold what this placement says, from the next `forward` on: pointers change, no weights
        do. What is here no more is forgotten.

        Raises ConfigError, and changes nothing, where something of it is not loaded.
        """
        if placement.num_experts != self.spec.num_experts:
            raise ConfigError(
                f"layers have {self.spec.num_experts} experts, by the new placement they have "
                f"{placement.num_experts}"
            )
        if missing := self.missing(placement):
            layer, first = missing[0]
            new = _ids(placement.slots_of(self.node)[layer])
            raise ConfigError(
                f"expert node {self.node} holds the experts {_ids(self.held[layer])} of layer "
                f"{layer}, by the new placement it has {new}, of which {first} is not loaded"
            )
        self.count()
        with self._changing:
            for layer, slots in placement.slots_of(self.node).items():
                if slots != self.held[layer]:
                    self._change(layer, slots)

    def _change(self, layer: int, slots: tuple[int, ...]) -> None:
        experts, held = self._layers[layer], self.held[layer]
        self._tally.move(layer, held)
        pairs = enumerate(zip_longest(held, slots, fillvalue=EMPTY))
        changes = [(slot, old, new) for slot, (old, new) in pairs if old != new]
        taken = {old: experts.take(slot) for slot, old, _ in changes if old != EMPTY}
        for slot, _, new in changes:
            if new != EMPTY:
                own = taken.pop(new) if new in taken else self._aside.pop((layer, new))
                experts.put(slot, own)
        for gone in taken.values():
            experts.forget(gone)
        self.held[layer] = slots

    def record(self, bounds: StageBounds, on_graph: OnGraph) -> None:
        """Have the device record the stages of batches within these bounds, as far as there is room
        for that; others are computed as ever."""
        shape, backend = shape_of(self.spec, self.shard), self._backend
        made = [backend.fixed_batch(shape, bounds.messages, rows) for rows in bounds.buckets]
        batches = [batch for batch in made if batch is not None]
        total = len(batches) * len(self._layers)
        recordings = Recordings(backend.device, bounds.most_bytes, total, on_graph)
        self._graphs = StageGraphs(self._layers, batches, recordings, self._tally.add)

    def forward(self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> None:
        """Compute one layer's experts for all rows at once and write each dispatch's result.

        outs: one [R, D] a dispatch, in the same order; they are overwritten with the rows'
        outputs, weighted and summed over this node's experts. Raises NodeDied where another rank
        doesn't answer.
        """
        self.count()
        if self._others is not None:
            self._others.begin(layer, dispatches)
        if self._graphs is None or not self._graphs.replay(layer, dispatches, outs):
            self._uncounted = layer, self.compute(layer, dispatches, outs)
        if self._others is not None:
            self._others.add_to(outs)

    def compute(self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[Tensor]) -> Tensor:
        """`forward` by one kernel after the other, of this rank alone and without counting: how
        many choices each slot got, int64 [slots], which is valid until the layer's next batch."""
        return self._layers[layer].forward(
            [dispatch.hidden for dispatch in dispatches],
            [dispatch.local_ids for dispatch in dispatches],
            [dispatch.weights for dispatch in dispatches],
            outs,
            [dispatch.count for dispatch in dispatches],
        )

    def count_all(self, counts: Sequence[Tensor]) -> None:
        """Count what `compute` gave for a batch of each MoE layer, in the model's order."""
        self._tally.add_all(counts)

    def count(self) -> None:
        """Count what the last `forward` computed, unless that is done: by whoever has time for it,
        at the latest when it is asked for or about to be overwritten."""
        if self._uncounted is not None:
            layer, counts = self._uncounted
            self._uncounted = None
            self._tally.add(layer, counts)

    def layer(self, layer: int) -> LayerExperts:
        """The experts of one MoE layer."""
        return self._layers[layer]

    @property
    def any_layer(self) -> LayerExperts:
        """All of them have the same form."""
        return next(iter(self._layers.values()))

    @property
    def by_layer(self) -> dict[int, CountedExperts]:
        """The experts of all MoE layers with what they count in, for those who compute with them
        by themselves."""
        return {n: CountedExperts(own, self._tally.tokens(n)) for n, own in self._layers.items()}

    def counters(self) -> dict[str, list[PerExpert] | list[list[int]] | int]:
        """By global ids, of each MoE layer in the model's order; since the start. expert_tokens:
        tokens that each expert has served. expert_reads: batches that had some, each of which read
        its weights. experts_held: those that are here now. And `Recordings.counters`, where stages
        are recorded."""
        self.count()
        told = self._tally.told(self.held)
        graphs = {} if self._graphs is None else self._graphs.counters()
        return {
            **graphs,
            "expert_tokens": [tokens for tokens, _ in told],
            "expert_reads": [reads for _, reads in told],
            "experts_held": [_ids(slots) for slots in self.held.values()],
        }


def shape_of(spec: ModelSpec, shard: Shard = WHOLE) -> ExpertsShape:
    """What a rank computes of each layer's experts."""
    return ExpertsShape(
        spec.num_experts,  # as many as there can ever be here
        spec.hidden_size,
        spec.expert.intermediate // shard.ranks,
        spec.top_k,
        spec.expert.activation,
        spec.expert.bias,
        spec.expert.weight_on_input,
    )


def _ids(slots: Sequence[int]) -> list[int]:
    return [expert for expert in slots if expert != EMPTY]
