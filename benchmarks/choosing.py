"""In place of models whose tokens choose experts unevenly: parts as a gate makes them, and experts
that take the time of reading what was chosen and of computing its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import torch

from megainfer.compute.reference import kernels as kernels
from megainfer.device import HOST
from megainfer.expert_node.tally import Tally
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.topology import EMPTY, WAYS, Placement, contiguous_placement


@dataclass(frozen=True)
class Choosing:
    """experts: of each layer, of which a token chooses top_k, as popular as in Zipf's law with this
    exponent. read, row: seconds of reading an expert and of computing a row. replicas: see
    `contiguous_placement`. turn: seconds after which others are popular, from `began` on
    (monotonic)."""

    experts: int = 64
    top_k: int = 4
    exponent: float = 1.0
    read: float = 40e-6
    row: float = 10e-6
    replicas: int = 1
    turn: float | None = None
    began: float = 0.0
    seed: int = 0

    def placement(self, nodes: int, layers: int) -> Placement:
        """The first."""
        return contiguous_placement(self.experts, nodes, range(layers), self.replicas)

    @property
    def turns(self) -> int:
        """How often popularity has turned by now."""
        return 0 if self.turn is None else int((monotonic() - self.began) / self.turn)

    def popularity(self, layer: int, turns: int) -> torch.Tensor:
        """float32 [E]: how often each expert is drawn."""
        generator = torch.Generator().manual_seed(self.seed + 1000 * turns + layer)
        order = torch.randperm(self.experts, generator=generator)
        return (1 + order.float()) ** -self.exponent


class Chooser:
    """A gate without a router."""

    def __init__(self, choosing: Choosing, layers: int, placement: Placement) -> None:
        self._choosing = choosing
        self._layers = range(layers)
        self._turns = -1
        self.place(placement)

    def place(self, placement: Placement) -> None:
        self._homes = [kernels.expert_homes(placement, layer) for layer in self._layers]

    def parts(self, layer: int, rows: int) -> tuple[Part, ...]:
        """What goes to each expert node."""
        own = self._choosing
        if self._turns != own.turns:
            self._turns = own.turns
            self._popularity = [own.popularity(n, self._turns) for n in self._layers]
        ids = torch.multinomial(self._popularity[layer].expand(rows, -1), own.top_k)
        weights = torch.full((rows, own.top_k), 1 / own.top_k)
        return kernels.scatter_plan(weights, ids, self._homes[layer], torch.randint(WAYS, (rows,)))


class ChosenExperts:
    """As `ExpertModel`: what was chosen takes its time, and is counted."""

    def __init__(self, choosing: Choosing, layers: int, node: int) -> None:
        self._choosing = choosing
        self._node = node
        self.held: dict[int, tuple[int, ...]] = dict.fromkeys(range(layers), ())
        self._tally = Tally(range(layers), choosing.experts, HOST)

    def enter(self, placement: Placement) -> None:
        for layer, slots in placement.slots_of(self._node).items():
            if slots != self.held[layer]:
                self._tally.move(layer, self.held[layer])
                self.held[layer] = slots

    def forward(
        self, layer: int, dispatches: Sequence[Dispatch], outs: Sequence[torch.Tensor]
    ) -> None:
        started = monotonic()
        ids = torch.cat([dispatch.local_ids.flatten() for dispatch in dispatches])
        counts = torch.bincount(ids[ids >= 0].long(), minlength=self._choosing.experts)
        reads, rows = int((counts > 0).sum()), int(counts.sum())
        for dispatch, out in zip(dispatches, outs, strict=True):
            out.copy_(dispatch.hidden)
        self._tally.add(layer, counts)
        sleep_until(started + self._choosing.read * reads + self._choosing.row * rows)

    def count(self) -> None:
        """All has been counted."""

    def counters(self) -> dict[str, Any]:
        told = self._tally.told(self.held)
        return {
            "expert_tokens": [tokens for tokens, _ in told],
            "expert_reads": [reads for _, reads in told],
            "experts_held": [[e for e in own if e != EMPTY] for own in self.held.values()],
        }


def sleep_until(deadline: float) -> None:
    sleep(max(0.0, deadline - monotonic()))
