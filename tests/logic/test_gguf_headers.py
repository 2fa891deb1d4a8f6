"""Headers of GGUF files: what is read, and what hostile or damaged ones are told."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from megainfer.errors import CheckpointError, ModelError
from megainfer.gguf import header as headers
from megainfer.gguf.files import gguf_files, read_headers
from megainfer.gguf.header import read_header
from megainfer.gguf.kinds import KINDS, NAMES
from megainfer.gguf.metadata import Metadata, shortest

U64, LIST, TEXT = "<Q", 9, 8


def written(path: Path, **options) -> Path:
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_block_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list(["a", "bc", "é"])
    writer.add_token_types([1, 3, 1])
    writer.add_add_bos_token(False)
    writer.add_tensor("one", np.arange(12, dtype=np.float32).reshape(3, 4))
    codes = np.zeros((2, 3, 34), np.uint8)
    writer.add_tensor("two", codes, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("three", np.ones((1, 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "m.gguf")


def start(tensors: int = 0, metadata: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, metadata)


def text(value: bytes) -> bytes:
    return struct.pack(U64, len(value)) + value


def entry(name: bytes = b"t", shape=(32,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + b"".join(struct.pack(U64, length) for length in shape)
        + struct.pack("<IQ", kind, offset)
    )


def test_metadata_and_tensors_are_what_was_written(path):
    found = read_header(path)
    metadata = Metadata(path, found.metadata)
    assert metadata.whole("llama.block_count") == 2
    assert metadata.number("llama.attention.layer_norm_rms_epsilon") == 1e-6
    assert metadata.texts("tokenizer.ggml.tokens") == ["a", "bc", "é"]
    assert list(metadata.numbers("tokenizer.ggml.token_type")) == [1, 3, 1]
    assert metadata.flag("tokenizer.ggml.add_bos_token") is False
    assert [(t.name, t.kind, t.shape) for t in found.tensors] == [
        ("one", "F32", (3, 4)),
        ("two", "Q8_0", (2, 3, 32)),
        ("three", "F32", (5,)),
    ]
    one = found.tensors[0]
    data = path.read_bytes()[one.offset : one.offset + one.size]
    assert np.frombuffer(data, np.float32).tolist() == list(range(12))


def test_types_are_those_of_the_gguf_package():
    for number, name in NAMES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert theirs.name == name
        if name in KINDS:
            assert gguf.GGML_QUANT_SIZES[theirs] == (KINDS[name].values, KINDS[name].size)


def test_a_file_cut_off_anywhere_is_refused(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    end = max(t.offset + t.size for t in read_header(path).tensors)
    for size in (*range(0, 700, 7), end - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.gguf is corrupt or truncated"):
            read_header(cut)


HOSTILE = {
    "tensors": (start(tensors=2**63), "9223372036854775808 tensors, more than there is room"),
    "metadata": (start(metadata=2**40), "metadata, more than there is room"),
    "key": (start(metadata=1) + struct.pack(U64, 2**62) + b" " * 20, "needs 4611686018427387904"),
    "list": (
        start(metadata=1) + text(b"k") + struct.pack("<IIQ", LIST, 4, 2**61),
        "numbers of a list, more than",
    ),
    "texts": (
        start(metadata=1) + text(b"k") + struct.pack("<IIQ", LIST, TEXT, 2**60),
        "strings of a list, more than",
    ),
    "nested": (
        start(metadata=1) + text(b"k") + struct.pack("<IIQ", LIST, LIST, 1),
        "a value of type 9",
    ),
    "type": (start(metadata=1) + text(b"k") + struct.pack("<IQ", 77, 0), "a value of type 77"),
    "version": (start(version=1), "of version 1"),
    "order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "axes": (start(tensors=1) + entry(shape=(1,) * 9), "has 9 axes"),
    "length": (start(tensors=1) + entry(shape=(2**62, 2**62)), "ends at byte"),
    "empty": (start(tensors=1) + entry(shape=(0,)), r"F32 \[0\]"),
    "blocks": (start(tensors=1) + entry(shape=(33,), kind=8), r"Q8_0 \[33\], in blocks of 32"),
    "beyond": (start(tensors=1) + entry(offset=2**63), "ends at byte"),
    "twice": (start(tensors=2) + entry() + entry(offset=128) + bytes(600), "two tensors of one"),
    "above": (
        start(tensors=2) + entry(b"a") + entry(b"b", offset=64) + bytes(600),
        "b lies where another",
    ),
    "utf-8": (start(metadata=1) + text(b"\xff\xff") + bytes(20), "can't decode"),
    "key twice": (start(metadata=2) + (text(b"k") + struct.pack("<I?", 7, True)) * 2, "'k' twice"),
    "alignment": (
        start(metadata=1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
        "no power of two",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_at_once(tmp_path, name):
    content, told = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_header(path)


def test_no_more_is_read_of_a_header_than_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", 64)
    path = tmp_path / "m.gguf"
    path.write_bytes(start(metadata=1) + text(b"k") + struct.pack("<I", TEXT) + text(b"v" * 90))
    with pytest.raises(CheckpointError, match="headers have at most 64"):
        read_header(path)


def test_a_type_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(start(tensors=1) + entry(b"blk.0.x", kind=19) + bytes(200))
    with pytest.raises(CheckpointError, match=r"blk\.0\.x is stored as IQ1_S.*supported: F32"):
        read_header(path)


def test_parts_are_found_from_any_of_them_and_from_their_folder(tmp_path):
    written(tmp_path / "m.gguf", split_max_tensors=1)
    names = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for place in (tmp_path, tmp_path / names[1]):
        files = gguf_files(place)
        assert [path.name for path in files] == names
    assert [t.name for h in read_headers(files) for t in h.tensors] == ["one", "two", "three"]


def test_a_part_that_is_missing_or_out_of_place_is_named(tmp_path):
    written(tmp_path / "m.gguf", split_max_tensors=1)
    second, third = (tmp_path / f"m-{number:05}-of-00003.gguf" for number in (2, 3))
    third.rename(tmp_path / "kept")
    with pytest.raises(ModelError, match=r"one of 3 parts, and m-00003-of-00003\.gguf is not"):
        gguf_files(tmp_path)
    third.write_bytes(second.read_bytes())
    with pytest.raises(ModelError, match=r"m-00003.*says that it is part 1 \(from 0\) of 3"):
        read_headers(gguf_files(tmp_path))


def test_a_folder_with_two_models_is_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"several models, a\.gguf and b\.gguf"):
        gguf_files(tmp_path)


def test_a_metadatum_of_another_type_is_named_with_its_value():
    metadata = Metadata(Path("m.gguf"), {"a": "x", "b": True, "c": 1.5})
    for ask, key in ((metadata.whole, "b"), (metadata.number, "a"), (metadata.flag, "c")):
        with pytest.raises(ModelError, match=rf"m\.gguf: {key} is .*but must be"):
            ask(key)
    assert metadata.whole("none") is None


@pytest.mark.parametrize("value", [1e-6, 1e-5, 10000.0, 0.1, 1.0986123, 5e6, 1e30])
def test_the_shortest_decimal_of_a_float32_is_what_was_written(value):
    assert shortest(float(np.float32(value))) == value
