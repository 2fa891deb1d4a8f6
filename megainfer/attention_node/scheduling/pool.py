"""All live sequences of an attention node, and what each of them holds."""

from collections import Counter
from collections.abc import Iterable, Iterator, ValuesView

from megainfer.attention_node.scheduling.admission import Admission
from megainfer.attention_node.scheduling.balance import Balance
from megainfer.attention_node.scheduling.block_manager import BlockManager
from megainfer.attention_node.scheduling.company import Company
from megainfer.attention_node.scheduling.config import SchedulerConfig
from megainfer.attention_node.scheduling.preemption import Victims, is_takeable
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.state_slots import StateSlots
from megainfer.attention_node.scheduling.turns import ClientTurns
from megainfer.attention_node.scheduling.waiting_queue import WaitingQueue
from megainfer.messages.requests import FinishReason


class SequencePool:
    """Keeps blocks, queue and micro-batches in agreement over each change of status.

    ```
                               STALLED ───────┐
                        stall ▲      │ resume  │
                              │      ▼         ▼
    add ──▶ WAITING ──admit──▶ RUNNING ──doom──▶ ABORTING
               ▲                │   │                │
               └────preempt─────┘   └──────end───────┴──▶ FINISHED   (and from WAITING)
    ```

    From STALLED a sequence of a recurrent model is preempted instead: it has to begin again.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.blocks = BlockManager(config.num_blocks, config.block_size)
        self.slots = StateSlots(config.max_num_seqs)
        self.balance = Balance(config.num_micro_batches)
        self.turns = ClientTurns()
        self.company = Company()
        self.waiting = WaitingQueue(self.turns)
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.prefix_queried_tokens = 0
        self._max_running = config.max_num_seqs
        self._use_prefix_cache = config.enable_prefix_cache
        self._live: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}  # and STALLED, ABORTING

    @property
    def live(self) -> ValuesView[Sequence]:
        return self._live.values()

    @property
    def num_running(self) -> int:
        """Sequences with blocks: those that are being aborted hold theirs to the end."""
        return len(self._running)

    def num_newcomers(self, busy: Iterable[int]) -> int:
        """How many an idle micro-batch may let in: its share, while these others are busy."""
        newcomers = min(len(self.waiting), self._max_running - self.num_running)
        lanes = self.balance.num_prompt_lanes
        num_idle = lanes - sum(micro_batch < lanes for micro_batch in busy)
        return -(-newcomers // num_idle) if num_idle > 0 else 0

    def get(self, request_id: str) -> Sequence | None:
        return self._live.get(request_id)

    def victims(self) -> Victims:
        return Victims(self._running.values(), self.turns)

    def adding_tokens(self) -> Counter[str]:
        """Running sequences that take one row a step, by client."""
        return Counter(
            sequence.submit.client
            for sequence in self._running.values()
            if sequence.status is Status.RUNNING and sequence.adds_tokens
        )

    def brief_clients(self, rows: int) -> set[str]:
        """Those who have something short to compute: of so many rows at most."""
        heads = list(self.waiting.heads())
        clients = {*self.turns.clients, *(sequence.submit.client for sequence in heads)}
        others = set(clients)
        for sequence in (*self._running.values(), *heads):
            if sequence.submit.client in others and _is_brief(sequence, rows):
                others.discard(sequence.submit.client)
                if not others:  # as it is at once where one client decodes
                    break
        return clients - others

    def yield_places(self) -> None:
        """Let running sequences go, the latest first, if whoever is next is owed a place and has
        none. Before a step is composed, since those in a step can't go."""
        sequence = self.waiting.first()
        if sequence is None or not self.turns.is_behind(sequence.submit.client):
            return
        while not self._has_place(sequence) and (debtor := self._debtor(sequence)) is not None:
            self.preempt(debtor)

    def _has_place(self, sequence: Sequence) -> bool:
        if self.num_running >= self._max_running:
            return False
        return self.admission().fits(sequence, self.cached_prefix(sequence))

    def _debtor(self, sequence: Sequence) -> Sequence | None:
        own, turns = sequence.submit.client, self.turns
        owed = (s for s in self._running.values() if turns.owes(s.submit.client, own))
        return max(filter(is_takeable, owed), key=turns.rank, default=None)

    def admission(self) -> Admission:
        return Admission(self.blocks, self._running.values())

    def cached_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of its tokens; at least its last token isn't in them.

        None where its prompt's logits are wanted: they aren't in the cache, but computed anew.
        """
        if sequence.unscored:
            return []
        return self.blocks.match_prefix(sequence.prefix_digests(), sequence.submit.stale_prefix)

    def add(self, sequence: Sequence) -> None:
        self._live[sequence.request_id] = sequence
        self.waiting.push(sequence)

    def admit(self, sequence: Sequence, prefix: list[int]) -> None:
        """Start its client's next in the queue on its cached prefix."""
        self.waiting.pop(sequence)
        self.blocks.acquire(prefix)
        sequence.stale_tokens = self.blocks.count_stale(prefix) * sequence.block_size
        sequence.block_ids = list(prefix)
        sequence.state_slot = self.slots.take()
        sequence.num_computed = sequence.num_scheduled = sequence.capacity
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.num_computed
        self.prefix_hit_tokens += sequence.num_computed
        self.prefix_queried_tokens += len(sequence.token_ids)
        sequence.status = Status.RUNNING
        self._running[sequence.request_id] = sequence
        self.turns.begin(sequence)
        self.balance.open_to_all(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take its blocks; it keeps its tokens, to be computed again, and its place in line."""
        self._vacate(sequence)
        sequence.num_computed = sequence.num_scheduled = 0
        sequence.preemptions += 1
        self.preemptions += 1
        sequence.status = Status.WAITING
        self.waiting.push(sequence)

    def expire(self, now: float) -> list[str]:
        """End those that have waited for longer than they may by this time; their ids."""
        expired = [sequence for sequence in self.waiting if sequence.has_waited_too_long(now)]
        for sequence in expired:
            self.end(sequence, FinishReason.ABORT)
        return [sequence.request_id for sequence in expired]

    def begin_again(self) -> None:
        """Preempt all that run, which are at rest: nothing that was computed so far counts, but
        for those that go on from it by their own wish."""
        for sequence in list(self._running.values()):
            self.preempt(sequence)
        for sequence in self.live:
            sequence.prompt_logprobs.clear()
        self.blocks.outdate()

    def stall(self, sequence: Sequence) -> None:
        """No further step takes it until `resume`, when those in flight have ended."""
        sequence.status = Status.STALLED
        self.balance.remove(sequence)

    def resume(self, sequence: Sequence) -> None:
        sequence.status = Status.RUNNING
        self.balance.open_to_all(sequence)

    def doom(self, sequence: Sequence) -> None:
        """No further step takes it; `end` follows when those in flight have ended."""
        sequence.status = Status.ABORTING
        self.balance.remove(sequence)

    def abort(self, sequence: Sequence) -> bool:
        """It leaves now if it is at rest, else as `doom` says; whether it is gone."""
        if gone := sequence.is_at_rest:
            self.end(sequence, FinishReason.ABORT)
        else:
            self.doom(sequence)
        return gone

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """It leaves, from any status, at rest."""
        if sequence.status is Status.WAITING:
            self.waiting.forget()
        else:
            self._vacate(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        del self._live[sequence.request_id]

    def spoil(self, sequence: Sequence) -> None:
        """Its keys and values are no numbers, so none who has the same prompt may be given them."""
        sequence.spoiled = True
        self.blocks.forget(sequence.block_ids)

    def publish(self, sequence: Sequence, first_block: int, end_block: int) -> None:
        """Make its blocks [first_block, end_block), now whole, known to others."""
        if self._use_prefix_cache and not sequence.spoiled:
            for index in range(first_block, end_block):
                block, stale = sequence.block_ids[index], sequence.stale_tokens > 0
                self.blocks.publish(block, sequence.digest(index), stale)

    def counters(self) -> dict[str, int]:
        """See `Scheduler.counters`."""
        return {
            "micro_batches": self.balance.active,
            "running": self.num_running,
            "waiting": len(self.waiting),
            "free_blocks": self.blocks.num_free,
            "preemptions": self.preemptions,
            "prefix_hit_tokens": self.prefix_hit_tokens,
            "prefix_queried_tokens": self.prefix_queried_tokens,
        }

    def problems(self) -> Iterator[str]:
        """What contradicts itself, by sequence."""
        self.blocks.check_integrity(sequence.block_ids for sequence in self._running.values())
        yield from self.slots.problems(s.state_slot for s in self._running.values())
        by_client = Counter(sequence.submit.client for sequence in self._running.values())
        if by_client != self.turns.count():
            yield f"clients have {dict(by_client)} running, not {dict(self.turns.count())}"
        if len(self.waiting) + len(self._running) != len(self._live):
            yield f"{len(self.waiting)} wait, {len(self._running)} run, {len(self._live)} live"
        for sequence in self.live:
            for problem in self._problems_of(sequence):
                yield f"{sequence.request_id} ({sequence.status.value}): {problem}"

    def _vacate(self, sequence: Sequence) -> None:
        assert sequence.is_at_rest, f"{sequence.request_id} is in steps {sequence.in_flight}"
        self.blocks.release(sequence.block_ids)
        sequence.block_ids = []
        assert sequence.state_slot is not None, f"{sequence.request_id} ran without a slot"
        self.slots.give_back(sequence.state_slot)
        sequence.state_slot = None
        self.balance.remove(sequence)
        del self._running[sequence.request_id]
        self.turns.end(sequence)

    def _problems_of(self, sequence: Sequence) -> Iterator[str]:
        waits = sequence.status is Status.WAITING
        if waits == (sequence.request_id in self._running):
            yield "is in the wrong one of queue and running set"
        if waits and (sequence.block_ids or sequence.num_scheduled or sequence.in_flight):
            yield f"waits with blocks {sequence.block_ids} or scheduled tokens"
        if not waits and sequence.num_scheduled > sequence.capacity:
            yield f"{sequence.num_scheduled} tokens are scheduled into {sequence.capacity} places"
        if sequence.num_scheduled > len(sequence.token_ids):
            yield f"{sequence.num_scheduled} of {len(sequence.token_ids)} tokens are scheduled"
        if sequence.is_at_rest and sequence.status in (Status.ABORTING, Status.STALLED):
            yield "is at rest, yet nothing came of it"
        if self.balance.holds(sequence) != (sequence.status is Status.RUNNING):
            yield f"is not where micro-batch {sequence.micro_batch} should have it"


def _is_brief(sequence: Sequence, rows: int) -> bool:
    return sequence.status is not Status.ABORTING and sequence.num_unscheduled <= rows
