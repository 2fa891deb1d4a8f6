"""A GGUF file is served from the command line and by `LLM`, as the model that it is."""

from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from megainfer import LLM, SamplingParams
from tests.support.checkpoints import greedy, oracle, write_checkpoint
from tests.support.gguf_files.tokenizers import byte_level, trained
from tests.support.gguf_files.write import write_gguf
from tests.support.served import run_cli

PROMPT = "The quick brown foxes"


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """The checkpoint that the file is of, in float32."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_checkpoint("qwen3_moe", "gqa", tmp_path / "own", vocab_size=400, hidden_size=64)


def test_a_split_file_is_planned_and_served_with_its_own_tokenizer(own, tmp_path):
    tokens, merges = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    write_gguf(
        own,
        tmp_path / "m.gguf",
        "F32",
        add_tokenizer=byte_level(tokens, merges, "qwen2"),
        split_max_tensors=20,
    )
    path = min(tmp_path.glob("*.gguf"))
    done = run_cli("serve", str(path), "--dry-run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "on disk gguf: F32 (experts), F32 (others); computed in float32" in said
    assert "every tensor there and of its shape" in said
    with LLM(str(path), dtype="float32", expert_dtype="float32") as llm:
        prompt = llm.tokenizer.encode(PROMPT)
        (expected,) = greedy(oracle(own), [prompt], 8)
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        (answer,) = llm.generate([PROMPT], params)
        assert list(answer.outputs[0].token_ids) == expected.tokens
