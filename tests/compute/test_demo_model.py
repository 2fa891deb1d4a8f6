"""The demo model: a Llama GGUF upcycled into a Mixtral folder that computes the same function."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MixtralForCausalLM,
)

from megainfer.errors import CheckpointError, ModelError
from megainfer.model_folder.demo.checkpoint import write_checkpoint
from megainfer.model_folder.demo.llama_gguf import LlamaGguf, unpermute
from megainfer.model_folder.demo.model import RECIPE, ensure_demo_model
from megainfer.model_folder.demo.recipe import Upcycling
from megainfer.model_folder.demo.tokenizer import TOOLS, read_tokenizer
from megainfer.model_folder.demo.upcycle import draw_router
from tests.support.demo_model import dense_of, logits_and_greedy
from tests.support.tiny_llama_gguf import CHAT_TEMPLATE, TOKENS, permute, tiny_llama, write_gguf

TINY = Upcycling(experts=3, top_k=2, router_seed=1, router_scale=1.5, muted_channels=(0, 5))
PROMPT = torch.tensor([[1, 40, 7, 99, 260, 12, 200, 3]])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tiny(request, tmp_path_factory) -> tuple[LlamaForCausalLM, Path]:
    """A dense model and the folder of the MoE made from it."""
    folder = tmp_path_factory.mktemp("tiny")
    dense = tiny_llama(request.param)
    write_gguf(dense, folder / "tiny.gguf")
    moe = folder / "moe"
    moe.mkdir()
    write_checkpoint(folder / "tiny.gguf", moe, TINY, lambda stage, fraction: None)
    return dense, moe


def as_moe(folder: Path) -> MixtralForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, MixtralForCausalLM)
    return model.eval()


def test_the_moe_computes_what_the_dense_model_computes(tiny):
    dense, folder = tiny
    want, want_ids = logits_and_greedy(dense, PROMPT, 12)
    got, got_ids = logits_and_greedy(as_moe(folder), PROMPT, 12)
    assert got_ids == want_ids
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)


def test_the_config_describes_the_dense_model(tiny):
    dense, folder = tiny
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert config["tie_word_embeddings"] is dense.config.tie_word_embeddings
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000.0}
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (3, 2)
    assert config["max_position_embeddings"] == 128


def test_the_index_names_every_tensor_in_its_file(tiny):
    _, folder = tiny
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found, weight_bytes = {}, 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
            weight_bytes += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert index == {"metadata": {"total_size": weight_bytes}, "weight_map": found}


def test_tokens_of_transformers_and_of_tokenizers_agree(tiny):
    _, folder = tiny
    text = "<|im_start|>hello 12\n— é<|im_end|>"
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    hf = AutoTokenizer.from_pretrained(folder)
    ids = raw.encode(text).ids
    assert hf(text).input_ids == ids
    assert raw.decode(ids, skip_special_tokens=False) == text
    # "hell" by merges, and "12" as two digits though there is a merge for it
    assert [TOKENS[i] for i in ids[:6]] == ["<|im_start|>", "hell", "o", "Ġ", "1", "2"]
    assert (hf.bos_token_id, hf.eos_token_id, hf.pad_token_id) == (1, 2, 2)
    assert hf.chat_template == TOOLS + CHAT_TEMPLATE
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == (
        TOOLS + CHAT_TEMPLATE
    )


def test_progress_goes_from_zero_forward_and_stays_below_one(tiny, tmp_path):
    _, folder = tiny
    seen: list[float] = []
    write_checkpoint(
        folder.parent / "tiny.gguf", tmp_path, TINY, lambda stage, done: seen.append(done)
    )
    assert seen[0] == 0.0
    assert seen == sorted(seen)
    assert seen[-1] < 1.0


@settings(max_examples=20, deadline=None)
@given(heads=st.integers(1, 6), half=st.integers(1, 5), columns=st.integers(1, 3))
def test_unpermute_undoes_llama_cpp(heads, half, columns):
    rows = heads * half * 2
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    assert np.array_equal(unpermute(permute(weight, heads), heads), weight)


def tiny_gguf(path: Path, architecture: str = "llama", without: str = "", bias: bool = False):
    """Like `write_gguf`'s, but with something wrong."""
    writer = gguf.GGUFWriter(path, architecture)
    for key in ("block_count", "embedding_length", "feed_forward_length", "context_length"):
        if key != without:
            writer.add_uint32(f"llama.{key}", 1)
    for key in ("attention.head_count", "attention.head_count_kv", "vocab_size"):
        writer.add_uint32(f"llama.{key}", 1)
    for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        writer.add_float32(f"llama.{key}", 1.0)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_tensor("blk.0.attn_q.bias" if bias else "output.weight", np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"a\.gguf is of architecture 'gemma', expected 'llama'"):
        LlamaGguf(tiny_gguf(tmp_path / "a.gguf", architecture="gemma"))


