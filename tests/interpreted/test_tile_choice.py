"""Which tiles grouped products have, by what was measured and by what is known of a GPU; into how
many segments attention is cut."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megainfer.compute.experts import ExpertsShape
from megainfer.compute.gpu import measured_tiles
from megainfer.compute.gpu.kernels.attention.segments import Programs, segments_of
from megainfer.compute.gpu.kernels.experts import grouped_ffn
from megainfer.compute.gpu.measured_tiles import Measured, as_entry
from megainfer.compute.gpu.tile_shape import Product, TileShape, tile_rows, tile_shape
from megainfer.device import Chip, HostDevice
from megainfer.errors import ConfigError
from tests.support.gpu_experts import GpuExperts, forward

CHIP = "Some GPU/2"
SHAPE = ExpertsShape(2, 128, 64, 1)
GATED = Measured("bfloat16", True, 64, 128, 16, True)
TILE = TileShape(16, 32, 32, 2, 3, 1)


class SomeGpu(HostDevice):
    chip = Chip(CHIP, 90)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(measured_tiles, "FOLDER", tmp_path)
    measured_tiles.measured_tiles.cache_clear()
    yield tmp_path / "Some GPU 2.json"
    measured_tiles.measured_tiles.cache_clear()


def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What grouped products are launched with from here on."""
    found, launch = list[dict[str, Any]](), grouped_ffn.launch_through

    def noted(*arguments: Any, **constants: Any) -> None:
        found.append(constants)
        launch(*arguments, **constants)

    monkeypatch.setattr(grouped_ffn, "launch_through", noted)
    return found


def test_a_measured_tile_goes_before(file, monkeypatch):
    file.write_text(json.dumps([as_entry(GATED, TILE)]))
    experts = GpuExperts(SHAPE, "bfloat16", SomeGpu())
    x, (ids, weights) = experts.rows(3, torch.bfloat16), experts.choices(3)
    constants = launched(monkeypatch)
    actual = forward(experts.layer(), x, ids, weights)
    expected = experts.expected(x, ids, weights).float()
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)
    gate_up, down = constants
    assert (gate_up["OUTPUTS"], gate_up["STEP"], gate_up["num_warps"]) == (32, 32, 2)
    assert down["STEP"] == 64, "nothing was measured for it, and a row has 64 inputs"


@pytest.mark.parametrize(("invariant", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_measured_tile_is_not_for_all(file, monkeypatch, invariant, dtype):
    """Neither where bits must not depend on how many tiles there are, nor for rows in float32."""
    rows = 64 if invariant else 16
    file.write_text(json.dumps([as_entry(GATED._replace(rows=rows), TILE)]))
    experts = GpuExperts(SHAPE, "bfloat16", SomeGpu(), invariant)
    x, (ids, weights) = experts.rows(3, dtype), experts.choices(3)
    constants = launched(monkeypatch)
    forward(experts.layer(), x, ids, weights)
    assert constants[0]["STEP"] == 64


@pytest.mark.parametrize("content", ["{", "[1]", "[{}]", '{"tiles": []}'])
def test_a_file_that_is_no_list_of_tiles_is_refused(file, content):
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"Some GPU 2\.json isn't a list of measured tiles"):
        GpuExperts(SHAPE, "bfloat16", SomeGpu())


@pytest.mark.parametrize(
    "wrong",
    [{"step": 256}, {"step": 48}, {"outputs": 0}, {"warps": "4"}, {"stages": 99}, {"more": 1}],
    ids=str,
)
def test_a_tile_that_kernels_cannot_have_is_refused(file, wrong):
    entry: dict[str, Any] = as_entry(GATED, TILE)
    entry["tile"] |= wrong
    file.write_text(json.dumps([entry]))
    with pytest.raises(ConfigError, match="isn't a list of measured tiles"):
        measured_tiles.measured_tiles(CHIP)


def test_nothing_was_measured_where_there_is_no_file(file):
    assert measured_tiles.measured_tiles(CHIP) == {}
    assert measured_tiles.measured_tiles("") == {}


def test_rows_of_tiles():
    each = (0.06, 4, 8, 16, 32, 64, 128, 1000)
    found = [tile_rows(rows, wide=False, invariant=False) for rows in each]
    assert found == [16, 16, 16, 32, 64, 128, 128, 128]
    assert {tile_rows(rows, wide=False, invariant=True) for rows in each} == {64}
    assert {tile_rows(rows, wide=True, invariant=False) for rows in each} == {16}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("inputs", [2048, 2880, 768, 64])
def test_no_step_leaves_a_row(gated, scaled, inputs):
    inputs = -(-inputs // 128) * 128 if scaled else inputs
    for architecture in (0, 80, 89, 90, 100):
        product = Product(gated, scaled, False, False, True, inputs, architecture)
        for rows in (16, 32, 64, 128):
            for scarce in (False, True):
                assert inputs % tile_shape(product, rows, scarce).step == 0


@pytest.mark.parametrize("rows", [64, 128])
def test_scarcity_of_tiles_enters_for_few_rows_alone(rows):
    """Where results must not depend on the step, tiles have 64 rows."""
    product = Product(True, False, False, False, True, 2048, 90)
    assert tile_shape(product, rows, False) == tile_shape(product, rows, True)


@pytest.mark.parametrize("count", [1, 4, 64, 256, 512, 5000])
def test_segments_keep_a_device_busy(count):
    at_once, reach = 396, 8192
    found = segments_of(reach, reach, Programs(count, at_once, 0), False)
    assert found.length * found.programs >= reach
    assert found.length % 64 == 0
    assert found.length >= 256
    in_use = count * found.programs
    waves = -(-in_use // at_once)
    assert found.programs == reach // 256 or in_use / (waves * at_once) >= 0.8


def test_segments_do_not_depend_on_the_step_where_bits_must_not():
    lengths = {
        segments_of(9000, 9000, Programs(count, 396, 0), True).length for count in (1, 64, 9999)
    }
    assert lengths == {512}
