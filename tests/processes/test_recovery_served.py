"""A server some of whose processes are killed while it streams: clients see a pause at most."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.checkpoints import write_checkpoint
from tests.support.served import CONTEXT, ENDLESS, Served, serving
from tests.support.skips import needs_native  # noqa: F401

TOKENS = 300
BODIES: list[dict[str, Any]] = [
    {"prompt": [5, 6, 7], "temperature": 0},
    {"prompt": [5, 6, 7, 8], "temperature": 1, "seed": 3, "n": 2},
    {"prompt": [9] * 40, "temperature": 0.8, "seed": 4, "frequency_penalty": 0.3},
]
Answer = dict[int, list[Any]]
"""By choice: of each token, its id and log-probabilities."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint("qwen3_moe", "gqa", folder, max_position_embeddings=CONTEXT)
    flags = ("--attn-gpus", "2", "--ffn-gpus", "2", "--api-servers", "2")
    with serving(str(folder), *flags) as served:
        yield served
