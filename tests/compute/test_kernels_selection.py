"""Which kernels serve: what was built, what was asked for, and what is said about it."""

import importlib.machinery
import importlib.util
import logging
import shutil

import pytest
import torch

from megainfer.compute.backend import Backend
from megainfer.compute.cpu.kernels import library
from megainfer.compute.experts import ExpertsShape
from megainfer.compute.selection import Precision, open_backend, resolve_kernels
from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.launch.plan_text import describe
from tests.support.checkpoints import write_checkpoint
from tests.support.kernel_experts import Experts, levels

SHAPE = ExpertsShape(3, 20, 12, 2)

built = pytest.mark.skipif(not levels(), reason="the CPU kernels were not built")


@pytest.fixture
def not_built(monkeypatch, tmp_path):
    """As after an installation without a compiler: the library's file isn't there."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def result(backend: Backend, dtype: torch.dtype) -> torch.Tensor:
    experts = Experts(SHAPE)
    layer = backend.experts(SHAPE)(SHAPE.experts)
    for expert in range(SHAPE.experts):
        layer.put(expert, layer.prepare(experts.gate_up[expert], experts.down[expert]))
    x, (ids, weights) = experts.rows(7, dtype), experts.choices(7)
    out = torch.empty_like(x)
    counts = layer.forward(
        [x[:3], x[3:]], [ids[:3], ids[3:]], list(weights.split([3, 4])), list(out.split([3, 4]))
    )
    assert torch.equal(counts, torch.bincount(ids.flatten() + 1, minlength=4)[1:])
    return out


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", ["auto", "float32", "bfloat16"])
def test_implementations_are_interchangeable(dtype, weight_dtype):
    precision = Precision(str(dtype).removeprefix("torch."), experts=weight_dtype)
    reference, cpu = (result(open_backend(name, precision), dtype) for name in ("reference", "cpu"))
    assert reference.dtype == cpu.dtype == dtype
    narrow = torch.bfloat16 in (dtype, getattr(torch, weight_dtype, None))
    torch.testing.assert_close(cpu, reference, atol=3e-2 if narrow else 1e-6, rtol=1e-2)


@built
def test_auto_is_the_fast_one_and_a_plan_says_which(tmp_path):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    plan = make_plan(
        EngineConfig(dtype="bfloat16", expert_dtype="int8", attention_dtype="float32"),
        folder,
        read_machine(),
    )
    assert (plan.kernels, plan.expert_dtype, plan.attention_dtype) == ("cpu", "int8", "float32")
    assert f"cpu ({library.levels()[-1]}); expert weights in int8" in "\n".join(describe(plan))
    assert plan.kv_cache_dtype == "bfloat16"
    kept = make_plan(EngineConfig(dtype="bfloat16", kv_cache_dtype="int8"), folder, read_machine())
    assert kept.precision.cache_dtype == kept.kv_cache_dtype == "int8"
    assert "KV blocks of 16 tokens in int8" in "\n".join(describe(kept))
    forced = make_plan(EngineConfig(dtype="bfloat16", kernels="reference"), folder, read_machine())
    assert (forced.kernels, forced.expert_dtype) == ("reference", "bfloat16")


@pytest.mark.usefixtures("not_built")
def test_without_the_library_the_reference_serves_and_says_so_once(caplog, tmp_path):
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    with caplog.at_level(logging.WARNING):
        plan = make_plan(EngineConfig(), folder, read_machine())
    assert plan.kernels == "reference"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not built" in caplog.text


@pytest.mark.usefixtures("not_built")
def test_what_only_the_library_can_do_is_refused_without_it(tmp_path):
    with pytest.raises(ConfigError, match="not built; install a C"):
        resolve_kernels("cpu")
    folder = write_checkpoint("qwen3_moe", "gqa", tmp_path)
    with pytest.raises(ConfigError, match="int8 needs the CPU kernels"):
        make_plan(EngineConfig(expert_dtype="int8"), folder, read_machine())
    with pytest.raises(ConfigError, match="--attention-dtype int8 needs the CPU kernels"):
        make_plan(EngineConfig(attention_dtype="int8"), folder, read_machine())
    with pytest.raises(
        ConfigError, match="--kv-cache-dtype fp8 needs the CPU kernels, but the ref"
    ):
        make_plan(EngineConfig(kv_cache_dtype="fp8"), folder, read_machine())
    wish = EngineConfig(dtype="float32", kv_cache_dtype="bfloat16")
    assert make_plan(wish, folder, read_machine()).kv_cache_dtype == "bfloat16"


@built
def test_a_cache_of_eight_bits_that_a_model_can_not_have_is_refused(tmp_path):
    wish = EngineConfig(kv_cache_dtype="int8", kernels="cpu")
    sparse = write_checkpoint("deepseek_v32", "nine_positions", tmp_path / "sparse")
    with pytest.raises(ConfigError, match=r"--kv-cache-dtype int8 .*layer 0: its indexer chooses"):
        make_plan(wish, sparse, read_machine())
    odd = write_checkpoint("qwen3_moe", "gqa", tmp_path / "odd", head_dim=18)
    with pytest.raises(ConfigError, match="layer 0: its heads' 18 channels aren't a multiple of 4"):
        make_plan(wish, odd, read_machine())


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"kernels": "cuda"}, "--kernels must be auto, reference or cpu or gpu, not 'cuda'"),
        ({"kv_cache_dtype": "fp4"}, "--kv-cache-dtype must be auto, float32 .* or fp8, not 'fp4'"),
        ({"expert_dtype": "int3"}, "--expert-dtype must be auto, .* or fp8_channel, not"),
        (
            {"attention_dtype": "fp4"},
            "--attention-dtype must be auto, .* or fp8_channel, not",
        ),
    ],
)
def test_an_unknown_name_is_refused(wish, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**wish)


@pytest.mark.usefixtures("not_built")
def test_a_library_of_other_sources_is_refused(tmp_path):
    other = importlib.util.find_spec("_ctypes").origin  # any shared library
    shutil.copy(other, tmp_path / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}")
    with pytest.raises(ConfigError, match="has no megainfer_level: it is older"):
        library.load()
