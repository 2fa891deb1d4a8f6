"""Sampling wishes and prompt log-probabilities through whole nodes, over `local`."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from megainfer.messages.requests import Submit
from megainfer.models.registry import load_spec
from tests.support.checkpoints import oracle, write_checkpoint
from tests.support.local_cluster import LocalCluster, greedy_submit

VOCABULARY = 160
LENGTHS = (3, 9, 14, 15, 16, 20)
NEW_TOKENS = 40
BLOCKS = 7  # one request of 96 tokens needs 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint("qwen3_moe", "gqa", tmp_path_factory.mktemp("model"))


def prompts(lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def crowded(folder: Path, m: int) -> LocalCluster:
    """Too few blocks for all, and steps too small for a prompt."""
    room = BLOCKS * 16 * load_spec(folder).kv_bytes_per_token(4)
    return LocalCluster(
        folder, m, 1, 2, max_model_len=96, kv_cache_memory=room, max_num_batched_tokens=16
    )


def wish(name: str, prompt: list[int], tokens: int = NEW_TOKENS, **wishes: Any) -> Submit:
    return msgspec.structs.replace(greedy_submit(name, prompt, tokens), **wishes)


PENALISED: list[dict[str, Any]] = [
    {"frequency_penalty": 0.9},
    {"presence_penalty": 1.5, "temperature": 0.8, "seed": 3},
    {"repetition_penalty": 1.4, "temperature": 1.0, "top_k": 30, "seed": 4},
    {"logit_bias": {7: 3.0, 9: -4.0}, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.2, "min_p": 0.05, "temperature": 1.2, "seed": 5, "min_tokens": 9},
    {},
]


def test_wishes_survive_preemption_and_never_depend_on_the_crowd(folder):
    wishes = list(zip(map(str, range(6)), prompts(), PENALISED, strict=True))
    alone = []
    for name, prompt, more in wishes:
        cluster = LocalCluster(folder, 1, 1, 2, max_model_len=96)
        cluster.submit(0, wish(name, prompt, **more))
        cluster.drain()
        alone.append(cluster.answers[name].tokens)
    cluster = crowded(folder, 2)
    for name, prompt, more in wishes:
        cluster.submit(0, wish(name, prompt, **more))
    cluster.drain()
    assert cluster.attention[0].scheduler.counters()["preemptions"] > 0
    assert [cluster.answers[name].tokens for name, _, _ in wishes] == alone


def test_penalties_choose_what_the_definition_says(folder):
    """From the model's own log-probabilities, recomputed at every token."""
    cluster = LocalCluster(folder, 2, 1, 2)
    wishes = {"frequency_penalty": 0.7, "presence_penalty": 0.4, "logit_bias": {5: 2.0}}
    cluster.submit(0, wish("a", prompts()[3], logprobs=-1, **wishes))
    cluster.drain()
    answer = cluster.answers["a"]
    for position, (token, row) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
        scores = np.array([row.values[t] for t in range(VOCABULARY)])
        counts = np.bincount(answer.tokens[:position], minlength=VOCABULARY)
        scores -= 0.7 * counts + 0.4 * (counts > 0)
        scores[5] += 2.0
        assert scores[token] >= scores.max() - 1e-5
    assert len(set(answer.tokens)) > NEW_TOKENS // 2


@torch.inference_mode()
def prompt_scores(folder: Path, each: list[list[int]]) -> list[torch.Tensor]:
    model = oracle(folder)
    return [model(torch.tensor([p])).logits[0, :-1].log_softmax(-1) for p in each]


@pytest.mark.parametrize("m", [1, 3])
def test_prompt_log_probabilities_are_those_of_transformers(folder, m):
    """Cut into chunks, after the prompt's blocks were cached, with preemption around."""
    long = prompts((1, 2, 33, 14, 47, 20))
    cluster = crowded(folder, m)
    for i, prompt in enumerate(long):
        cluster.submit(0, greedy_submit(f"warm-{i}", prompt, NEW_TOKENS))
    for i, prompt in enumerate(long):
        cluster.submit(0, wish(f"{i}", prompt, prompt_logprobs=3))
    cluster.drain()
    assert cluster.attention[0].scheduler.counters()["preemptions"] > 0
    for i, (prompt, expected) in enumerate(zip(long, prompt_scores(folder, long), strict=True)):
        answer = cluster.answers[str(i)]
        assert answer.tokens == cluster.answers[f"warm-{i}"].tokens
        assert len(answer.prompt_logprobs) == len(prompt) - 1
        for token, row, want in zip(prompt[1:], answer.prompt_logprobs, expected, strict=True):
            best = want.topk(3)
            assert row.values[token] == pytest.approx(float(want[token]), abs=2e-4)
            got = list(row.values.values())[:3]
            assert got == pytest.approx(best.values.tolist(), abs=2e-4)
            assert abs(row.rank - 1 - int((want > want[token] + 2e-4).sum())) <= 1


def test_a_prompt_that_fails_with_another_chunk_in_flight_fails_alone(folder, monkeypatch):
    """The later chunk, in the other micro-batch, finds its predecessor's scores missing."""
    cluster = crowded(folder, 2)
    model, poison = cluster.attention[0]._model, 159
    embed = model.embed

    def overflow(batch):
        return embed(batch).masked_fill_((batch.token_ids == poison)[:, None], torch.nan)

    monkeypatch.setattr(model, "embed", overflow)
    cluster.submit(0, wish("bad", [poison, *range(20, 60)], 4, prompt_logprobs=1))
    cluster.submit(0, greedy_submit("good", [9, 9, 9], 4))
    cluster.drain()
    assert "not finite" in cluster.answers["bad"].failure
    assert len(cluster.answers["good"].tokens) == 4


def test_prompt_log_probabilities_are_the_same_bits_however_the_prompt_is_cut(folder):
    (prompt,) = prompts((90,))
    found = []
    for rows in (7, 16, 90):
        cluster = LocalCluster(folder, 1, 1, 1, max_num_batched_tokens=rows)
        cluster.submit(0, wish("a", prompt, 1, prompt_logprobs=2))
        cluster.drain()
        found.append(cluster.answers["a"].prompt_logprobs)
    assert found[0] == found[1] == found[2]


def test_a_request_that_forbids_every_token_fails_alone(folder):
    cluster = LocalCluster(folder, 1, 1, 1)
    cluster.submit(0, greedy_submit("good", prompts()[0], 8))
    bad = wish("bad", prompts()[1], 8, allowed_token_ids=[4], bad_words=[[4]])
    cluster.submit(0, bad)
    cluster.submit(0, wish("outside", prompts()[1], 8, logit_bias={VOCABULARY: 1.0}))
    cluster.drain()
    assert "no token is left" in cluster.answers["bad"].failure
    assert "logit_bias: token id 160" in cluster.answers["outside"].failure
    assert len(cluster.answers["good"].tokens) == 8


def test_the_end_token_waits_for_min_tokens(folder):
    cluster = LocalCluster(folder, 1, 1, 1)
    prompt = prompts()[2]
    cluster.submit(0, greedy_submit("free", prompt, 10))
    cluster.drain()
    first = cluster.answers["free"].tokens[0]
    cluster.submit(0, wish("held", prompt, 10, stop_token_ids=[first], min_tokens=4))
    cluster.drain()
    held = cluster.answers["held"].tokens
    assert first not in held[:4]
    assert len(held) > 4
