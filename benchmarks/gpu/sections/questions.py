"""What only a GPU can answer of what the design relies on; each question is asked by itself."""

from collections.abc import Callable, Mapping
from typing import Any

from gpu.bench import Bench
from gpu.questions import graphs, grouped_product, nccl, pinned_words, shared_memory

QUESTIONS: Mapping[str, Callable[[], Any]] = {
    "a killed exporter's memory": shared_memory.survives_its_exporter,
    "a stream's word in host memory": pinned_words.latency,
    "launches and replays": graphs.latency,
    "many graphs": graphs.many,
    "grouped products": grouped_product.beside_torch,
    "two NCCL ranks on a GPU": nccl.two_ranks,
}


def run(bench: Bench) -> dict[str, Any]:
    """By question."""
    if bench.dry:
        return dict.fromkeys(QUESTIONS, "needs a GPU")
    return bench.answers(QUESTIONS)
