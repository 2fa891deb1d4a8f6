"""Clients of an attention node: none waits until another's sequences have ended."""

from tests.support.scheduler_engine import Engine, engine_for, prompt, submit

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
