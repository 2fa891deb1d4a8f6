"""From a GGUF file to a model folder: what it says, when it is made, and what is refused."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from megainfer.errors import ModelError
from megainfer.model_folder.gguf import gguf_folder, is_gguf_folder_there
from megainfer.model_folder.resolve import ModelSource, resolve_config, resolve_model
from megainfer.models.registry import load_spec

SETTINGS = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "expert_count": 2,
    "expert_used_count": 1,
}
TENSORS = {
    "token_embd": (8, 32),
    "output_norm": (32,),
    "blk.0.attn_norm": (32,),
    "blk.0.ffn_norm": (32,),
    "blk.0.attn_q": (32, 32),
    "blk.0.attn_k": (32, 32),
    "blk.0.attn_v": (32, 32),
    "blk.0.attn_output": (32, 32),
    "blk.0.ffn_gate_inp": (2, 32),
    "blk.0.ffn_gate_exps": (2, 32, 32),
    "blk.0.ffn_up_exps": (2, 32, 32),
    "blk.0.ffn_down_exps": (2, 32, 32),
}


def tiny(path: Path, architecture: str = "llama", kind: str = "model", tensors=(), **settings):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    for key, value in {**SETTINGS, **settings}.items():
        if value is not None:
            writer.add_key_value(
                f"{architecture}.{key}",
                value,
                gguf.GGUFValueType.get_type(value)
                if not isinstance(value, int) or isinstance(value, bool)
                else gguf.GGUFValueType.UINT32,
            )
    writer.add_layer_norm_rms_eps(1e-5)
    for name, shape in {**TENSORS, **dict(tensors)}.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_file_and_its_folder_become_the_same_model_folder(tmp_path):
    path = tiny(tmp_path / "m.gguf")
    folder = resolve_model(ModelSource(str(path)), lambda stage, fraction: None)
    assert folder == resolve_config(str(tmp_path))
    assert (folder / "m.gguf").resolve() == path
    spec = load_spec(folder)
    assert (spec.architecture, spec.num_experts, spec.tie_word_embeddings) == (
        "MixtralForCausalLM",
        2,
        True,
    )
    assert not (folder / "tokenizer.json").exists()


def test_the_folder_is_made_anew_where_the_file_has_changed(tmp_path):
    path = tiny(tmp_path / "m.gguf")
    source = ModelSource(str(path))
    assert not source.is_ready
    folder = gguf_folder(path)
    assert source.is_ready
    kept = os.stat(folder / "config.json").st_ino
    assert os.stat(gguf_folder(path) / "config.json").st_ino == kept
    tiny(path, context_length=128)
    assert not is_gguf_folder_there(path)
    assert load_spec(gguf_folder(path)).max_position == 128


REFUSED = {
    "architecture": (
        {"architecture": "gemma3"},
        "general.architecture is 'gemma3', which is not served from GGUF; served: deepseek2",
    ),
    "projector": ({"kind": "mmproj"}, "general.type is 'mmproj', but only a language model"),
    "dense": ({"expert_count": None}, "has no llama.expert_count: it is a dense model"),
    "no experts": ({"expert_count": 0}, "it is a dense model"),
    "setting": (
        {"attention.sliding_window": 4},
        "llama.attention.sliding_window is 4, a setting that isn't known",
    ),
    "rope": (
        {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
        "rope.scaling.type is 'longrope', which is not supported; supported: none, linear, yarn",
    ),
    "heads": ({"rope.dimension_count": 8}, "rope.dimension_count is 8, which is not supported"),
    "type": ({"context_length": "x"}, "llama.context_length is 'x', but must be a whole number"),
    "missing": ({"embedding_length": None}, "has no llama.embedding_length"),
    "gating": ({"expert_gating_func": 2}, "expert_gating_func is 2, which is not supported"),
    "size": ({"block_count": 4000}, r"m\.gguf: num_hidden_layers is 4000, but no model has more"),
    "bias": (
        {"tensors": {"blk.0.attn_q_norm": (16,)}},
        r"a tensor blk\.0\.attn_q_norm\.weight, which MixtralForCausalLM has no place for",
    ),
    "factors": ({"tensors": {"rope_freqs": (8,)}}, r"a tensor rope_freqs\.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_named(tmp_path, name):
    settings, told = REFUSED[name]
    path = tiny(tmp_path / "m.gguf", **settings)
    with pytest.raises(ModelError, match=told):
        gguf_folder(path)
    assert not is_gguf_folder_there(path)


def test_a_file_that_is_not_there_and_a_revision_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file.*download one first"):
        ModelSource(str(tmp_path / "m.gguf")).place  # noqa: B018
    path = tiny(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="--revision is for a hub id"):
        ModelSource(str(path), revision="main").place  # noqa: B018


def test_safetensors_beside_it_go_first(tmp_path):
    tiny(tmp_path / "m.gguf")
    (tmp_path / "model.safetensors").touch()
    assert resolve_config(str(tmp_path)) == tmp_path
