"""Devices of plans: the table, a user's own file over it, and curves of what is reached."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megainfer.errors import ConfigError
from megainfer.planner.hardware import (
    Device,
    Efficiency,
    Link,
    Utilisation,
    find_device,
    load_devices,
    paper_devices,
    to_toml,
)

OURS = load_devices()
FIGURES = {
    *("memory_bytes", "memory_bytes_per_second", "flops"),
    *("link", "nic", "watts", "price"),
}
WHOLE = """
[device.mine]
kind = "cpu"
memory_bytes = 16e9
memory_bytes_per_second = 20e9
flops = { bfloat16 = 1e12 }
link = { bytes_per_second = 5e9, latency_seconds = 1e-6 }
nic = { bytes_per_second = 1e9, latency_seconds = 1e-5 }
watts = 50
price = 0.1
efficiency = "cpu"
"""


def loaded(folder: Path, text: str) -> dict[str, Device]:
    path = folder / "devices.toml"
    path.write_text(text)
    return load_devices(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text)
    return str(caught.value)


# ---- the table ----


def test_issue_17s_devices_are_there() -> None:
    nvidia = {"A100", "A800", "H100", "H800", "H200", "H20", "L20", "L40S", "B200", "GB200", "B300"}
    assert OURS.keys() >= nvidia | {"RTX PRO 6000", "MI300X", "MI355X"}
    assert sum(device.kind == "cpu" for device in OURS.values()) >= 2


@pytest.mark.parametrize("name", OURS)
def test_every_figure_has_its_source(name: str) -> None:
    sources = OURS[name].sources
    assert sources.keys() >= FIGURES
    assert not [f for f in FIGURES if sources[f].startswith("given in")], "each says where from"


@pytest.mark.parametrize("name", OURS)
def test_figures_are_in_the_units_that_their_names_say(name: str) -> None:
    device = OURS[name]
    assert 40e9 < device.memory_bytes < 1e12
    assert 300e9 < device.memory_bytes_per_second < 10e12
    assert 7e12 < device.flops["bfloat16"] < 3e15
    assert 10e9 < device.nic.bytes_per_second <= 100e9 <= 10 * device.link.bytes_per_second
    assert 0 < device.link.latency_seconds <= device.nic.latency_seconds < 1e-4
    assert 200 < device.watts < 1500
    assert 1 <= device.price < 20


def test_the_paper_has_its_own_figures() -> None:
    paper = paper_devices()
    assert {
        name: (d.price, d.memory_bytes, d.memory_bytes_per_second, d.flops["bfloat16"])
        for name, d in paper.items()
    } == {
        "L20": (1.0, 48e9, 864e9, 119.5e12),
        "H800": (5.28, 80e9, 3430.4e9, 989e12),
        "A800": (2.26, 80e9, 2039e9, 312e12),
        "H20": (1.85, 96e9, 4096e9, 148e12),
        "L40S": (1.08, 48e9, 864e9, 362e12),
    }
    by_bandwidth = max(paper.values(), key=lambda d: d.memory_bytes_per_second / d.price)
    by_arithmetic = max(paper.values(), key=lambda d: d.flops["bfloat16"] / d.price)
    assert (by_bandwidth.name, by_arithmetic.name) == ("H20", "L40S"), "as the paper chooses"


def test_a_domain_of_nvlink_is_a_rack_of_gb200() -> None:
    assert OURS["GB200"].link.devices == 72
    assert OURS["B200"].link == replace(OURS["GB200"].link, devices=8)


@pytest.mark.parametrize(
    ("device", "dtype", "arithmetic"),
    [
        ("A100", "fp8", "bfloat16"),  # it has none, and widens weights first
        ("H100", "fp8_channel", "fp8"),
        ("H100", "mxfp4", "bfloat16"),
        ("B200", "mxfp4", "fp4"),
        ("B300", "int8", "bfloat16"),  # its own is slower
        ("H100", "int4_128", "bfloat16"),
        ("H100", "float16", "bfloat16"),
        ("H100", "float32", "float32"),
    ],
)
def test_rate_is_of_the_arithmetic_made_for_a_dtype(
    device: str, dtype: str, arithmetic: str
) -> None:
    assert OURS[device].rate(dtype) == OURS[device].flops[arithmetic]


def test_without_a_rate_of_float32_it_is_bfloat16s() -> None:
    device = replace(OURS["H100"], flops={"bfloat16": 5.0})
    assert device.rate("float32") == 5.0


# ---- names ----


@pytest.mark.parametrize("name", ["RTX PRO 6000", "rtx-pro-6000", "RtxPro_6000"])
def test_names_are_found_however_they_are_written(name: str) -> None:
    assert find_device(OURS, name) is OURS["RTX PRO 6000"]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'H10'; the nearest: H100, .*known are .*MI355X"):
        find_device(OURS, "H10")


# ---- a user's own file ----


def test_a_file_adds_a_device(tmp_path: Path) -> None:
    devices = loaded(tmp_path, WHOLE)
    assert devices.keys() == OURS.keys() | {"mine"}
    mine = devices["mine"]
    assert mine.link == Link(5e9, 1e-6, devices=1)
    assert mine.efficiency == OURS["XEON 8480+"].efficiency
    assert mine.sources["watts"] == f"given in {tmp_path / 'devices.toml'}"


def test_a_file_changes_single_figures(tmp_path: Path) -> None:
    text = '[device.h100]\nprice = 3\nlink = { devices = 4 }\n[device.h100.sources]\nlink = "us"'
    changed = loaded(tmp_path, text)["H100"]
    sources = {"price": f"given in {tmp_path / 'devices.toml'}", "link": "us"}
    assert changed == replace(
        OURS["H100"],
        price=3.0,
        link=replace(OURS["H100"].link, devices=4),
        sources={**OURS["H100"].sources, **sources},
    )


def test_a_device_is_like_another(tmp_path: Path) -> None:
    devices = loaded(tmp_path, '[device."H100 PCIe"]\nlike = "h-100"\nwatts = 350')
    ours, new = devices["H100"], devices["H100 PCIe"]
    assert ours == OURS["H100"]
    assert (new.watts, new.flops) == (350, ours.flops)


def test_curves_of_a_file_hold_for_all_that_name_them(tmp_path: Path) -> None:
    devices = loaded(tmp_path, "[efficiency.hopper]\nstep_seconds = 9e-6")
    assert devices["H100"].efficiency == replace(OURS["H100"].efficiency, step_seconds=9e-6)
    assert devices["B200"].efficiency.step_seconds == 9e-6, "which are like them"
    assert devices["L20"].efficiency.step_seconds == 9e-6, "like those that are"
    assert devices["XEON 8480+"] == OURS["XEON 8480+"]


def test_a_device_changes_single_curves(tmp_path: Path) -> None:
    text = "[device.H100.efficiency]\nnic = [[1000, 0.5]]\nproducts = { int8 = [[1, 0.25]] }"
    changed, ours = loaded(tmp_path, text)["H100"].efficiency, OURS["H100"].efficiency
    assert changed.nic == Utilisation(((1000.0, 0.5),))
    assert changed.product("int8").at(7) == 0.25
    assert changed.product("bfloat16") == ours.product("bfloat16")
    assert changed.weights_read == ours.weights_read


def test_named_curves_leave_nothing_of_those_before(tmp_path: Path) -> None:
    text = """
    [device.a]
    like = "H100"
    efficiency = { nic = [[1000, 0.5]] }
    [device.b]
    like = "a"
    efficiency = "ada"
    """
    devices = loaded(tmp_path, text)
    assert devices["a"].efficiency.nic.at(7) == 0.5
    assert devices["b"].efficiency == OURS["L40S"].efficiency


def test_experts_have_curves_of_their_own(tmp_path: Path) -> None:
    text = "[device.H100.efficiency]\nexpert_products = { int8 = [[1, 0.25]] }"
    changed, ours = loaded(tmp_path, text)["H100"].efficiency, OURS["H100"].efficiency
    assert changed.expert_product("int8").at(7) == 0.25
    assert changed.expert_product("bfloat16") == ours.expert_products["any"]
    assert changed.product("int8") == ours.product("int8")


def test_a_device_with_a_kind_keeps_nothing_of_ours(tmp_path: Path) -> None:
    devices = loaded(tmp_path, WHOLE.replace("mine", "H100"))
    assert devices["H100"].flops == {"bfloat16": 1e12}
    assert len(devices) == len(OURS)


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    odd = replace(
        OURS["H20"],
        name='a "b"\\c\n\x7f é',
        flops={"bfloat16": 1.5e13},
        sources={**OURS["H20"].sources, "price": "an 'odd' \"one\"\x01"},
        efficiency=replace(OURS["H20"].efficiency, expert_layer_seconds=1 / 3),
    )
    calibrated = replace(odd, name="h100")  # as one of ours, written otherwise
    written = [OURS["GB200"], odd, calibrated]
    devices = loaded(tmp_path, to_toml(written))
    assert [devices[device.name] for device in written] == written
    assert "H100" not in devices, "it was replaced"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[device.H1000]\nwatts = 3", 'H1000 is not in our table.*like = "H100"'),
        (
            '[device.x]\nkind = "gpu"\nlike = "H100"\nwatts = 3',
            "device x has a kind and is like 'H100': .* leave one of them out",
        ),
        ('[device.x]\nlike = "H1000"', "device x is like 'H1000', which isn't there; try H100"),
        ("[device.H100]\nwats = 3", "device H100: there is no 'wats'; did you mean watts"),
        ("[device.H100.link]\nbandwidth = 3", "H100: link: there is no 'bandwidth'"),
        ("[device.H100.efficiency]\ngemm = 3", "H100: efficiency: there is no 'gemm'"),
        ('[device.H100]\nefficiency = "hoper"', "efficiency is like 'hoper'.*try hopper"),
        ('[device.H100]\nwatts = "700 W"', r"device H100: .*`float`, got `str`.*watts"),
        ("[device.H100]\nwatts = 0", "H100: watts is 0.0, but must be more than 0"),
        ("[device.H100]\nmemory_bytes = nan", "memory_bytes is nan"),
        ("[device.H100]\nmemory_bytes = inf", "memory_bytes is inf"),
        ("[device.H100]\nflops = { fp2 = 1e12 }", "flops.fp2 .*is no rate; these are: float32"),
        ("[device.H100]\nflops = { fp8 = -1.0 }", "flops.fp8 is -1.0"),
        ('[device.H100]\nkind = "gpu"', "device H100: .*missing required field"),
        ('[device.H100]\nkind = "tpu"', "device H100: "),
        (
            "[device.H100.nic]\nbytes_per_second = 0",
            "H100: a link's bytes_per_second is 0.0, but must be",
        ),
        (
            "[device.H100.nic]\nlatency_seconds = -1",
            "a link's latency_seconds is -1.0, but must be at",
        ),
        ("[device.H100.link]\ndevices = 0", "a link joins 0 devices"),
        ("[device.H100.link]\nawake_seconds = -1", "a link's awake_seconds is -1.0, but must be"),
        ("[device.H100.nic]\nwaking_seconds = inf", "a link's waking_seconds is inf, but must be"),
        (
            "[device.H100.efficiency]\nnic = []",
            "H100: efficiency.nic: a utilisation curve needs a point",
        ),
        ("[device.H100.efficiency]\nnic = [[1, 2, 3]]", "H100: "),
        ("[device.H100.efficiency]\nnic = 0.5", "H100: efficiency.nic: "),
        ("[device.H100.efficiency]\nlaunch_seconds = -1", "launch_seconds is -1"),
        (
            "[efficiency.a]\nlike = 'b'\n[efficiency.b]\nlike = 'a'\n"
            + WHOLE.replace('efficiency = "cpu"', 'efficiency = "a"'),
            "device mine: efficiency a is like itself",
        ),
        ("device = 3", "device must be tables"),
        ("[device]\nH100 = 3", "device must be tables"),
        ("[devices.H100]\nwatts = 3", "'devices' is no table of devices"),
        ("[device.H100\n", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(str(tmp_path / "devices.toml"))
    assert re.search(says, message), message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        load_devices(tmp_path / "none.toml")


def test_no_curve_for_all_dtypes_is_refused() -> None:
    curves = {"int8": Utilisation.constant(1)}
    one = Utilisation.constant(1)
    with pytest.raises(ConfigError, match="attention_read needs a curve named 'any'"):
        Efficiency({"any": one}, {"any": one}, curves, one, one, one, one, one, 0.0)


# ---- curves ----

sizes = st.floats(1e-3, 1e12)
times = st.lists(st.tuples(sizes, st.floats(1e-9, 1e3)), min_size=1, max_size=12)


def test_half_way_is_half_way_of_the_logarithms() -> None:
    curve = Utilisation(((1, 0.01), (100, 0.25), (1000, 0.25)))
    assert curve.at(10) == pytest.approx(0.05)
    assert [curve.at(size) for size in (0.001, 1, 100, 500, 1000, 1e9)] == pytest.approx(
        [0.01, 0.01, 0.25, 0.25, 0.25, 0.25]
    )


@pytest.mark.parametrize("points", [((1, 0.1), (1, 0.1)), ((2, 0.1), (1, 0.1)), ((0, 0.1),)])
def test_sizes_increase(points: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ConfigError, match="sizes"):
        Utilisation(points)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, math.nan])
def test_fractions_are_of_a_peak(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        Utilisation(((1, fraction),))


def test_more_in_less_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"from 0.1 at 1 to 0.5 at 4: more .* in less time"):
        Utilisation(((1, 0.1), (4, 0.5)))


@given(times, sizes, st.floats(1, 1e6))
def test_more_never_takes_less_time(
    measured: list[tuple[float, float]], size: float, factor: float
) -> None:
    curve = Utilisation.measured(1e6, measured)
    less, more = (s / curve.at(s) for s in (size, size * factor))
    assert more >= less * (1 - 1e-9)


@given(times)
def test_measured_times_that_rise_come_back(measured: list[tuple[float, float]]) -> None:
    curve = Utilisation.measured(1e6, measured)
    for size, _ in measured:
        so_far = max(seconds for other, seconds in measured if other <= size)
        assert size / 1e6 / curve.at(size) == pytest.approx(max(so_far, size / 1e6))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_more_rows_or_bytes_never_take_a_device_less_time(name: str, dtype: str) -> None:
    efficiency = OURS[name].efficiency
    curves = [efficiency.product(dtype), efficiency.expert_product(dtype)]
    curves += [efficiency.attention(dtype), efficiency.link, efficiency.nic, efficiency.copied]
    for curve in (*curves, efficiency.weights_read, efficiency.experts_read):
        taken = [2.0**i / curve.at(2.0**i) for i in range(40)]
        assert all(more >= less * (1 - 1e-9) for less, more in pairwise(taken))
