"""How steps and requests end: finish, abort, abandon, failure, and the scheduler's audit."""

import pytest

from megainfer.errors import ConfigError
from megainfer.messages.requests import FinishReason, TokenEvent, TokenLogprobs
from tests.support.scheduler_engine import answer, config, engine_for, prompt, rows, step_of, submit

# --- the end of a request ------------------------------------------------------------------------


def test_a_stop_token_ends_a_request_and_is_part_of_its_answer() -> None:
    long_answer, _ = answer(submit("a", prompt(5), max_tokens=9), 64)
    stop = long_answer[3]
    expected = long_answer[: long_answer.index(stop) + 1]
    engine = engine_for(submit("a", prompt(5), max_tokens=9, stop=(stop,)))
    engine.drain()
    assert engine.outputs["a"] == expected
    assert engine.finished["a"] is FinishReason.STOP


def test_max_tokens_and_a_full_context_end_a_request() -> None:
    engine = engine_for(
        submit("few", [1], max_tokens=2), submit("full", prompt(60, 2), max_tokens=9)
    )
    engine.drain()
    assert {name: len(output) for name, output in engine.outputs.items()} == {"few": 2, "full": 4}
    assert set(engine.finished.values()) == {FinishReason.LENGTH}


def test_log_probabilities_go_with_their_tokens() -> None:
    engine = engine_for(submit("a", [1]), submit("b", [2]), num_micro_batches=1)
    step, scores = step_of(engine, 0), TokenLogprobs({6: -0.5}, 1)
    events = engine.scheduler.complete(step, [5, 6], [None, scores])
    told = [(event.request_id, event.token_ids, event.logprobs) for event in events]
    assert told == [("a", [5], None), ("b", [6], [scores])]


def test_a_step_may_not_end_twice_nor_before_those_it_depends_on() -> None:
    engine = engine_for(submit("a", prompt(20)))
    first, second = engine.offer()
    with pytest.raises(AssertionError, match=r"step 1 ends before steps \{0\}"):
        engine.scheduler.complete(second, [1])
    engine.finish(first)
    with pytest.raises(AssertionError, match="step 0 is not in flight"):
        engine.scheduler.complete(first, [])


def test_one_token_is_due_for_each_chunk_that_samples() -> None:
    engine = engine_for(submit("a", [1]))
    (step,) = engine.offer()
    with pytest.raises(ValueError, match="zip"):
        engine.scheduler.complete(step, [])


# --- abort, abandon, fail ------------------------------------------------------------------------


def test_abort_of_one_that_waits_or_rests_is_immediate() -> None:
    engine = engine_for(submit("a", prompt(5)), submit("b", [2]), max_num_seqs=1)
    engine.round()
    assert engine.scheduler.abort("a")
    assert engine.scheduler.abort("b")
    assert not engine.scheduler.live
    assert engine.offer() == []
    assert engine.scheduler.counters()["free_blocks"] == 64
    assert engine.scheduler.counters()["waiting"] == 0


def test_abort_in_flight_takes_effect_when_the_last_of_its_steps_ends() -> None:
    engine = engine_for(submit("a", prompt(40)))
    first, second = engine.offer()
    assert not engine.scheduler.abort("a")
    assert engine.finish(first) == []
    assert engine.compose(0) is None
    assert engine.scheduler.counters()["free_blocks"] == 64 - 8
    assert engine.finish(second) == [TokenEvent("a", [], FinishReason.ABORT)]
    assert engine.scheduler.counters()["free_blocks"] == 64
    assert not engine.scheduler.live


def test_a_token_sampled_after_the_abort_is_not_told() -> None:
    engine = engine_for(submit("a", [1]))
    (step,) = engine.offer()
    engine.scheduler.abort("a")
    assert engine.finish(step) == [TokenEvent("a", [], FinishReason.ABORT)]


def test_abort_of_the_unknown_is_ignored_and_its_id_is_free_again() -> None:
    engine = engine_for(submit("a", [1], max_tokens=1))
    assert not engine.scheduler.abort("b")
    engine.drain()
    assert not engine.scheduler.abort("a")
    engine.scheduler.add(submit("a", [1]))


