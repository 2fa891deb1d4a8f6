"""Parts of stored tensors: entries of fused ones, transposed, some rows; only they are read."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megainfer.checkpoint import reader as reader_module
from megainfer.checkpoint.reader import WeightReader
from megainfer.errors import CheckpointError
from megainfer.models.stored import Source

E, R, C = 3, 10, 7
FUSED = torch.randn(E, R, C, generator=torch.Generator().manual_seed(1))
TABLE = torch.randint(1 << 40, (R, C), generator=torch.Generator().manual_seed(3))
BIAS = torch.randn(E, R, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    tensors = {
        "fused": FUSED,
        "bias": BIAS,
        "square": FUSED[0].clone(),
        "narrow": FUSED.bfloat16(),
        "flat": FUSED.flatten(0, 1).clone(),
        "table": TABLE,
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


CUTS = [
    (Source("fused", (R, C), (E, R, C), index=1), FUSED[1]),
    (Source("fused", (C, R), (E, R, C), index=2, transposed=True), FUSED[2].T),
    (Source("fused", (5, C), (E, R, C), index=0, rows=(0, R, 2)), FUSED[0, 0::2]),
    (Source("fused", (5, C), (E, R, C), index=0, rows=(1, R, 2)), FUSED[0, 1::2]),
    (Source("fused", (3, C), (E, R, C), index=2, rows=(4, 7, 1)), FUSED[2, 4:7]),
    (
        Source("fused", (4, R), (E, R, C), index=1, transposed=True, rows=(0, C, 2)),
        FUSED[1].T[0::2],
    ),
    (
        Source("fused", (2, R), (E, R, C), index=1, transposed=True, rows=(3, 5, 1)),
        FUSED[1].T[3:5],
    ),
    (Source("square", (C, R), transposed=True), FUSED[0].T),
    (Source("flat", (R, C), (E * R, C), index=1, entries=E), FUSED[1]),
    (Source("flat", (C, R), (E * R, C), index=2, transposed=True, entries=E), FUSED[2].T),
    (Source("fused", (1, R, C), (E, R, C), rows=(2, 3, 1)), FUSED[2:]),
    (Source("square", (R, 3), (R, C), columns=(2, 5)), FUSED[0][:, 2:5]),
    (
        Source("fused", (3, 2), (E, R, C), index=1, rows=(4, 7, 1), columns=(5, C)),
        FUSED[1, 4:7, 5:],
    ),
    (
        Source(
            "fused", (4, 3), (E, R, C), index=1, transposed=True, rows=(0, C, 2), columns=(6, 9)
        ),
        FUSED[1].T[0::2, 6:9],
    ),
    (Source("bias", (R,), (E, R), index=2), BIAS[2]),
    (Source("bias", (5,), (E, R), index=1, rows=(1, R, 2)), BIAS[1, 1::2]),
    (Source("bias", (1, R), (E, R), rows=(1, 2, 1)), BIAS[1:2]),
]


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("source", "expected"), CUTS)
def test_a_part_is_what_slicing_gives(folder, source, expected, dtype, chunk_bytes, monkeypatch):
    monkeypatch.setattr(reader_module, "CHUNK_BYTES", chunk_bytes)
    with WeightReader(folder) as reader:
        assert torch.equal(reader.load((source,), dtype), expected.to(dtype))
        assert reader.bytes_read == reader.total_bytes([source])


def test_parts_are_joined_like_whole_tensors(folder):
    gate, up = (Source("fused", (5, C), (E, R, C), index=1, rows=(first, R, 2)) for first in (0, 1))
    with WeightReader(folder) as reader:
        joined = reader.load((gate, up), torch.float32)
        assert torch.equal(joined, torch.cat([FUSED[1, 0::2], FUSED[1, 1::2]]))
        assert reader.bytes_read == R * C * 4  # together they are one expert


def test_only_the_entry_is_read(folder):
    with WeightReader(folder) as reader:
        reader.load((Source("narrow", (R, C), (E, R, C), index=1),), torch.float32)
        assert reader.bytes_read == R * C * 2
        reader.load((Source("narrow", (2, C), (E, R, C), index=1, rows=(0, 2, 1)),), torch.float32)
        assert reader.bytes_read == (R + 2) * C * 2


def test_the_whole_tensors_shape_is_checked(folder):
    source = Source("fused", (R, C), (E + 1, R, C), index=1)
    with (
        WeightReader(folder) as reader,
        pytest.raises(CheckpointError, match=r"tensor fused has shape \[3, 10, 7\].*\[4, 10, 7\]"),
    ):
        reader.load((source,), torch.float32)


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_threads_share_what_is_to_be_read(folder, threads):
    sources = [
        Source("fused", (1, C), (E, R, C), index=i % E, rows=(i, i + 1, 1)) for i in range(R)
    ]
    out, told = torch.full((R, C), torch.nan), list[int]()
    with WeightReader(folder, told.append, threads) as reader:

        def load(rows: Sequence[int]) -> None:
            for row in rows:
                reader.load_into(out[row : row + 1], (sources[row],))

        reader.share(load, range(R))
    assert torch.equal(out, torch.stack([FUSED[i % E, i] for i in range(R)]))
    assert told == [C * 4 * (i + 1) for i in range(R)]


def test_what_one_thread_raises_is_raised(folder):
    def load(rows: Sequence[int]) -> None:
        if 2 in rows:
            reader.get("absent", (1,), torch.float32)

    with (
        WeightReader(folder, threads=2) as reader,
        pytest.raises(CheckpointError, match="no tensor absent"),
    ):
        reader.share(load, range(4))


def test_nothing_is_shared_out(folder):
    with WeightReader(folder, threads=2) as reader:
        reader.share(lambda _: pytest.fail("called"), [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"index": 0},  # of which shape?
        {"stored": (E, R, C), "index": E},
        {"stored": (E, C, R), "index": 0},
        {"stored": (E, C, R), "index": 0, "rows": (0, R, 1)},
        {"stored": (E, R, C), "index": 0, "rows": (0, R, 2)},
        {"stored": (E, R, C), "index": 0, "rows": (R, 2 * R, 1)},
        {"stored": (E, R, C), "index": 0, "transposed": True},
        {"stored": (E, R, C), "transposed": True},
    ],
)
def test_a_source_whose_parts_disagree_cannot_be_made(wrong):
    with pytest.raises(AssertionError):
        Source("fused", (R, C), **wrong)


def test_file_that_shrinks_after_it_was_opened_is_named(folder, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes())
    with WeightReader(tmp_path) as reader:
        last, shape = "narrow", (E, R, C)
        assert reader.get(last, shape, torch.float32).isfinite().all()
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(CheckpointError, match=r"tensor .* ends early"):
            reader.get(last, shape, torch.float32)


def test_whole_numbers_are_read_only_where_they_are_meant(folder):
    with WeightReader(folder) as reader:
        table = reader.load((Source("table", (R, C), integer=True),), torch.int64)
        assert torch.equal(table, TABLE)
        with pytest.raises(CheckpointError, match="table is stored as I64"):
            reader.load((Source("table", (R, C)),), torch.int64)
        with pytest.raises(CheckpointError, match="square is stored as F32"):
            reader.load((Source("square", (R, C), integer=True),), torch.int64)