def test_a_tensor_that_would_be_dropped_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"tensors that plain Llama lacks: \['blk.0.attn_q.bias'"):
        LlamaGguf(tiny_gguf(tmp_path / "a.gguf", bias=True))


def test_missing_metadata_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no metadata key 'llama\.context_length'"):
        LlamaGguf(tiny_gguf(tmp_path / "a.gguf", without="context_length"))


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tensor 'blk\.0\.attn_q\.weight'"):
        LlamaGguf(tiny_gguf(tmp_path / "a.gguf")).layer(0, "self_attn.q_proj")


def test_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"\('llama', 'default'\), expected \('gpt2', 'smollm'\)"):
        read_tokenizer(LlamaGguf(tiny_gguf(tmp_path / "a.gguf")).metadata)


def test_without_the_gguf_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'megainfer\[demo\]'"):
        LlamaGguf(tmp_path / "any.gguf")


def test_the_router_is_a_function_of_seed_and_layer():
    gamma = np.full(64, 0.5, np.float32)
    router = draw_router(gamma, 0, TINY)
    assert np.array_equal(router, draw_router(gamma, 0, TINY))
    assert not np.array_equal(router, draw_router(gamma, 1, TINY))
    assert not router[:, [0, 5]].any()


def test_muting_channels_keeps_a_large_constant_from_deciding_the_route():
    generator = np.random.default_rng(0)
    gamma = np.full(256, 0.25, np.float32)
    tokens = generator.normal(size=(2000, 256)).astype(np.float32) * gamma
    tokens[:, [0, 5]] = 30.0  # the same for every token, as in a trained model's outlier channels
    router = draw_router(gamma, 0, TINY)
    shares = top_shares(torch.from_numpy(tokens @ router.T), top_k=2)
    assert shares.max() < 0.4
    spread = (tokens @ router.T).std()
    assert spread == pytest.approx(TINY.router_scale, rel=0.15)


def top_shares(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Which part of the routed tokens each expert gets, of logits [T, E]."""
    chosen = logits.topk(top_k).indices.flatten()
    return torch.bincount(chosen, minlength=logits.shape[-1]) / chosen.numel()


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    return ensure_demo_model()


def test_the_real_model_answers_like_its_dense_origin_through_a_balanced_router(demo_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    moe = as_moe(demo_model_dir)
    router_logits: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(moe.model.layers):
        layer.mlp.gate.register_forward_hook(
            lambda module, args, out, number=number: router_logits.update({number: out[0]})
        )
    got, got_ids = logits_and_greedy(moe, prompt, 12)
    want, want_ids = logits_and_greedy(dense_of(demo_model_dir), prompt, 12)

    answer = tokenizer.decode(got_ids[prompt.shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
    assert got_ids == want_ids
    torch.testing.assert_close(got, want, atol=5e-4, rtol=1e-4)
    shares = torch.stack([top_shares(logits, 2) for logits in router_logits.values()])
    assert len(shares) == 30
    assert shares.shape[1] == RECIPE.upcycling.experts
    assert shares.max(dim=1).values.mean() < 0.36
    assert shares.min() > 0.0
