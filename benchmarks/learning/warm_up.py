"""A small Mixture-of-Experts model that can the task a little, by demonstrations with mistakes."""

from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import torch

from learning.task import END, MAX_ANSWER, SIGNS, answer_of, digits, prompt_of, write_tokenizer

CONTEXT = 80
BATCH = 32
RATE = 2e-3


def small_model(seed: int) -> Any:
    """Some 0.35M parameters: 3 layers, 4 experts, two of them for each token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    end = SIGNS.index(END)
    config = MixtralConfig(
        vocab_size=len(SIGNS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        attn_implementation="sdpa",
    )
    return MixtralForCausalLM(config)


def warm_up(folder: Path, updates: int, sloppy: float, seed: int) -> float:
    """Write the model after so many updates; the seconds that they took."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model, random = write_tokenizer(folder), small_model(seed), Random(seed)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    started = monotonic()
    for update in range(updates):
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (update + 1) / 50) * (1 - 0.9 * update / updates)
        tokens, labels = _batch(tokenizer, random, sloppy)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    seconds = monotonic() - started
    model.save_pretrained(folder)
    return seconds


def _batch(tokenizer: Any, random: Random, sloppy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, [BATCH, T]; a label of -100 is not learnt."""
    rows = []
    for _ in range(BATCH):
        problem = digits(random)
        prompt = tokenizer.encode(prompt_of(problem)).ids
        answer = tokenizer.encode(answer_of(problem, random, sloppy)).ids
        rows.append((prompt, [*answer, SIGNS.index(END)]))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    assert width <= CONTEXT
    assert all(len(answer) <= MAX_ANSWER for _, answer in rows)
    tokens = torch.zeros(BATCH, width, dtype=torch.int64)
    labels = torch.full((BATCH, width), -100)
    for i, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        tokens[i, :length] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : length] = torch.tensor(answer)
    return tokens, labels
