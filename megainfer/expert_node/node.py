"""The expert node: gather what attention nodes sent for a layer, compute it at once, reply.

It keeps no state of any request: whatever it is sent it can be sent again.
"""

from functools import partial
from time import monotonic
from typing import Any

from megainfer.checkpoint.switch import Switch
from megainfer.device import marks_of
from megainfer.errors import MegaInferError, NodeDied
from megainfer.expert_node.experts import ExpertModel
from megainfer.gather import Batch, Gather
from megainfer.instruments.distribution import Distribution
from megainfer.instruments.stage_clock import StageClock
from megainfer.launch.heartbeat import Page, Workload
from megainfer.m2n.mailbox import Dispatch, ExpertPort, Rest
from megainfer.topology import Membership

BATCH_ROWS = tuple(2**i for i in range(15))
"""Bounds of the distribution of rows in a batch."""


class ExpertNode:
    """One expert node over any port. It serves nobody before its first `enter`.

    trace: how many of its latest spans it keeps for `clock.take_spans`. work: hears how much there
    is to do in a turn.
    """

    def __init__(
        self,
        model: ExpertModel,
        gather: Gather,
        port: ExpertPort,
        trace: int = 0,
        work: Workload | None = None,
    ) -> None:
        self.port = port
        self._work = work or Workload(Page())
        self._model = model
        self._gather = gather
        self._waiting: dict[tuple[int, int], Dispatch] = {}  # by (source, micro-batch)
        self._lost: frozenset[int] = frozenset()
        self.clock = StageClock(trace, marks_of(port.device))
        self._batch_rows = Distribution(BATCH_ROWS)
        self._batches = self._rows = self._sources = self._missed = 0

    def run_once(self) -> bool:
        """Take in what arrived and compute one batch, if the gather has one complete."""
        self.clock.collect()
        self._take_in()
        batch = self._gather.next(monotonic())
        if batch is None:
            return False
        self._compute(batch)
        return True

    def enter(self, membership: Membership, switch: Switch | None = None) -> None:
        """Take part in this membership: whatever waits from before is forgotten, since who sent it
        will send it again. Only its attention nodes are expected.

        switch: to its weights, where they are others. Raises ConfigError when its placement has
        experts here that are not loaded.
        """
        if switch is not None:
            switch()
        self._model.enter(membership.placement)
        self.port.set_epoch(membership.epoch, membership.attention)
        self._waiting.clear()
        self._gather.enter(membership.attention)

    @property
    def num_batches(self) -> int:
        """Computed so far."""
        return self._batches

    def sleep_bound(self, timeout: float) -> float:
        """Seconds until the gather wants to look again, at most `timeout`."""
        deadline = self._gather.deadline()
        return timeout if deadline is None else max(0.0, min(timeout, deadline - monotonic()))

    def counters(self) -> dict[str, Any]:
        """Stage times, tokens an expert, the port's counters, and what batches were made of.

        sources: dispatches over all `batches`. missed: times that a cohort went on without one.
        """
        return {
            **self.clock.counters(),
            **self.port.counters(),
            "batches": self._batches,
            "rows": self._rows,
            "sources": self._sources,
            "missed": self._missed,
            "batch_rows": self._batch_rows.as_dict(),
            **self._model.counters(),
        }

    def _take_in(self) -> None:
        now = monotonic()
        lost = self.port.lost_peers()
        for source in lost - self._lost:
            self._gather.left(source)
            self._waiting = {k: v for k, v in self._waiting.items() if k[0] != source}
        self._lost = lost
        for message in self.port.receive():
            if message.source in self._lost:
                continue
            if isinstance(message, Rest):
                self._gather.rest(message.source, message.micro_batch)
            elif message.layer not in self._model.held:
                self._refuse(message)
            else:
                self._arrived(message, now)

    def _refuse(self, dispatch: Dispatch) -> None:
        """Of a layer that has no experts: its sender's mistake, which is nobody else's affair."""
        if dispatch.num_rows:
            self.port.reply_error(
                dispatch, f"layer {dispatch.layer} has no experts on expert node {self._model.node}"
            )

    def _arrived(self, dispatch: Dispatch, now: float) -> None:
        if dispatch.num_rows:
            self._waiting[dispatch.source, dispatch.micro_batch] = dispatch
        self._gather.arrived(
            dispatch.source, dispatch.micro_batch, dispatch.layer, dispatch.num_rows, now
        )

    def _compute(self, batch: Batch) -> None:
        lap = self.clock.lap()
        self._work.rows(sum(batch.rows.values()))
        sources = sorted(batch.rows)
        dispatches = [self._waiting.pop((source, batch.micro_batch)) for source in sources]
        error = self._forward(batch, dispatches)
        # A span of its own: the first receiver may go on before the last reply is sent.
        with self.clock.span("reply", batch.micro_batch, batch.layer):
            self._reply(dispatches, error)
        self._model.count()
        self._missed += len(batch.dropped)
        lap.end(partial(self._gather.served, batch))  # by which it decides how long to wait

    def _forward(self, batch: Batch, dispatches: list[Dispatch]) -> MegaInferError | None:
        """Compute into the reply slots; what went wrong, if something did."""
        with self.clock.span("expert", batch.micro_batch, batch.layer):
            outs = [self.port.reply_buffer(dispatch) for dispatch in dispatches]
            try:
                self._model.forward(batch.layer, dispatches, outs)
            except NodeDied:
                raise
            except MegaInferError as error:
                return error
        return None

    def _reply(self, dispatches: list[Dispatch], error: MegaInferError | None) -> None:
        if error is not None:
            for dispatch in dispatches:
                self.port.reply_error(dispatch, str(error))
            return
        for dispatch in dispatches:
            self.port.reply(dispatch)
        self._batches += 1
        self._sources += len(dispatches)
        rows = sum(dispatch.num_rows for dispatch in dispatches)
        self._rows += rows
        self._batch_rows.observe(rows)
