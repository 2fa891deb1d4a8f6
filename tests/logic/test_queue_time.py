"""How long requests wait for their first step: timed, told, and bounded."""

import msgspec

from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.attention_node.scheduling.sequence import Sequence, Status
from megainfer.attention_node.scheduling.waiting_queue import MAX_FINISHED, WaitingQueue
from megainfer.messages.requests import Submit
from tests.support.scheduler_engine import config, prompt, submit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def limited(name: str, seconds: float, length: int = 5) -> Submit:
    request = submit(name, prompt(length, ord(name)), max_tokens=20)
    return msgspec.structs.replace(request, max_queue_seconds=seconds)


def scheduler_with(clock: Clock, **changes: int) -> Scheduler:
    return Scheduler(config(num_micro_batches=1, **changes), clock)


def test_the_first_event_tells_how_long_the_request_waited() -> None:
    clock = Clock()
    scheduler = scheduler_with(clock)
    scheduler.add(submit("a", [1, 2]))
    clock.now = 2.5
    step = scheduler.compose(0)
    assert step is not None
    clock.now = 9.0
    assert [event.queued_seconds for event in scheduler.complete(step, [5])] == [2.5]
    step = scheduler.compose(0)
    assert step is not None
    assert [event.queued_seconds for event in scheduler.complete(step, [5])] == [0.0]


def test_only_those_that_wait_for_longer_than_they_may_are_ended() -> None:
    clock = Clock()
    scheduler = scheduler_with(clock, max_num_seqs=1)
    for request in (limited("a", 1.0), limited("b", 1.0), limited("c", 5.0)):
        scheduler.add(request)
    scheduler.add(submit("d", [7]))
    assert scheduler.compose(0) is not None  # "a" runs
    clock.now = 1.0
    assert scheduler.expire() == []
    clock.now = 2.0
    assert scheduler.expire() == ["b"]
    clock.now = 6.0
    assert scheduler.expire() == ["c"]
    clock.now = 1e6
    assert scheduler.expire() == []
    assert [sequence.request_id for sequence in scheduler.live] == ["a", "d"]
    scheduler.check_integrity()


def test_a_preempted_request_has_had_its_turn() -> None:
    clock = Clock()
    # Five blocks of four tokens: two requests of five run until the older one needs a third block.
    scheduler = scheduler_with(clock, num_blocks=5, block_size=4, max_model_len=20)
    for name in ("a", "b"):
        scheduler.add(limited(name, 1.0, length=7))
    while not scheduler.counters()["preemptions"]:
        step = scheduler.compose(0)
        assert step is not None
        scheduler.complete(step, [5] * sum(chunk.samples for chunk in step.chunks))
    clock.now = 100.0
    assert scheduler.counters()["waiting"] == 1
    assert scheduler.expire() == []


def test_those_who_gave_up_behind_others_take_no_room() -> None:
    queue = WaitingQueue()
    first = Sequence(submit("first", [1]), 0, 16)
    queue.push(first)
    for arrival in range(1, 1000):
        sequence = Sequence(submit(str(arrival), [1]), arrival, 16)
        queue.push(sequence)
        queue.forget()
        sequence.status = Status.FINISHED
    assert sum(map(len, queue._heaps.values())) <= MAX_FINISHED + 3
    assert queue.first() is first
    assert len(queue) == 1
