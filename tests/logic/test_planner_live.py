"""Planning from a running server: its /metrics, what they come to, and what to change."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.config import MAX_MICRO_BATCHES
from megainfer.errors import ConfigError, MegaInferError
from megainfer.planner.formulas import ENOUGH_MICRO_BATCHES
from megainfer.planner.live.advice import Advice, advise
from megainfer.planner.live.changes import changes, limits, scaled
from megainfer.planner.live.expected import Profiled, Proportional
from megainfer.planner.live.scrape import Sample, Scrape, window_between
from megainfer.planner.live.terms import Load, Terms
from megainfer.planner.live.work import Measured, measured
from megainfer.planner.profiles import Curve, StageProfile

LOAD = Load(8.0, 0.0, 500.0, 2, 1, 1, layers=10)
WEIGHTS_BOUND = StageProfile(
    Curve(((1, 1e-3), (64, 64e-3))),  # attention takes its time by rows
    Curve(((1, 4e-3), (64, 4e-3))),  # the experts read the same weights for any
    Curve(((1, 1e-5), (64, 1e-5))),
)


def now_of(load: Load, profile: StageProfile) -> Measured:
    """As if all were measured to be as the profile has it."""
    terms = Profiled(profile, load.attention, load.experts).terms(load)
    return Measured(load, terms, (0.0, 0.5), load.batch / terms.token)


# --- what would change ---------------------------------------------------------------------------


def test_experts_that_wait_for_one_attention_node_have_time_for_more() -> None:
    now = now_of(LOAD, WEIGHTS_BOUND)
    assert limits(now) == "attention"
    best, *_ = changes(now, Profiled(WEIGHTS_BOUND, 1, 1), other_turns=False)
    assert (best.attention, best.experts) == (3, 1)
    assert best.speedup == pytest.approx(3.0), "attention is alone at work, and is threefold"
    assert best.per_node == pytest.approx(3.0 * 2 / 4)
    assert best.token == pytest.approx(now.terms.token)


def test_a_node_that_nobody_waits_for_can_go() -> None:
    load = replace(LOAD, experts=2)
    profile = replace(WEIGHTS_BOUND, expert=Curve(((1, 1e-3), (64, 1e-3))))
    found = changes(now_of(load, profile), Profiled(profile, 1, 2), other_turns=False)
    fewer = [change for change in found if change.experts == 1 and change.attention == 1]
    assert [change.speedup for change in fewer] == [pytest.approx(1.0)]
    assert fewer[0].per_node == pytest.approx(1.5)


def test_one_batch_that_goes_to_and_fro_is_better_in_two() -> None:
    profile = replace(WEIGHTS_BOUND, expert=Curve(((1, 1e-3), (64, 64e-3))))
    load = replace(LOAD, micro_batches=1)
    found = changes(now_of(load, profile), Profiled(profile, 1, 1))
    turns = {change.micro_batches: change.speedup for change in found if change.attention == 1}
    # All that grows with rows is halved by two, and both roles are then at work.
    assert turns[2] == pytest.approx(2.0, rel=0.02)
    alone = changes(now_of(load, profile), Profiled(profile, 1, 1), other_turns=False)
    assert all(change.micro_batches == 1 for change in alone)


@given(
    fixed=st.tuples(*[st.floats(1e-5, 1e-2)] * 3),
    per_row=st.tuples(*[st.floats(0, 1e-3)] * 3),
    outside=st.floats(0, 0.1),
)
def test_of_all_micro_batches_that_are_served_four_are_enough(
    fixed: tuple[float, ...], per_row: tuple[float, ...], outside: float
) -> None:
    def token(m: int) -> float:
        rows = 64 / m
        stages = (own + row * rows for own, row in zip(fixed, per_row, strict=True))
        return Terms.paced(*stages, outside, replace(LOAD, rows=rows, micro_batches=m)).token

    best = min(token(m) for m in range(1, ENOUGH_MICRO_BATCHES + 1))
    assert best <= min(token(m) for m in range(1, MAX_MICRO_BATCHES + 1)) * (1 + 1e-9)


def test_no_more_micro_batches_are_advised_than_there_are_sequences() -> None:
    profile = replace(WEIGHTS_BOUND, expert=Curve(((1, 1e-3), (64, 64e-3))))
    for rows, most in ((1.0, 1), (3.0, 3), (9.0, ENOUGH_MICRO_BATCHES)):
        load = replace(LOAD, rows=rows, micro_batches=1)
        found = changes(now_of(load, profile), Profiled(profile, 1, 1))
        assert max((change.micro_batches for change in found), default=1) <= most


def test_where_all_is_at_work_nothing_is_worth_it_without_more_nodes() -> None:
    even = Curve(((1, 1e-3), (64, 64e-3)))
    profile = StageProfile(even, even, Curve(((1, 0.0), (64, 0.0))))
    found = changes(now_of(LOAD, profile), Profiled(profile, 1, 1))
    assert all(change.attention + change.experts > 2 for change in found)
    assert all(change.per_node < 1.01 for change in found)


def test_measured_terms_hold_where_nothing_changes() -> None:
    """Whatever the start said: only ratios are taken of it."""
    now = now_of(LOAD, WEIGHTS_BOUND)
    slow = replace(now, terms=replace(now.terms, attention=now.terms.attention * 3))
    same = scaled(slow, LOAD, Profiled(WEIGHTS_BOUND, 1, 1))
    assert same.attention == pytest.approx(slow.terms.attention)
    twice = scaled(slow, replace(LOAD, rows=16.0), Profiled(WEIGHTS_BOUND, 1, 1))
    assert twice.attention == pytest.approx(2 * slow.terms.attention)
    assert twice.experts == pytest.approx(slow.terms.experts)


@given(st.floats(1e-5, 1e-2), st.floats(1e-5, 1e-2), st.integers(1, 4), st.integers(1, 4))
def test_knowing_one_load_only_nobody_gains_more_than_their_share(
    t_a: float, t_e: float, attention: int, experts: int
) -> None:
    load = replace(LOAD, attention=attention, experts=experts)
    terms = Terms.paced(t_a, t_e, 1e-5, 1e-4, load)
    now = Measured(load, terms, (0.0, 0.0), 1.0)
    for change in changes(now, Proportional(terms, load), other_turns=False):
        more = max(change.attention / attention, change.experts / experts)
        assert change.speedup <= more * (1 + 1e-9)


# --- metrics ------------------------------------------------------------------------------------


def samples(steps: int, incarnation: int = 1, profiled: bool = True) -> Iterator[Sample]:
    """Of one attention and one expert node with 10 layers that have made so many steps of 4 rows;
    two API servers have counted their tokens."""
    yield Sample("process_cpu_seconds_total", {"server": "0"}, 3.0)
    runs, engine = steps * 10, {"model_name": "m", "engine": "0"}
    for role, stage, seconds in (
        *(("attention", "attention", 2e-3), ("attention", "dispatch", 1e-3)),
        *(("attention", "combine", 1e-3), ("expert", "expert", 3e-3)),
    ):
        labels = {"role": role, "node": "0", "stage": stage}
        yield Sample("megainfer:node_stage_seconds_total", labels, runs * seconds * incarnation)
        yield Sample("megainfer:node_stage_runs_total", labels, float(runs))
    for role, busy in (("attention", 0.04), ("expert", 0.03)):
        labels = {"role": role, "node": "0"}
        yield Sample("megainfer:node_up", labels, 1.0)
        yield Sample("megainfer:node_busy_seconds_total", labels, steps * busy)
        yield Sample("megainfer:m2n_timed_transfers_total", labels, float(runs))
        yield Sample("megainfer:m2n_transfer_seconds_total", labels, runs * 1e-4)
    yield Sample("megainfer:node_up", {"role": "expert", "node": "1"}, 0.0)
    yield Sample("megainfer:steps_total", engine, float(steps))
    yield Sample("megainfer:iteration_tokens_total_sum", engine, steps * 4.0)
    for server in ("0", "1"):
        yield Sample("megainfer:generation_tokens_total", {**engine, "server": server}, steps * 2)
    yield Sample("megainfer:micro_batches", engine, 2.0)
    yield Sample("megainfer:num_requests_running", engine, 8.0)
    yield Sample("megainfer:num_requests_waiting", engine, 3.0)
    yield Sample("megainfer:kv_cache_usage_perc", engine, 0.5)
    yield Sample("megainfer:cache_config_info", {**engine, "num_gpu_blocks": "80"}, 1.0)
    for rows, seconds in ((1, 1e-3), (8, 4e-3)) if profiled else ():
        for term in ("attention", "experts", "transfer"):
            labels = {"term": term, "rows": str(rows)}
            yield Sample("megainfer:profiled_seconds", labels, seconds)


def between(profiled: bool = True) -> tuple[Scrape, Scrape]:
    first = Scrape.of(samples(10, profiled=profiled), 100.0)
    return first, Scrape.of(samples(60, profiled=profiled), 110.0)


def test_terms_out_of_two_scrapes() -> None:
    now = measured(window_between(*between()))
    assert now is not None
    assert now.load == Load(4.0, 0.0, (40 / 8 - 0.5) * 16, 2, 1, 1, 10)
    assert now.terms.attention == pytest.approx(4e-3)
    assert now.terms.experts == pytest.approx(3e-3)
    assert now.terms.transfer == pytest.approx(1e-4)
    assert now.terms.token == pytest.approx(2 * 10 / 50)
    assert now.generated == pytest.approx(20.0)
    assert now.idle == pytest.approx((1 - 50 * 0.04 / 10, 1 - 50 * 0.03 / 10))


@pytest.mark.parametrize(("running", "in_use"), [(1.0, 1), (5.0, 1), (7.0, 2), (0.0, 2)])
def test_a_micro_batch_that_nobody_is_in_takes_no_turns(running: float, in_use: int) -> None:
    """Steps of 4 sequences each; a sequence waits for as many of them as have any."""

    def scrape(steps: int, at: float) -> Scrape:
        told = (
            sample._replace(value=running) if "requests_running" in sample.name else sample
            for sample in samples(steps)
        )
        return Scrape.of(told, at)

    now = measured(window_between(scrape(10, 100.0), scrape(60, 110.0)))
    assert now is not None
    assert now.load.micro_batches == in_use
    assert now.terms.token == pytest.approx(in_use * 10 / 50)


def test_advice_is_told_in_words() -> None:
    advice = advise(*between())
    assert advice.waiting == 3.0
    assert not advice.guessed
    text = "\n".join(advice.lines())
    assert "2 micro-batches of 4.0 sequences" in text
    assert "T_a 4 ms, T_e 3 ms, T_c 0.1 ms" in text
    assert "attention is idle 80%, the experts are idle 85%" in text
    assert "would give" in text
    assert "No request waits" not in text


def test_without_a_measured_start_advice_is_cautious_and_says_so() -> None:
    advice = advise(*between(profiled=False))
    assert advice.guessed
    assert "cautious" in "\n".join(advice.lines())
    assert all(change.micro_batches == 2 for change in advice.changes)


def test_a_server_without_load_is_said_to_need_some() -> None:
    first, _ = between()
    assert "send it load" in "\n".join(advise(first, replace(first, at=110.0)).lines())
    assert Advice(None, 0.0).changes == ()


def test_a_node_that_was_started_again_meanwhile_is_named() -> None:
    with pytest.raises(MegaInferError, match="attention node 0 was started again"):
        window_between(Scrape.of(samples(60), 0.0), Scrape.of(samples(10), 1.0))


def test_metrics_of_another_server_are_refused() -> None:
    with pytest.raises(MegaInferError, match="is that a MegaInfer server"):
        Scrape.of([Sample("vllm:num_requests_running", {"engine": "0"}, 1.0)], 0.0)


def test_a_profile_that_lacks_a_term_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks 'transfer'"):
        StageProfile.of({"attention": [(1, 1.0)], "experts": [(1, 1.0)]})