def test_an_abandoned_step_is_composed_again_and_publishes_nothing() -> None:
    engine = engine_for(submit("a", prompt(10)))
    (step,) = engine.offer()
    engine.abandon(engine.flights[step.number])
    engine.scheduler.check_integrity()
    engine.scheduler.add(submit("b", prompt(10)))
    again = step_of(engine, 1)
    assert rows(again)[0] == ("a", 0, 10, True)
    assert again.number == step.number + 1
    engine.drain()
    assert engine.cached["b"][0] == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_dependents_may_be_abandoned_in_any_order(order: tuple[int, ...]) -> None:
    engine = engine_for(submit("a", prompt(40)), num_micro_batches=3)
    flights = [engine.flights[step.number] for step in engine.offer()]
    for number in order[:-1]:
        engine.abandon(flights[number])
        engine.scheduler.check_integrity()
        assert engine.compose(number) is None  # `a` waits for the rest
    engine.abandon(flights[order[-1]])
    assert rows(engine.compose(1))[0] == ("a", 0, 16, False)
    engine.drain()
    assert engine.outputs["a"] == answer(submit("a", prompt(40)), 64)[0]


def test_a_step_survives_the_abandonment_of_one_that_depends_on_it() -> None:
    engine = engine_for(submit("a", prompt(20)))
    first, second = engine.offer()
    engine.abandon(engine.flights[second.number])
    engine.finish(first)
    assert rows(engine.compose(0)) == [("a", 16, 4, True)]


def test_a_decoding_row_abandoned_gives_the_same_token_again() -> None:
    engine = engine_for(submit("a", [1], max_tokens=6))
    engine.round()
    (step,) = engine.offer()
    engine.run(engine.flights[step.number])
    engine.abandon(engine.flights[step.number])
    engine.drain()
    assert engine.outputs["a"] == answer(submit("a", [1], max_tokens=6), 64)[0]


@pytest.mark.parametrize("prompt_length", [1, 20])
def test_a_recurrent_sequence_begins_again_when_a_step_of_it_is_abandoned(
    prompt_length: int,
) -> None:
    """Its state has taken in the tokens of the abandoned step, as far as it had come."""
    request = submit("a", prompt(prompt_length), max_tokens=6)
    engine = engine_for(request, recurrent=True, enable_prefix_cache=False)
    if prompt_length == 1:
        engine.round()
    *earlier, last = engine.offer()
    for step in (*earlier, last):
        engine.run(engine.flights[step.number])
    engine.abandon(engine.flights[last.number])
    for step in earlier:  # goes on as if nothing had happened, and what it gave is not needed
        engine.end(engine.flights[step.number])
    engine.scheduler.check_integrity()
    assert engine.scheduler.counters()["preemptions"] == 1
    assert rows(engine.compose(0))[0][:2] == ("a", 0)
    engine.drain()
    assert engine.outputs["a"] == answer(request, 64)[0]


def test_slots_of_states_are_those_of_running_sequences() -> None:
    requests = [submit(f"r{i}", prompt(3, first=i), max_tokens=3 + i) for i in range(6)]
    engine = engine_for(*requests, max_num_seqs=3, recurrent=True, enable_prefix_cache=False)
    taken = set()
    while engine.scheduler.live:
        engine.round()
        engine.scheduler.check_integrity()
        taken |= {s.state_slot for s in engine.scheduler.live if s.block_ids}
    assert taken == {0, 1, 2}


def test_a_prefix_cache_beside_recurrent_states_is_refused() -> None:
    with pytest.raises(ConfigError, match="don't go with a prefix cache"):
        config(recurrent=True)


def test_an_abort_may_take_effect_by_abandonment() -> None:
    engine = engine_for(submit("a", [1]))
    (step,) = engine.offer()
    engine.scheduler.abort("a")
    assert engine.scheduler.abandon(step) == [TokenEvent("a", [], FinishReason.ABORT)]
    assert not engine.scheduler.live


# --- the audit -----------------------------------------------------------------------------------


def test_check_integrity_names_a_lost_block() -> None:
    engine = engine_for(submit("a", prompt(9)))
    engine.offer()
    next(iter(engine.scheduler.live)).block_ids.pop()
    with pytest.raises(AssertionError, match="1 references, 0 tables hold it"):
        engine.scheduler.check_integrity()


def test_check_integrity_names_tokens_that_no_step_holds() -> None:
    engine = engine_for(submit("a", prompt(9)))
    engine.offer()
    sequence = next(iter(engine.scheduler.live))
    sequence.num_scheduled -= 1
    with pytest.raises(AssertionError, match=r"a: parts end at \[0, 9\] but begin at \[0, 8\]"):
        engine.scheduler.check_integrity()


def test_check_integrity_names_a_sequence_in_the_wrong_micro_batch() -> None:
    engine = engine_for(submit("a", [1]))
    engine.round()
    next(iter(engine.scheduler.live)).micro_batch = 1
    with pytest.raises(AssertionError, match="is not where micro-batch 1 should have it"):
        engine.scheduler.check_integrity()
