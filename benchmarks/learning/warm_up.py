"""A small Mixture-of-Experts model that can the task a little, by demonstrations with mistakes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import torch

from learning.task import END, SIGNS, Task, answer_of, prompt_of, write_tokenizer

BATCH = 64
SORTED = 4
"""Batches whose rows are sorted by length together."""
RATE = 4e-3


def small_model(context: int, seed: int) -> Any:
    """Some 0.25M parameters: 2 layers, 4 experts, two of them for each token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    end = SIGNS.index(END)
    config = MixtralConfig(
        vocab_size=len(SIGNS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        attn_implementation="sdpa",
    )
    return MixtralForCausalLM(config)


def warm_up(folder: Path, task: Task, updates: int, sloppy: float, seed: int) -> float:
    """Write the model after so many updates; the seconds that they took. sloppy: of `answer_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model = write_tokenizer(folder), small_model(task.context, seed)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    started = monotonic()
    batches = _batches(task, tokenizer, Random(seed), sloppy)
    for update in range(updates):
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (update + 1) / 50) * (1 - 0.9 * update / updates)
        tokens, labels = next(batches)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    seconds = monotonic() - started
    model.save_pretrained(folder)
    return seconds


def _batches(
    task: Task, tokenizer: Any, random: Random, sloppy: float
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels, [BATCH, T], without end; a label of -100 is not learnt. Those of like
    length stand together, as few are long."""
    while True:
        rows = sorted(
            (_row(task, tokenizer, random, sloppy) for _ in range(SORTED * BATCH)), key=len
        )
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        random.shuffle(batches)
        yield from map(_padded, batches)


def _row(task: Task, tokenizer: Any, random: Random, sloppy: float) -> list[tuple[int, int]]:
    """(token, label) of prompt and answer."""
    problem = task.digits(random)
    prompt = tokenizer.encode(prompt_of(problem)).ids
    answer = [*tokenizer.encode(answer_of(problem, random, sloppy)).ids, SIGNS.index(END)]
    assert len(answer) <= task.answer_tokens
    assert len(prompt) + len(answer) <= task.context
    return [(token, -100) for token in prompt] + [(token, token) for token in answer]


def _padded(rows: Sequence[list[tuple[int, int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    padded = torch.tensor([row + [(0, -100)] * (width - len(row)) for row in rows])
    return padded[..., 0], padded[..., 1]
