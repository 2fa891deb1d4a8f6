"""Clients of an attention node: none waits until another's sequences have ended."""

from collections import Counter

import msgspec

from megainfer.attention_node.scheduling.company import LINGER_STEPS
from megainfer.attention_node.scheduling.turns import LEAST_ROWS
from tests.support.scheduler_engine import Engine, engine_for, prompt, step_of, submit

HOSTILE = [submit(f"h{i}", prompt(4, i), max_tokens=50, client="hostile") for i in range(12)]


def running(engine: Engine, client: str) -> list[str]:
    live = engine.scheduler.live
    return [s.request_id for s in live if s.submit.client == client and s.block_ids]


def test_who_comes_later_has_places_at_once() -> None:
    engine = engine_for(*HOSTILE, num_micro_batches=1, max_num_seqs=4)
    for _ in range(4):
        engine.round()
    assert running(engine, "hostile") == ["h0", "h1", "h2", "h3"]
    for i in range(3):
        engine.scheduler.add(submit(f"x{i}", prompt(4, 50 + i), max_tokens=50, client="honest"))
    engine.round()
    engine.round()
    engine.scheduler.check_integrity()
    assert running(engine, "honest") == ["x0", "x1"], "as many as the other has, and no more"
    assert running(engine, "hostile") == ["h0", "h1"], "the latest had to go"


def test_places_go_back_when_nobody_else_wants_them() -> None:
    engine = engine_for(*HOSTILE, num_micro_batches=1, max_num_seqs=4)
    engine.round()
    engine.scheduler.add(submit("x", prompt(4, 50), max_tokens=2, client="honest"))
    while "x" not in engine.finished:
        engine.round()
    engine.round()
    assert len(running(engine, "hostile")) == 4
    assert engine.scheduler.counters()["preemptions"] == 1


def test_blocks_are_yielded_as_places_are() -> None:
    """The cache is full of one client's sequences, and another's fits beside none of them."""
    hostile = [submit(f"h{i}", prompt(24, i), max_tokens=20, client="hostile") for i in range(2)]
    engine = engine_for(
        *hostile, num_micro_batches=1, num_blocks=16, max_num_batched_tokens=64, max_num_seqs=8
    )
    engine.round()
    assert running(engine, "hostile") == ["h0", "h1"]
    engine.scheduler.add(submit("x", prompt(24, 50), max_tokens=4, client="honest"))
    engine.round()
    assert running(engine, "honest") == ["x"]
    assert running(engine, "hostile") == ["h0"]


def test_long_prompts_leave_rows_for_others() -> None:
    hostile = [submit(f"h{i}", prompt(50, i), max_tokens=4, client="hostile") for i in range(3)]
    engine = engine_for(
        *hostile, num_micro_batches=1, num_blocks=64, max_num_batched_tokens=16, max_num_seqs=8
    )
    for _ in range(4):
        engine.round()
    assert running(engine, "hostile") == ["h0", "h1"], "one of them is still being taken in"
    engine.scheduler.add(submit("x", prompt(4, 50), max_tokens=1, client="honest"))
    engine.round()
    assert "x" in engine.finished


def test_a_priority_is_among_a_clients_own() -> None:
    urgent = [
        submit(f"h{i}", prompt(4, i), max_tokens=9, priority=-100, client="hostile")
        for i in range(6)
    ]
    engine = engine_for(*urgent, num_micro_batches=1, max_num_seqs=2)
    engine.scheduler.add(submit("x", prompt(4, 50), max_tokens=3, client="honest"))
    engine.round()
    assert running(engine, "honest") == ["x"]
    for name, priority in (("late", 0), ("urgent", -1)):
        engine.scheduler.add(
            submit(name, prompt(4, 60), max_tokens=3, priority=priority, client="honest")
        )
    while "late" not in engine.finished:
        engine.round()
    assert list(engine.finished).index("urgent") < list(engine.finished).index("late")


def test_steps_hold_as_many_of_one_client_as_of_all_others() -> None:
    hostile = [submit(f"h{i}", prompt(4, i), max_tokens=50, client="hostile") for i in range(40)]
    engine = engine_for(
        *hostile, num_micro_batches=1, num_blocks=800, max_num_batched_tokens=256, max_num_seqs=60
    )
    engine.round()
    (step,) = engine.offer()
    assert len(step.chunks) == 40, "alone it has all"
    engine.finish(step)
    for i in range(10):
        engine.scheduler.add(submit(f"x{i}", prompt(4, 50 + i), max_tokens=50, client="honest"))
    engine.round()
    told: dict[str, int] = {}
    for _ in range(8):
        for event in engine.round():
            told[event.request_id] = told.get(event.request_id, 0) + 1
    assert [told[f"x{i}"] for i in range(10)] == [8] * 10
    assert [told[f"h{i}"] for i in range(40)] == [2] * 40, "they take turns"


# --- prompts -------------------------------------------------------------------------------------


def _rows(engine: Engine, micro_batches: int = 1) -> list[dict[str, int]]:
    """By client, of a step of each micro-batch."""
    found = []
    for micro_batch in range(micro_batches):
        step = step_of(engine, micro_batch)
        rows = Counter[str]()
        for chunk in step.chunks:
            rows[chunk.sequence.submit.client] += chunk.length
        found.append(dict(rows))
        engine.finish(step)
    return found


