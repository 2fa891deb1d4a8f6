"""One step in the making."""

import math
from collections import Counter
from functools import cached_property

from megainfer.attention_node.scheduling.config import SchedulerConfig
from megainfer.attention_node.scheduling.pool import SequencePool
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.step import Chunk, Step


class Composition:
    """Fills one micro-batch's step with rows, in order of service, and finds their blocks.

    The order is by turns of clients (`ClientTurns`), of each by priority, then by arrival. Blocks
    are given in it, so that no sequence ever loses to one after it. Where whoever waits is owed a
    place, half of the rows are kept for newcomers; of who has more than others have, only as many
    decode in a step. Rows go to decoding sequences first, which is a
    matter of counting: a prompt gets what is left when each decoding sequence has its row, but the
    first sequence always gets one. While others have something short to compute, a client gets as
    many rows as those who add tokens, or as `fair_prompt_rows` says: what it decodes, and of its
    prompts the rest, or half. So it makes their steps twice as long at most. Rows count as what
    they cost: those whose logits are wanted count more.
    """

    def __init__(
        self, pool: SequencePool, config: SchedulerConfig, number: int, micro_batch: int
    ) -> None:
        self._pool = pool
        self._number = number
        self._micro_batch = micro_batch
        self._rows_left = config.max_num_batched_tokens
        self._config = config
        self._decoding = Counter[str]()  # rows, by client
        self._prompt_rows = Counter[str]()
        self._victims = pool.victims()
        self._decodes: list[Chunk] = []
        self._prefills: list[Chunk] = []
        self._depends_on: set[int] = set()
        self.admitted: list[Sequence] = []  # that waited until now

    def place_running(self) -> None:
        """Take in what already runs, by preemption of later sequences if blocks run out."""
        self._pool.yield_places()
        self._look_around()
        kept = self._rows_left // 2 if self._is_somebody_behind() else 0
        self._rows_left -= kept
        in_order = sorted(
            self._pool.balance.candidates(self._micro_batch), key=self._pool.turns.rank
        )
        candidates = [(s, s.is_decoding) for s in self._taking_turns(in_order)]
        self._decoding.update(s.submit.client for s, _ in candidates if not _is_prompt(s))
        decodes_to_come = sum(decodes for _, decodes in candidates)
        for sequence, decodes in candidates:
            decodes_to_come -= decodes
            if sequence.status is Status.RUNNING:  # else an earlier one has just preempted it
                self._place(sequence, kept_rows=0 if decodes else decodes_to_come)
        self._rows_left += kept

    def _taking_turns(self, in_order: list[Sequence]) -> list[Sequence]:
        """Without those that sit out this step, since their client has more than others have."""
        pool = self._pool
        out: set[str] = set()
        for client in {s.submit.client for s in in_order}:
            if not self._is_in_company(client):
                continue
            most = pool.turns.rows(client, pool.balance.active)
            decoding = [s for s in in_order if s.submit.client == client and s.is_decoding]
            if most is not None and len(decoding) > most:
                first = self._number * most % len(decoding)
                turned = [*decoding[first:], *decoding[:first]]
                out.update(s.request_id for s in turned[most:])
        return [s for s in in_order if s.request_id not in out] if out else in_order

    def _is_in_company(self, client: str) -> bool:
        return not self._pool.turns.is_alone(client) or self._pool.company.has_others(client)

    def _look_around(self) -> None:
        rows = self._config.fair_prompt_rows
        if rows is not None:
            self._pool.company.see(self._pool.brief_clients(rows), self._number)

    def _is_somebody_behind(self) -> bool:
        sequence = self._pool.waiting.first()
        return sequence is not None and self._pool.turns.is_behind(sequence.submit.client)

    def admit(self, max_newcomers: int) -> None:
        """Let in up to so many of those who wait, in order; the first that finds no blocks ends it.
        Clients whose prompts have all of their rows are passed over."""
        if max_newcomers < 1 or self._rows_left < 1:
            return
        admission = self._pool.admission()
        full: set[str] = set()
        while len(self.admitted) < max_newcomers and self._rows_left >= 1:
            sequence = self._pool.waiting.first(without=full)
            if sequence is None:
                return
            if self._room_for_prompts(sequence) < 1:
                full.add(sequence.submit.client)
                continue
            prefix = self._pool.cached_prefix(sequence)
            if not admission.fits(sequence, prefix):
                return
            self._pool.admit(sequence, prefix)
            self._place(sequence, kept_rows=0)
            admission.admitted(sequence)
            self.admitted.append(sequence)

    def step(self) -> Step | None:
        """What has been put together; None if nothing could be."""
        chunks = (*self._decodes, *self._prefills)
        if not chunks:
            return None
        depends_on = tuple(sorted(self._depends_on))
        return Step(self._number, self._micro_batch, depends_on, chunks)

    def _place(self, sequence: Sequence, kept_rows: int) -> None:
        is_first = not (self._decodes or self._prefills)
        rows = max(self._rows_left - kept_rows, int(is_first))
        if _is_prompt(sequence):
            rows = min(rows, self._room_for_prompts(sequence))
            rows = max(int(rows / self._cost(sequence)), min(rows, 1))  # who may have any has one
        wanted = min(sequence.num_unscheduled, rows)
        if wanted < 1:
            return
        length = self._find_blocks(sequence, wanted)
        if length < 1:
            self._pool.balance.open_to_all(sequence)  # so that any next step may help it
        else:
            self._take(sequence, length)

    def _room_for_prompts(self, sequence: Sequence) -> int:
        """Rows, by their cost, that its client's prompts may still have in this step."""
        client, least = sequence.submit.client, self._config.fair_prompt_rows
        if least is None or not self._pool.company.has_others(client):
            return self._rows_left
        adding = self._adding_tokens
        others = adding.total() - adding[client]
        fair = -(-max(others, least) // self._pool.balance.active)
        of_prompts = max(fair - self._decoding[client], -(-fair // 2))
        return of_prompts - self._prompt_rows[client]

    def _cost(self, sequence: Sequence) -> float:
        """Of a row of it, in rows of others."""
        return self._config.scored_row_cost if sequence.unscored else 1.0

    @cached_property
    def _adding_tokens(self) -> Counter[str]:
        """As it was before this step."""
        return self._pool.adding_tokens()

    def _find_blocks(self, sequence: Sequence, wanted: int) -> int:
        """Grow its table for up to `wanted` more tokens; how many of them have a place now."""
        blocks = self._pool.blocks
        missing = blocks.blocks_for(sequence.num_scheduled + wanted) - len(sequence.block_ids)
        while missing > blocks.num_free:
            victim = self._victims.after(sequence)
            if victim is None:
                break
            self._pool.preempt(victim)
        sequence.block_ids += blocks.allocate(max(0, min(missing, blocks.num_free)))
        return min(wanted, sequence.capacity - sequence.num_scheduled)

    def _take(self, sequence: Sequence, length: int) -> None:
        start = sequence.num_scheduled
        samples = start + length == len(sequence.token_ids)
        kind = self._decodes if sequence.is_decoding else self._prefills
        rows = length
        if _is_prompt(sequence):
            rows = math.ceil(length * self._cost(sequence))
            self._prompt_rows[sequence.submit.client] += rows
        kind.append(Chunk(sequence, start, length, samples))
        self._depends_on.update(sequence.in_flight)
        self._rows_left = max(0, self._rows_left - rows)
        sequence.num_scheduled += length
        sequence.in_flight.append(self._number)
        if samples:
            self._pool.balance.assign(sequence, self._micro_batch)


def _is_prompt(sequence: Sequence) -> bool:
    """Whether its next rows are of a context that isn't there yet, be it the last of them."""
    return not (sequence.is_decoding and sequence.num_outputs)
