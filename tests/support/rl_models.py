"""Tiny models for tests of the trainer."""

import json
from pathlib import Path

from megainfer.rl.training.models import Policy, ValueModel
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import byte_level_backend, write_tokenizer

VOCABULARY = 160
END_TOKEN = 0  # <|endoftext|> of the tokenizer below

QUICK_OPTIMISER = {
    "policy_rate": 1e-3,
    "value_rate": 1e-3,
    "value_first": 1,
    "policy_updates": 2,
    "value_updates": 2,
}
"""Of a run of a few steps, in which something is to change."""


def write_model(folder: Path, seed: int = 0, **settings: object) -> Path:
    """A small Mixture-of-Experts model of random weights, in a folder of its own."""
    return write_checkpoint("mixtral", "gqa", folder, seed, **settings)


def load_pair(folder: Path) -> tuple[Policy, ValueModel]:
    """A policy, and a value model on the same weights whose head says something."""
    policy, value = Policy.load(folder), ValueModel.load(folder)
    value.head.weight.data.fill_(0.1)
    value.head.bias.data.fill_(0.2)
    return policy, value


def write_text_model(folder: Path, seed: int = 0) -> Path:
    """The same with a tokenizer of bytes and a chat template."""
    vocabulary = byte_level_backend().get_vocab_size()
    settings = {"vocab_size": vocabulary, "eos_token_id": END_TOKEN, "num_hidden_layers": 2}
    write_model(folder, seed, **settings)
    return write_tokenizer(folder, eos_token="<|endoftext|>")


def write_problems(path: Path, count: int = 8) -> Path:
    """Problems of one letter each, whose answer is that letter."""
    letters = [chr(ord("a") + i % 26) for i in range(count)]
    path.write_text("".join(json.dumps({"prompt": x, "answer": x}) + "\n" for x in letters))
    return path
