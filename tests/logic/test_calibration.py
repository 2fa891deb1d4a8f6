"""From measured times to a device, and what is measured in which order; no kernel runs here."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megainfer.calibration.caches import places, working_set
from megainfer.calibration.calibrate import check_cores, check_memory
from megainfer.calibration.description import device_of
from megainfer.calibration.layers import (
    Served,
    among_sleepers,
    taking_turns,
    with_cold_steps,
    with_row_work,
)
from megainfer.calibration.measured import Exchanged, HostWork, LayerTime
from megainfer.calibration.timing import in_turn, undisturbed
from megainfer.calibration.toy import BULKY, no_cache_holds, write_model
from megainfer.cli import app
from megainfer.compute.selection import Precision
from megainfer.errors import ConfigError
from megainfer.launch.machine import Machine
from megainfer.models.registry import load_spec
from megainfer.planner.costs import AttentionStage, Contexts, ExpertStage, ModelCosts, Step
from megainfer.planner.hardware import Device, load_devices, to_toml
from tests.support.calibrated import (
    FLOPS_A_ROW,
    HOST,
    KERNELS,
    LINKS,
    PEAKS,
    RATE,
    ROWS,
    SHARE,
)


@pytest.fixture
def device() -> Device:
    return device_of(SHARE, KERNELS, LINKS, HOST)


@pytest.mark.parametrize("dtype", PEAKS)
@pytest.mark.parametrize("rows", ROWS)
def test_what_was_measured_comes_back(device: Device, dtype: str, rows: int) -> None:
    (product,) = [time for time in KERNELS.products[dtype] if time.size == rows]
    used = device.efficiency.product(dtype).at(rows)
    assert FLOPS_A_ROW * rows / (device.rate(dtype) * used) == pytest.approx(product.seconds)
    (expert,) = [time for time in KERNELS.experts[dtype] if time.size == rows]
    used = device.efficiency.expert_product(dtype).at(rows)
    assert expert.amount / (device.rate(dtype) * used) == pytest.approx(expert.seconds)


def test_reading_a_cache_and_moving_rows_take_what_they_took(device: Device) -> None:
    for dtype, times in KERNELS.attention.items():
        for time in times:
            reached = device.efficiency.attention(dtype).at(time.size)
            assert time.size / (RATE * reached) == pytest.approx(time.seconds)
    small, large = LINKS
    size = large.moved_bytes
    moving = size / (RATE * device.efficiency.copied.at(size))
    assert moving == pytest.approx(large.moving - small.moving)
    assert device.link.latency_seconds == pytest.approx(HOST.transfer - small.packing / 2)
    sleepers = device_of(SHARE, KERNELS, LINKS, replace(HOST, awake=1e-3, waking=2e-4))
    for road in (sleepers.link, sleepers.nic):
        assert (road.awake_seconds, road.waking_seconds) == (1e-3, 2e-4)


def test_a_device_has_its_part_of_the_machine_and_a_source_of_each_figure(
    device: Device,
) -> None:
    assert (device.memory_bytes, device.watts, device.price) == (8e9, 50.0, 1.0)
    assert device.efficiency.attention_layer_seconds == HOST.attention_layer
    assert device.efficiency.expert_layer_seconds == HOST.expert_layer
    figures = ("memory_bytes", "memory_bytes_per_second", "flops", "link", "nic", "watts", "price")
    assert set(figures) <= device.sources.keys()
    assert "not measured" in device.sources["nic"]


@pytest.mark.parametrize("awake", [inf, 1e-3])
def test_the_planner_reads_back_what_calibrate_writes(awake: float, tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    device = device_of(SHARE, KERNELS, LINKS, replace(HOST, awake=awake, waking=2e-4))
    path.write_text(to_toml([device]))
    assert load_devices(path)["here-1"] == device


def test_moving_that_took_no_longer_costs_nothing_beside_memory() -> None:
    same = (LINKS[0], Exchanged(64, 4096, 4e-6, 26e-6))
    assert device_of(SHARE, KERNELS, same, HOST).efficiency.copied.at(10**6) == 1.0


def test_reading_that_was_lost_in_noise_costs_what_memory_costs() -> None:
    nothing = replace(KERNELS, attention=dict.fromkeys(KERNELS.attention, ()))
    device = device_of(SHARE, nothing, LINKS, HOST)
    assert device.efficiency.attention("bfloat16").at(10**6) == 1.0


def test_memory_is_as_fast_as_the_kernel_that_reads_it_fastest(device: Device) -> None:
    assert device.memory_bytes_per_second == pytest.approx(RATE)
    slow_sum = replace(KERNELS, summing=RATE / 3)
    assert device_of(SHARE, slow_sum, LINKS, HOST).memory_bytes_per_second == pytest.approx(RATE)
    quick_sum = replace(KERNELS, summing=2 * RATE)
    assert device_of(SHARE, quick_sum, LINKS, HOST).memory_bytes_per_second == 2 * RATE


def test_rounds_go_through_all_works_in_turn() -> None:
    done: list[str] = []
    taken = undisturbed({name: lambda name=name: done.append(name) for name in "abc"}, rounds=3)
    assert done == [*"abc"] * 4, "one round to warm, then three"
    assert taken.keys() == set("abc")
    assert all(seconds >= 0 for seconds in taken.values())


def test_works_in_turn_are_none_the_same_as_the_last() -> None:
    done: list[int] = []
    work = in_turn([lambda number=number: done.append(number) for number in range(3)])
    for _ in range(5):
        work()
    assert done == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("wish", "found"), [((), (2,)), ((4, 1, 4), (1, 4)), ((3,), (3,))], ids=str
)
def test_cores_of_a_node(wish: Sequence[int], found: tuple[int, ...]) -> None:
    assert check_cores(wish, Machine((0, 1, 2, 3), 2**30, 2**30, False)) == found


@pytest.mark.parametrize("count", [0, 5])
def test_cores_that_are_not_there_are_named(count: int) -> None:
    with pytest.raises(ConfigError, match=f"--cores {count}: this machine has 4"):
        check_cores((count,), Machine((0, 1, 2, 3), 2**30, 2**30, False))


def test_a_machine_with_too_little_memory_is_told_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("megainfer.calibration.calibrate.working_set", lambda: 2**30)
    check_memory(Machine((0,), 2**34, 13 * 2**30, False))
    with pytest.raises(ConfigError, match=r"takes 13\.0 GiB of memory, but 12\.0 GiB are free"):
        check_memory(Machine((0,), 2**34, 12 * 2**30, False))


@pytest.mark.parametrize(
    ("sizes", "working"),
    [
        (("48K", "2048K", "266240K"), 2 * 266240 * 2**10),
        (("32K", "1M"), 128 * 2**20),
        (("2G",), 2**30),
        (("", "what?", "96M"), 192 * 2**20),
        ((), 128 * 2**20),
    ],
    ids=str,
)
def test_a_working_set_is_more_than_caches_hold(
    sizes: Sequence[str], working: int, tmp_path: Path
) -> None:
    for index, size in enumerate(sizes):
        cache = tmp_path / f"index{index}"
        cache.mkdir()
        (cache / "size").write_text(f"{size}\n")
    assert working_set(tmp_path) == working


def test_a_model_that_no_cache_holds_has_as_many_layers_as_that_takes() -> None:
    layer = 2 * 16 * 3 * 768 * 512
    assert no_cache_holds(BULKY, 4 * layer) == BULKY
    assert no_cache_holds(BULKY, 9 * layer + 1).layers == 10


def test_cases_that_need_nearly_all_of_a_cache_begin_where_they_fit() -> None:
    assert places([3, 5, 12], 12, 2) == [[0, 0], [3, 3], [0, 0]]


def test_a_folder_that_is_not_there_is_named_before_a_minute_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "here.toml"
    with pytest.raises(ConfigError, match=r"--output .*here\.toml: there is no folder"):
        CliRunner().invoke(app, ["calibrate", "--output", str(path)], catch_exceptions=False)


# --- what layers of a served model take more ------------------------------------------------------


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory) -> ModelCosts:
    folder = write_model(BULKY, tmp_path_factory.mktemp("bulky"))
    return ModelCosts.of(load_spec(folder), Precision("bfloat16"))


def _served(costs: ModelCosts, device: Device, sends: bool) -> Served:
    """As the device says that it is."""

    def time(rows: int) -> LayerTime:
        attention = AttentionStage(costs, device).layer(Step(rows, Contexts.at(16)), int(sends))
        experts = ExpertStage(costs, device).layer(rows)
        return LayerTime(rows, 16.0, attention.total, experts.total, 0.0)

    return Served(costs, time(1), time(32))


@pytest.mark.parametrize("sends", [False, True])
def test_what_rows_add_to_layers_is_found(device: Device, bulky: ModelCosts, sends: bool) -> None:
    efficiency = replace(
        device.efficiency, attention_channel_seconds=5e-9, expert_channel_seconds=2e-9
    )
    truth = replace(device, efficiency=efficiency)
    found = with_row_work(device, _served(bulky, truth, sends), sends).efficiency
    assert found.attention_channel_seconds == pytest.approx(5e-9)
    assert found.expert_channel_seconds == pytest.approx(2e-9)


def test_layers_that_were_quicker_than_expected_add_nothing(
    device: Device, bulky: ModelCosts
) -> None:
    nothing = LayerTime(1, 16.0, 0.0, 0.0, 0.0)
    served = Served(bulky, nothing, replace(nothing, rows=32))
    assert with_row_work(device, served, sends=False) == device


def test_a_step_beside_large_layers_takes_what_it_takes_there(bulky: ModelCosts) -> None:
    apart, together = (
        HostWork(90e-6, 40e-6, 30e-6, 500e-6, 8e-6),
        HostWork(9e-6, 5e-6, 0, 3e-4, 1e-5),
    )
    layers, beside = BULKY.layers, 900e-6
    few = LayerTime(1, 16.0, 1e-3, 2e-3, layers * 3e-3 + beside)
    cold = with_cold_steps([apart, together], together, Served(bulky, few, replace(few, rows=32)))
    assert [host.step for host in cold] == pytest.approx([500e-6 + 590e-6, 890e-6])
    quick = replace(few, step=layers * 3e-3 + 100e-6)
    same = with_cold_steps([apart, together], together, Served(bulky, quick, quick))
    assert same == [apart, together], "what a small model shows is the least"


def test_waking_who_waits_is_what_two_processes_take_more_than_one(bulky: ModelCosts) -> None:
    apart, together = HostWork(90e-6, 40e-6, 30e-6, 500e-6, 8e-6), HostWork(9e-6, 5e-6, 0, 3e-4, 0)
    layers, computed = BULKY.layers, 2e-3

    def served(host: HostWork, layer: float) -> Served:
        few, many = (
            LayerTime(rows, 16.0, 0.0, 0.0, layers * layer + host.step + host.sequence * rows)
            for rows in (1, 32)
        )
        return Served(bulky, few, many)

    in_one = served(together, computed + 14e-6)
    slow = replace(in_one.many, step=1.0)
    assert taking_turns(apart, together, served(apart, computed), replace(in_one, many=slow)) == (
        taking_turns(apart, together, served(apart, computed), in_one)
    ), "rows are counted elsewhere"
    found = taking_turns(apart, together, served(apart, computed + 700e-6), in_one)
    assert found.attention_layer + found.expert_layer + 2 * found.transfer == pytest.approx(700e-6)
    assert found.attention_layer - apart.attention_layer == pytest.approx(
        found.expert_layer - apart.expert_layer
    )
    assert replace(found, attention_layer=90e-6, expert_layer=40e-6) == apart
    no_waking = taking_turns(apart, together, served(apart, computed), in_one)
    assert no_waking == apart, "what a small model shows is the least"


def test_messages_take_what_those_of_large_layers_take_by_how_long_they_were_waited_for(
    bulky: ModelCosts,
) -> None:
    small, awake = HostWork(90e-6, 40e-6, 30e-6, 500e-6, 8e-6), 1e-3

    def served(few: tuple[float, float], many: tuple[float, float]) -> Served:
        """(T_a, T_e); messages to whoever waits for as long take 70 us, or 270 us of sleepers."""

        def message(wait: float) -> float:
            return 70e-6 if wait < awake else 270e-6

        times = (
            LayerTime(rows, 16.0, t_a, t_e, 1.0, message(t_a), message(t_e))
            for rows, (t_a, t_e) in ((1, few), (32, many))
        )
        return Served(bulky, *times)

    found = among_sleepers(small, served((0.4e-3, 0.7e-3), (0.6e-3, 4e-3)), awake)
    assert (found.transfer, found.waking) == pytest.approx((70e-6, 200e-6))
    assert replace(found, transfer=30e-6, awake=inf, waking=0.0) == small
    never = among_sleepers(small, served((0.1e-3, 0.2e-3), (0.3e-3, 0.4e-3)), awake)
    assert (never.transfer, never.waking) == pytest.approx((70e-6, 0.0)), "none was seen asleep"
    always = among_sleepers(small, served((2e-3, 3e-3), (4e-3, 5e-3)), awake)
    assert (always.transfer, always.waking) == pytest.approx((30e-6, 240e-6))
    doubtful = among_sleepers(small, served((0.95e-3, 1.05e-3), (0.9e-3, 1.1e-3)), awake)
    assert (doubtful.transfer, doubtful.waking) == (30e-6, 0.0), "some slept and some did not"