def _beside(
    micro_batches: int = 1, honest: int = 1, prompts: int = 2, scored_row_cost: float = 1.0
) -> Engine:
    """An engine where so many honest sequences add tokens, and so many hostile prompts come."""
    own = [submit(f"x{i}", prompt(4, i), max_tokens=40, client="honest") for i in range(honest)]
    engine = engine_for(
        *own,
        num_micro_batches=micro_batches,
        max_num_batched_tokens=32,
        num_blocks=256,
        max_num_seqs=16,
        fair_prompt_rows=6,
        scored_row_cost=scored_row_cost,
    )
    while any(not sequence.adds_tokens for sequence in engine.scheduler.live):
        engine.round()
    for i in range(prompts):
        engine.scheduler.add(submit(f"h{i}", prompt(50, 90 + i), max_tokens=4, client="hostile"))
    return engine


def _decode(engine: Engine, count: int) -> None:
    """So many further hostile sequences, of one row a step, come before the long prompts."""
    for i in range(count):
        engine.scheduler.add(
            submit(f"d{i}", prompt(1), max_tokens=50, client="hostile", priority=-1)
        )


def test_prompts_beside_others_who_add_tokens_are_computed_in_small_pieces() -> None:
    engine = _beside()
    for _ in range(8):
        assert _rows(engine) == [{"honest": 1, "hostile": 6}]


def test_as_many_rows_as_the_others_have_are_fair() -> None:
    assert _rows(_beside(honest=9)) == [{"honest": 9, "hostile": 9}]


def test_the_pieces_are_of_all_micro_batches_together() -> None:
    engine = _beside(micro_batches=2)
    hostile = [rows["hostile"] for rows in _rows(engine, micro_batches=2)]
    assert hostile == [3, 3]


def test_prompts_have_all_rows_once_others_have_been_away_for_some_steps() -> None:
    engine = _beside(prompts=30)
    engine.scheduler.abort("x0")
    steps = [_rows(engine)[0]["hostile"] for _ in range(LINGER_STEPS + 2)]
    assert steps[:-2] == [6] * LINGER_STEPS, "somebody may come back"
    assert steps[-1] == 32


def test_nothing_large_is_begun_while_a_client_asks_again() -> None:
    """It asks as soon as it is answered, and then again: no step that it waits for is large."""
    engine = _beside(prompts=30)
    engine.scheduler.abort("x0")
    for i in range(20):
        engine.round()
        engine.scheduler.add(submit(f"y{i}", prompt(4, 50 + i), max_tokens=3, client="honest"))
        while f"y{i}" not in engine.finished:
            assert _rows(engine)[0]["hostile"] <= 6


def test_decoding_is_shared_while_a_client_asks_again() -> None:
    hostile = [submit(f"h{i}", prompt(4, i), max_tokens=50, client="hostile") for i in range(40)]
    engine = engine_for(
        *hostile,
        num_micro_batches=1,
        num_blocks=800,
        max_num_batched_tokens=256,
        max_num_seqs=60,
        fair_prompt_rows=6,
    )
    engine.round()
    engine.scheduler.add(submit("x", prompt(4, 60), max_tokens=3, client="honest"))
    while "x" not in engine.finished:
        engine.round()
    assert _rows(engine) == [{"hostile": LEAST_ROWS}]


def test_rows_that_a_client_decodes_count_with_its_prompts() -> None:
    engine = _beside(prompts=1)
    _decode(engine, 2)
    for _ in range(11):
        assert _rows(engine)[0]["hostile"] == 6
    assert {"d0", "d1"} <= engine.outputs.keys()


def test_prompts_of_one_token_are_prompts() -> None:
    """Else whoever asks for one token each time would have as many in a step as run at once."""
    engine = _beside(prompts=0)
    for i in range(12):
        engine.scheduler.add(submit(f"h{i}", prompt(1), max_tokens=1, client="hostile"))
    assert [_rows(engine)[0]["hostile"] for _ in range(2)] == [6, 6]


def test_a_client_that_decodes_much_has_rows_for_prompts_all_the_same() -> None:
    engine = _beside(honest=2, prompts=4)
    _decode(engine, 8)
    while len(engine.outputs) < 2 + 8:
        engine.round()
    (rows,) = _rows(engine)
    assert rows["hostile"] == 8 + 3, "half of what is fair"


def test_rows_whose_logits_are_wanted_count_as_what_they_cost() -> None:
    engine = _beside(prompts=0, scored_row_cost=2.0)
    scored = msgspec.structs.replace(
        submit("h", prompt(50, 90), max_tokens=4, client="hostile"), prompt_logprobs=20
    )
    engine.scheduler.add(scored)
    assert _rows(engine) == [{"honest": 1, "hostile": 3}]


def test_a_step_of_logits_costs_no_more_than_one_of_other_rows() -> None:
    engine = engine_for(
        num_micro_batches=1, num_blocks=64, max_num_batched_tokens=32, scored_row_cost=4.0
    )
    scored = msgspec.structs.replace(submit("h", prompt(50), max_tokens=4), prompt_logprobs=1)
    engine.scheduler.add(scored)
    assert _rows(engine) == [{"": 8}]


def test_a_client_whose_prompts_have_their_rows_holds_up_nobody_else() -> None:
    """It has fewer sequences running, so that its next one comes before those of the other."""
    engine = _beside(honest=3, prompts=2)
    engine.round()
    engine.scheduler.add(submit("x", prompt(4, 60), max_tokens=4, client="honest"))
    (rows,) = _rows(engine)
    assert rows == {"honest": 3 + 4, "hostile": 6}


def test_prompts_of_several_clients_do_not_slow_each_other() -> None:
    two = [submit(name, prompt(40, place), client=name) for place, name in enumerate("ab")]
    engine = engine_for(
        *two, num_micro_batches=1, max_num_batched_tokens=32, num_blocks=64, fair_prompt_rows=2
    )
    assert sum(_rows(engine)[0].values()) == 32
