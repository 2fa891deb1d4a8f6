"""A small Mixture-of-Experts model that can the task a little, by demonstrations with mistakes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import torch

from learning.task import END, SIGNS, Task, answer_of, prompt_of, read_problems, write_tokenizer

BATCH = 64
SORTED = 4
"""Batches whose rows are sorted by length together."""
RATE = 4e-3
MEDIAN = 6.0
"""Of digits. Demonstrations are longer than problems, of which few would show the last letters."""


def small_model(context: int, seed: int) -> Any:
    """Some 0.24M parameters: 2 layers, 4 experts, two of them for each token."""
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
        # Of 16 channels a head the usual 1e6 would leave one frequency for tokens nearby.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    return MixtralForCausalLM(config)


def warm_up(
    folder: Path, task: Task, updates: int, sloppy: float, seed: int, held_out: Path
) -> dict[str, float]:
    """Write the model after so many updates; the seconds that they took, and how good it is.
    sloppy: of `answer_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model = write_tokenizer(folder), small_model(task.context, seed)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    started = monotonic()
    batches = _batches(task, tokenizer, Random(seed), sloppy)
    for update in range(updates):
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (update + 1) / 50) * (1 - 0.8 * update / updates)
        tokens, labels = next(batches)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    seconds = monotonic() - started
    model.save_pretrained(folder)
    return {"updates": updates, "seconds": seconds, **_solved(model, tokenizer, held_out)}


@torch.inference_mode()
def _solved(model: Any, tokenizer: Any, held_out: Path) -> dict[str, float]:
    """As evaluations name it. A problem has one right answer, so that its probability is how often
    it is drawn; greedily it is, where each of its tokens is the likeliest."""
    rows = [_labelled(tokenizer, prompt, answer) for prompt, answer in read_problems(held_out)]
    tokens, labels = _padded(rows)
    logprobs = model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
    wanted, matters = labels[:, 1:], labels[:, 1:] != -100
    chosen = logprobs.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    likeliest = (logprobs.argmax(-1) == wanted) | ~matters
    return {
        "pass@1": float((chosen * matters).sum(-1).exp().mean()),
        "greedy": float(likeliest.all(-1).float().mean()),
    }


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
    problem = task.digits(random, MEDIAN)
    row = _labelled(tokenizer, prompt_of(problem), answer_of(problem, random, sloppy))
    assert len(row) <= task.context
    return row


def _labelled(tokenizer: Any, prompt: str, answer: str) -> list[tuple[int, int]]:
    tokens = [*tokenizer.encode(answer).ids, SIGNS.index(END)]
    return [(t, -100) for t in tokenizer.encode(prompt).ids] + [(t, t) for t in tokens]


def _padded(rows: Sequence[list[tuple[int, int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    padded = torch.tensor([row + [(0, -100)] * (width - len(row)) for row in rows])
    return padded[..., 0], padded[..., 1]
