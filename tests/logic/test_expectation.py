"""From a plan that is served to the plan's terms, by hardware that was described."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.expectation import expectation_of
from megainfer.launch.plan import Plan, make_plan
from megainfer.planner.costs import Contexts, Step
from megainfer.planner.hardware import load_devices
from megainfer.planner.live.expected import Hardware
from megainfer.planner.live.terms import Load, Terms, pace_of
from tests.support.calibrated import devices
from tests.support.checkpoints import write_config
from tests.support.gpus import H200X8, HOST

LOAD = Load(8.0, 0.0, 300.0, 2, 1, 1, layers=3)
TWO_CORES = replace(HOST, cores=(0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config("qwen3_moe", "gqa", tmp_path_factory.mktemp("small"), dtype="bfloat16")


def plan_of(folder: Path, **options: Any) -> Plan:
    config = EngineConfig(**{"device": "cpu", "dtype": "bfloat16", **options})
    return make_plan(config, folder, TWO_CORES)


def hardware_of(folder: Path, **options: Any) -> Hardware:
    return expectation_of(plan_of(folder, **options), devices(), None)


def test_roles_that_take_turns_have_all_cores(folder: Path) -> None:
    found = hardware_of(folder, micro_batches=1)
    assert (found.attention.device.name, found.experts.device.name) == ("here-2", "here-2")


def test_roles_at_work_at_once_have_their_own_cores_beside_each_other(folder: Path) -> None:
    found = hardware_of(folder, micro_batches=2)
    assert found.attention.device.name == "here-1"
    assert found.busy_experts.device.name == "here-1-beside"
    alone, both = (found.terms(replace(LOAD, micro_batches=m)) for m in (1, 2))
    assert both.attention > alone.attention, "memory is shared by those at work"


def test_a_single_process_has_a_device_of_its_own(folder: Path) -> None:
    found = hardware_of(folder, colocated=True)
    assert found.together
    assert found.attention.device.name == "here-colocated"
    once, twice = (found.terms(replace(LOAD, micro_batches=m)) for m in (1, 2))
    assert once.transfer == 0.0
    assert once.token == pytest.approx(3 * (once.attention + once.experts) + once.outside)
    assert twice.token == pytest.approx(2 * once.token), "their steps follow each other"


def test_terms_are_those_of_the_costs_and_their_pace(folder: Path) -> None:
    """Of hardware that is as fast beside others."""
    known = devices()
    known["here-1-beside"] = replace(known["here-1"], name="here-1-beside")
    plan = plan_of(folder, micro_batches=2, ffn_gpus=2, attn_gpus=2)
    found = expectation_of(plan, known, None)
    load = replace(LOAD, attention=2, experts=2)
    terms = found.terms(load)
    step, own = Step(8.0, Contexts.at(300.0)), known["here-1"]
    assert terms.attention == pytest.approx(found.stages.attention(own, 1).layer(step, 2).total)
    assert terms.experts == pytest.approx(found.stages.experts(own, 1, 2).layer(16.0).total)
    assert terms.outside == pytest.approx(found.stages.attention(own, 1).outside(step).total)
    assert terms.token >= load.layers * 2 * max(terms.attention, terms.experts)
    # A message's packing is in T_a and in what is measured as T_c, but passes only once.
    slowest = pace_of(terms.attention, terms.experts, terms.transfer, terms.outside, load)
    assert terms.token <= slowest.seconds


def test_who_works_beside_others_is_as_much_slower_as_they_are_at_work(folder: Path) -> None:
    """The busier role always works; while it does, the other does for its own stage's time only."""
    found = hardware_of(folder, micro_batches=2)
    load = replace(LOAD, rows=64.0)
    alone, both = found.terms(replace(load, micro_batches=1)), found.terms(load)
    step, beside = Step(64.0, Contexts.at(300.0)), found.busy_attention.device
    busy = found.stages.attention(beside, 1).layer(step, 1).total
    slowest = found.stages.experts(beside, 1, 1).layer(64.0).total
    assert slowest < busy, "of this model"
    assert both.experts == pytest.approx(slowest)
    assert alone.attention < both.attention < busy


def test_a_single_sequence_wakes_both_roles_in_turn(folder: Path) -> None:
    """One of two micro-batches is empty; each role sleeps while the other works for longer than it
    looks for messages."""
    load = replace(LOAD, rows=1.0, micro_batches=1)
    awake = hardware_of(folder, micro_batches=2)
    terms = awake.terms(load)

    def terms_of(awake_seconds: float) -> Terms:
        known = {
            name: replace(
                device,
                link=replace(device.link, awake_seconds=awake_seconds, waking_seconds=2e-4),
                nic=replace(device.nic, awake_seconds=awake_seconds, waking_seconds=2e-4),
            )
            for name, device in devices().items()
        }
        return expectation_of(plan_of(folder, micro_batches=2), known, None).terms(load)

    sleepy = terms_of(min(terms.attention, terms.experts) / 2)
    assert sleepy.token == pytest.approx(terms.token + load.layers * 2 * 2e-4)
    assert sleepy.transfer == pytest.approx(terms.transfer + 2e-4)
    assert (sleepy.attention, sleepy.experts) == (terms.attention, terms.experts)
    assert terms_of(2 * terms.token) == terms, "who is still looking needn't be woken"


def test_more_context_takes_longer_and_more_rows_too(folder: Path) -> None:
    found = hardware_of(folder, micro_batches=2)
    for more in (replace(LOAD, context=3000.0), replace(LOAD, rows=64.0)):
        assert found.terms(more).attention > found.terms(LOAD).attention
        assert found.terms(more).token > found.terms(LOAD).token


def test_gpus_are_found_by_what_their_driver_calls_them(folder: Path) -> None:
    plan = make_plan(EngineConfig(attn_gpus=1, ffn_gpus=2), folder, H200X8)
    found = expectation_of(plan, load_devices(), None)
    assert found.attention.device.name == found.busy_experts.device.name == "H200"
    assert found.experts.count == 2


def test_nodes_that_nobody_measured_are_told_how_to_be(folder: Path) -> None:
    known = devices()
    del known["here-1"]
    with pytest.raises(ConfigError, match=r"no device NAME-1 .*megainfer calibrate --cores 1"):
        expectation_of(plan_of(folder, micro_batches=2), known, None)
    with pytest.raises(ConfigError, match="no device there-colocated"):
        expectation_of(plan_of(folder, colocated=True), known, "there")


def test_of_several_machines_one_has_to_be_named(folder: Path) -> None:
    known = {**devices("here"), **devices("there")}
    plan = plan_of(folder, colocated=True)
    with pytest.raises(ConfigError, match=r"several machines \(here, there\).*--hardware-name"):
        expectation_of(plan, known, None)
    assert expectation_of(plan, known, "there").attention.device.name == "there-colocated"
