"""A plan that went to another process as bytes is the same plan, or is refused by name."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from megainfer.config import EngineConfig
from megainfer.errors import ProtocolError
from megainfer.launch.machine import Machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.plan_codec import FORMAT, decode_plan, encode_plan
from megainfer.models.quantization import Codes, QuantizationSpec
from tests.support.checkpoints import VARIANTS, write_config

MACHINE = Machine((0, 1, 2, 3), 2**36, 2**35, bfloat16_arithmetic=True)


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_every_familys_plan_comes_back_equal(family, variant, tmp_path):
    folder = write_config(family, variant, tmp_path)
    plan = make_plan(EngineConfig(attn_gpus=2), folder, MACHINE)
    decoded = decode_plan(encode_plan(plan))
    assert decoded == plan
    assert repr(decoded) == repr(plan)  # the kinds of all values too, which compare equal


@pytest.fixture
def plan(tmp_path) -> Plan:
    config = EngineConfig(
        model=str(tmp_path),
        kernels="reference",
        override_generation_config={"top_p": 0.25, "top_k": 3},
    )
    planned = make_plan(config, write_config("mixtral", "gqa", tmp_path), MACHINE)
    stored = QuantizationSpec("awq", Codes.AWQ, 4, (1, None), False, kept=("lm_head",))
    return replace(planned, quantization=stored)


def test_what_is_seldom_there_comes_back_too(plan):
    decoded = decode_plan(encode_plan(plan))
    assert repr(decoded) == repr(plan)
    assert isinstance(decoded.folder, Path)
    assert decoded.quantization == plan.quantization


def tampered(plan: Plan, path: tuple[str, ...], value: object) -> bytes:
    """The bytes of a plan with this in place of what is at `path`."""
    content = msgspec.msgpack.decode(encode_plan(plan))
    *inner, last = path
    fields = content[1][1]
    for name in inner:
        fields = fields[name][1]
    fields[last] = value
    return msgspec.msgpack.encode(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("num_blocks",), "many", "plan.num_blocks of a plan: Expected `int`"),
        (("num_blocks",), 1.5, "plan.num_blocks of a plan: Expected `int`"),
        (("spec", "norm", "kind"), "batch", "plan.spec.norm.kind of a plan: Invalid enum"),
        (("spec", "layers"), 3, "plan.spec.layers of a plan is no list"),
        (("spec", "layers"), [], "no layer of this checkpoint has experts"),
        (("spec", "layers"), [["LayerSpec", {"attention": 1, "ffn": 1}]], r"layers\[0\].attention"),
        (("quantization", "block"), [1], "block of a plan has 1 items, not 2"),
        (("quantization",), ["Plan", {}], "quantization of a plan is no QuantizationSpec"),
        (("config", "attn_gpus"), 0, "--attn-gpus"),
        (("folder",), None, "folder of a plan: Expected `str`"),
        (("later",), 1, "is no Plan as this version has it"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(plan, path, value, message):
    with pytest.raises(ProtocolError, match=message):
        decode_plan(tampered(plan, path, value))


def test_other_formats_and_other_bytes_are_refused(plan):
    data = encode_plan(plan)
    later = msgspec.msgpack.encode([FORMAT + 1, "anything"])
    with pytest.raises(ProtocolError, match=f"format {FORMAT + 1}; this version reads {FORMAT}"):
        decode_plan(later)
    for other in (b"", data[:-1], data + b"x", b"\x93", msgspec.msgpack.encode({"plan": 1})):
        with pytest.raises(ProtocolError, match="are no plan"):
            decode_plan(other)
