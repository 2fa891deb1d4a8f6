"""What is composed, each rule on its own; test_scheduler_random.py has them all at once."""

import msgspec
import pytest

from megainfer.errors import ConfigError, RequestError
from megainfer.messages.requests import Submit
from tests.support.scheduler_engine import (
    Engine,
    answer,
    composed,
    config,
    engine_for,
    homes,
    prompt,
    rows,
    step_of,
    submit,
)

# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 15}, "holds 60 tokens, one sequence may have max_model_len = 64"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1, not 0"),
        ({"max_model_len": 1}, "max_model_len must be at least 2, not 1"),
        ({"num_micro_batches": 0}, "num_micro_batches must be at least 1, not 0"),
    ],
)
def test_a_configuration_that_cannot_serve_is_refused(
    changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("request_", "message", "param"),
    [
        (submit("a", []), "the prompt is empty", "prompt"),
        (submit("a", prompt(64)), "64 tokens; at most 63 leave room .* context of 64", "prompt"),
        (submit("a", [1], max_tokens=0), "max_tokens must be at least 1, not 0", "max_tokens"),
        (submit("taken", [1]), "a request 'taken' is running already", "request_id"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(
    request_: Submit, message: str, param: str
) -> None:
    engine = engine_for(submit("taken", [1]))
    with pytest.raises(RequestError, match=message) as caught:
        engine.scheduler.add(request_)
    assert caught.value.param == param
    assert engine.scheduler.counters()["waiting"] == 1


# --- composing -----------------------------------------------------------------------------------


def test_a_prompt_that_fits_goes_in_one_step_and_then_a_row_a_step() -> None:
    engine = engine_for(submit("a", prompt(5), max_tokens=3), num_micro_batches=1)
    seen = []
    while engine.scheduler.live:
        step = step_of(engine, 0)
        seen.append((step.number, rows(step)))
        engine.finish(step)
    assert seen == [(0, [("a", 0, 5, True)]), (1, [("a", 5, 1, True)]), (2, [("a", 6, 1, True)])]


def test_decoding_rows_come_first_then_prompts_then_newcomers() -> None:
    engine = engine_for(submit("long", prompt(30)), num_micro_batches=1)
    engine.round()
    engine.scheduler.add(submit("short", prompt(2, first=2)))
    engine.round()  # the rest of `long`, and `short`
    engine.scheduler.add(submit("next", prompt(20, first=1)))
    engine.round()
    engine.scheduler.add(submit("last", prompt(3, first=0)))
    assert rows(engine.compose(0)) == [
        ("long", 31, 1, True),
        ("short", 3, 1, True),
        ("next", 14, 6, True),
        ("last", 0, 3, True),
    ]


def test_a_step_has_no_more_rows_than_allowed() -> None:
    requests = [submit(f"r{i}", prompt(7, first=i)) for i in range(5)]
    engine = engine_for(*requests, num_micro_batches=1, max_num_batched_tokens=16)
    step = step_of(engine, 0)
    assert step.num_rows == 16
    assert rows(step)[-1] == ("r2", 0, 2, False)


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [(6, [("y0", 1), ("y1", 1), ("old", 4)]), (2, [("y0", 1), ("old", 1)])],
)
def test_prompts_get_the_rows_that_decoding_leaves_but_the_oldest_always_one(
    max_rows: int, expected: list[tuple[str, int]]
) -> None:
    engine = engine_for(submit("old", prompt(max_rows)), max_num_batched_tokens=max_rows)
    old = step_of(engine, 0)
    engine.scheduler.add(submit("y0", [0]))
    engine.scheduler.add(submit("y1", [1]))
    engine.finish(step_of(engine, 1))
    engine.abandon(engine.flights[old.number])  # its prompt is to do, while the others decode
    assert [(name, length) for name, _, length, _ in rows(engine.compose(1))] == expected


def test_no_more_sequences_run_than_allowed_over_all_micro_batches() -> None:
    requests = [submit(f"r{i}", [i]) for i in range(6)]
    engine = engine_for(*requests, max_num_seqs=3)
    engine.offer()
    assert engine.scheduler.counters()["running"] == 3
    assert engine.scheduler.counters()["waiting"] == 3
    engine.drain()
    assert len(engine.finished) == 6


def test_chunks_of_one_prompt_fly_in_different_micro_batches_in_order() -> None:
    engine = engine_for(submit("a", prompt(40)), num_micro_batches=3)
    first, second, third = engine.offer()
    assert [rows(s)[0][1:] for s in (first, second, third)] == [
        (0, 16, False),
        (16, 16, False),
        (32, 8, True),
    ]
    assert [s.depends_on for s in (first, second, third)] == [(), (0,), (0, 1)]
    for step in (first, second, third):
        engine.finish(step)
    assert engine.outputs["a"] == answer(submit("a", prompt(40)), 64)[0][:1]


def test_a_chunk_depends_on_no_step_that_has_ended() -> None:
    engine = engine_for(submit("a", prompt(40)))
    first, second = engine.offer()
    engine.finish(first)
    assert step_of(engine, first.micro_batch).depends_on == (second.number,)


def test_no_row_of_a_sequence_is_composed_before_its_token_is_known() -> None:
    engine = engine_for(submit("a", prompt(5)))
    assert len(engine.offer()) == 1
    assert engine.compose(1) is None


def test_has_work_says_where_composing_is_worth_trying() -> None:
    engine = engine_for()
    assert not engine.scheduler.has_work(0)
    engine.scheduler.add(submit("a", prompt(5)))
    assert engine.scheduler.has_work(0)
    assert engine.scheduler.has_work(1)
    step = step_of(engine, 1)
    assert not engine.scheduler.has_work(0)
    assert not engine.scheduler.has_work(1)
    engine.finish(step)
    assert not engine.scheduler.has_work(0)
    assert engine.scheduler.has_work(1)


def test_composing_a_micro_batch_in_flight_is_a_bug() -> None:
    engine = engine_for(submit("a", [1]))
    engine.offer()
    with pytest.raises(AssertionError, match="micro-batch 0 has a step already"):
        engine.compose(0)


# --- micro-batches -------------------------------------------------------------------------------


def test_one_sequence_stays_in_one_micro_batch() -> None:
    engine = engine_for(submit("a", [1], max_tokens=20), num_micro_batches=4)
    engine.round()
    home = homes(engine)
    for _ in range(10):
        assert len(engine.offer()) == 1
        engine.round()
        assert homes(engine) == home


def test_newcomers_are_shared_out_among_idle_micro_batches() -> None:
    engine = engine_for(submit("a", [1]), submit("b", [2]), submit("c", [3]))
    assert [[r[0] for r in rows(step)] for step in engine.offer()] == [["a", "b"], ["c"]]


def test_newcomers_do_not_wait_for_a_busy_micro_batch() -> None:
    engine = engine_for(submit("a", [1]))
    engine.offer()
    for name in "bcd":
        engine.scheduler.add(submit(name, [2]))
    assert [r[0] for r in rows(engine.compose(1))] == ["b", "c", "d"]


def test_sequences_move_to_a_lighter_micro_batch_at_their_steps_end() -> None:
    engine = engine_for(submit("x", [1]))
    step_of(engine, 0)
    for name in "abcd":
        engine.scheduler.add(submit(name, [2]))
    step = step_of(engine, 1)
    assert homes(engine) == [0, 1, 1, 1, 1]
    engine.finish(step)
    assert sorted(homes(engine)) == [0, 0, 1, 1, 1]  # moving another would change nothing


def test_long_contexts_weigh_more() -> None:
    engine = engine_for(
        submit("x", [1]), num_blocks=1024, max_model_len=4096, max_num_batched_tokens=4096
    )
    step_of(engine, 0)
    engine.scheduler.add(submit("long", prompt(3000)))
    engine.scheduler.add(submit("short", [2]))
    engine.finish(step_of(engine, 1))
    assert homes(engine) == [0, 1, 0]


def test_loads_differ_by_less_than_one_sequence_after_each_step() -> None:
    requests = [submit(f"r{i}", prompt(1 + i), max_tokens=1 + 5 * i) for i in range(8)]
    engine = engine_for(*requests, max_num_batched_tokens=64, num_micro_batches=3)
    engine.round()
    while len(engine.scheduler.live) > 3:
        engine.round()
        counts = [homes(engine).count(mb) for mb in range(3)]
        assert max(counts) - min(counts) <= 1


# --- blocks run out ------------------------------------------------------------------------------

# Blocks of 4 tokens and a context of 32, that is 8 blocks, in all of these.
TIGHT = {"num_blocks": 8, "max_model_len": 32, "max_num_batched_tokens": 32}


def test_the_youngest_at_rest_is_preempted_and_later_goes_on_where_it_was() -> None:
    requests = [submit(n, prompt(4, i), max_tokens=20) for i, n in enumerate("abc")]
    engine = engine_for(*requests, **TIGHT, num_micro_batches=1)
    a, b, c = engine.scheduler.live
    while not engine.scheduler.counters()["preemptions"]:
        engine.round()
    assert (a.preemptions, b.preemptions, c.preemptions) == (0, 0, 1)
    assert c.block_ids == []
    assert c.num_outputs > 0
    kept = list(c.token_ids)
    engine.drain()
    assert c.token_ids[: len(kept)] == kept
    assert all(engine.outputs[r.request_id] == answer(r, 32)[0] for r in requests)


def test_a_preempted_sequence_comes_back_before_those_who_came_later() -> None:
    requests = [submit(n, prompt(8, i), max_tokens=20) for i, n in enumerate("abcd")]
    engine = engine_for(*requests, **TIGHT, num_micro_batches=1)
    order = []
    while engine.scheduler.live:
        order += [e.request_id for e in engine.round() if e.finish_reason]
    assert order == ["a", "b", "c", "d"]
    assert engine.scheduler.counters()["preemptions"] > 0


def test_priority_goes_before_arrival_in_the_queue() -> None:
    ranks = {"a": 5, "b": 0, "c": -1, "d": 0}
    requests = [submit(n, prompt(4, i), 6, priority=p) for i, (n, p) in enumerate(ranks.items())]
    engine = engine_for(requests[0], max_num_seqs=1)
    engine.round()
    for request in requests[1:]:
        engine.scheduler.add(request)
    engine.drain()
    assert list(engine.finished) == ["a", "c", "b", "d"]  # who runs is not sent back to wait


def test_what_another_node_began_comes_before_newcomers_of_its_priority() -> None:
    begun = [msgspec.structs.replace(submit(n, prompt(4), 6), output=[1]) for n in ("c", "d")]
    urgent = msgspec.structs.replace(submit("e", prompt(4), 6), priority=-1)
    engine = engine_for(submit("a", prompt(4), 6), max_num_seqs=1)
    engine.round()
    for request in (submit("b", prompt(4), 6), *begun, urgent):
        engine.scheduler.add(request)
    engine.drain()
    assert list(engine.finished) == ["a", "e", "c", "d", "b"]


def test_what_another_node_began_has_its_limits_whole_and_tells_nothing_twice() -> None:
    engine = engine_for(submit("a", prompt(12), max_tokens=5))
    engine.drain()
    begun = msgspec.structs.replace(submit("b", prompt(12), 5), output=engine.outputs["a"][:3])
    engine.scheduler.add(begun)
    engine.drain()
    assert engine.outputs["b"] == engine.outputs["a"][3:]
    assert engine.cached["b"] == [0, 0]
    assert engine.scheduler.counters()["prefix_hit_tokens"] == 12, "yet the cache helped"


def test_the_least_urgent_is_preempted_however_old_and_comes_back_last() -> None:
    ranks = {"a": 1, "b": 0, "c": -1}
    requests = [submit(n, prompt(4, i), 20, priority=p) for i, (n, p) in enumerate(ranks.items())]
    engine = engine_for(*requests, **TIGHT, num_micro_batches=1)
    a, b, c = engine.scheduler.live
    while not engine.scheduler.counters()["preemptions"]:
        engine.round()
    assert (a.preemptions, b.preemptions, c.preemptions) == (1, 0, 0)
    engine.drain()
    assert list(engine.finished) == ["c", "b", "a"]
    assert all(engine.outputs[r.request_id] == answer(r, 32)[0] for r in requests)


def tight_pair() -> Engine:
    """`a` in micro-batch 0 and `b` in 1, each in need of a block, with one free."""
    requests = submit("a", prompt(15), max_tokens=9), submit("b", prompt(11, 2), max_tokens=9)
    engine = engine_for(*requests, **TIGHT)
    engine.round()
    engine.round()
    assert [s.num_computed for s in engine.scheduler.live] == [16, 12]
    assert homes(engine) == [0, 1]
    assert engine.scheduler.counters()["free_blocks"] == 1
    return engine


def test_a_younger_sequence_waits_rather_than_take_from_an_older_one() -> None:
    engine = tight_pair()
    engine.finish(step_of(engine, 0))
    assert engine.compose(1) is None  # `a` is at rest, but older
    assert [s.preemptions for s in engine.scheduler.live] == [0, 0]
    engine.drain()
    assert [len(output) for output in engine.outputs.values()] == [9, 9]


def test_nobody_in_flight_is_preempted_and_the_next_step_of_any_micro_batch_helps() -> None:
    engine = tight_pair()
    a, b = engine.scheduler.live
    young = step_of(engine, 1)
    assert engine.compose(0) is None  # `b` is younger, but in flight
    assert (a.micro_batch, b.preemptions) == (None, 0)
    engine.finish(young)
    assert rows(engine.compose(1)) == [("a", 16, 1, True)]
    assert (a.micro_batch, b.preemptions) == (1, 1)


def test_the_step_is_made_without_the_one_that_finds_no_block() -> None:
    engine = tight_pair()
    a, b = engine.scheduler.live
    young = step_of(engine, 1)
    engine.scheduler.add(submit("c", [1]))
    assert engine.compose(0) is None
    engine.finish(young)
    assert engine.scheduler.abort("b")
    assert [r[0] for r in rows(engine.compose(0))] == ["a", "c"]
    assert (a.preemptions, b.preemptions) == (0, 0)


def test_a_newcomer_waits_until_it_fits_beside_what_the_running_ones_need() -> None:
    engine = engine_for(submit("a", prompt(12), max_tokens=4), **TIGHT, num_micro_batches=1)
    engine.round()
    engine.scheduler.add(submit("big", prompt(20, 2)))
    engine.scheduler.add(submit("small", [2]))
    assert [r[0] for r in rows(engine.compose(0))] == ["a"]  # 4 + 5 blocks don't fit 8
    assert engine.scheduler.counters()["waiting"] == 2  # `small` does not overtake


@pytest.mark.parametrize(
    ("running", "max_rows", "newcomer", "fits"),
    [
        (11, 32, 16, True),  # 3 blocks, 1 to grow into, 4 newly
        (11, 32, 17, False),  # 5
        (20, 8, 8, True),  # 2 blocks now, 3 for the rest of the prompt, 1 to grow into, 2 newly
        (20, 8, 9, False),  # 3
    ],
)
def test_a_newcomer_needs_room_for_all_its_tokens_beside_the_claims_of_others(
    running: int, max_rows: int, newcomer: int, fits: bool
) -> None:
    limits = {**TIGHT, "max_num_batched_tokens": max_rows}
    engine = engine_for(submit("a", prompt(running)), **limits, num_micro_batches=3)
    for step in composed(engine, 0):
        engine.finish(step)
    engine.scheduler.add(submit("b", prompt(newcomer, 2)))
    engine.offer()
    assert engine.scheduler.counters()["waiting"] == (0 if fits else 1)


def test_newcomers_of_one_step_count_what_the_one_before_may_need() -> None:
    requests = submit("a", prompt(20)), submit("b", prompt(12, 2))
    engine = engine_for(*requests, **TIGHT, num_micro_batches=1)
    assert [r[0] for r in rows(engine.compose(0))] == ["a"]  # 5, 1 to grow into, 3


def test_cached_blocks_that_a_newcomer_would_use_are_no_room_for_its_others() -> None:
    engine = engine_for(submit("past", prompt(17), max_tokens=1), **TIGHT)
    engine.drain()  # leaves 4 cached blocks
    engine.scheduler.add(submit("a", prompt(12, 2)))
    engine.round()
    engine.scheduler.add(submit("b", prompt(24)))
    engine.offer()
    assert engine.scheduler.counters()["waiting"] == 1
    engine.drain()
    assert engine.cached["b"][0] == 16


# --- prefix cache --------------------------------------------------------------------------------


def test_a_prefix_is_found_once_the_step_that_filled_it_has_ended() -> None:
    engine = engine_for(submit("a", prompt(10)))
    step = step_of(engine, 0)
    engine.scheduler.add(submit("early", prompt(10)))
    assert rows(engine.compose(1)) == [("early", 0, 10, True)]
    engine.finish(step)
    engine.scheduler.add(submit("late", prompt(10)))
    assert ("late", 8, 2, True) in rows(engine.compose(0))
    engine.drain()


def test_cached_tokens_are_told_once_with_the_first_token() -> None:
    engine = engine_for(submit("a", prompt(12), max_tokens=3))
    engine.drain()
    engine.scheduler.add(submit("b", prompt(12), max_tokens=3))
    engine.drain()
    assert engine.cached == {"a": [0, 0, 0], "b": [8, 0, 0]}
    assert engine.scheduler.counters()["prefix_hit_tokens"] == 8
    assert engine.scheduler.counters()["prefix_queried_tokens"] == 24


def test_the_answer_is_cached_too() -> None:
    first = submit("a", prompt(5), max_tokens=8)
    engine = engine_for(first)
    engine.drain()
    engine.scheduler.add(submit("b", [*first.prompt, *engine.outputs["a"], 1]))
    engine.drain()
    assert engine.cached["b"][0] == 12


def test_what_a_preempted_prompt_finds_of_itself_does_not_count_as_cached() -> None:
    requests = submit("a", prompt(4), max_tokens=20), submit("b", prompt(20, 2), max_tokens=2)
    limits = {**TIGHT, "max_num_batched_tokens": 2}
    engine = engine_for(*requests, **limits, num_micro_batches=1)
    _, b = engine.scheduler.live
    engine.drain()
    assert b.preemptions > 0
    assert engine.scheduler.counters()["prefix_hit_tokens"] > 0
    assert engine.cached["b"] == [0, 0]


def cached_of_a_second_request(engine: Engine, drop: bool) -> int:
    engine.drain()
    if drop:
        engine.scheduler.drop_cache()
    engine.scheduler.add(submit("b", prompt(12)))
    engine.drain()
    return engine.cached["b"][0]


def test_nothing_is_found_when_the_cache_was_dropped_or_is_switched_off() -> None:
    first = submit("a", prompt(12))
    assert cached_of_a_second_request(engine_for(first), drop=False) == 8
    assert cached_of_a_second_request(engine_for(first), drop=True) == 0
    without = engine_for(first, enable_prefix_cache=False)
    assert cached_of_a_second_request(without, drop=False) == 0
