"""What `bench latency` and `bench throughput` share: an engine of one's own, and its numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from megainfer.bench.sample import Sample
from megainfer.errors import MegaInferError
from megainfer.llm import LLM
from megainfer.sampling import SamplingParams

PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True)
class Latencies:
    """Seconds of one batch, each time that it ran."""

    seconds: list[float]

    def lines(self) -> list[str]:
        """In the layout of `vllm bench latency`."""
        lines = [f"Avg latency: {np.mean(self.seconds)} seconds"]
        for percentile, seconds in self._percentiles().items():
            lines.append(f"{percentile}% percentile latency: {seconds} seconds")
        return lines

    def document(self) -> dict[str, Any]:
        """Under vLLM's names."""
        return {
            "avg_latency": float(np.mean(self.seconds)),
            "latencies": self.seconds,
            "percentiles": {str(p): seconds for p, seconds in self._percentiles().items()},
        }

    def _percentiles(self) -> dict[int, float]:
        return {p: float(np.percentile(self.seconds, p)) for p in PERCENTILES}


@dataclass(frozen=True)
class Throughput:
    """Of requests that were all given at once. nodes: attention and expert nodes, or one that is
    both; on_cpu: whether they are processes, not GPUs."""

    seconds: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    nodes: int
    on_cpu: bool

    def lines(self) -> list[str]:
        """In the layout of `vllm bench throughput`, and a line for each GPU's share."""
        total, output = self._rates()
        return [
            f"Throughput: {self.requests / self.seconds:.2f} requests/s, {total:.2f} total "
            f"tokens/s, {output:.2f} output tokens/s",
            f"Nodes (CPU processes): {self.nodes}"
            if self.on_cpu
            else f"Per GPU ({self.nodes}): {total / self.nodes:.2f} total tokens/s, "
            f"{output / self.nodes:.2f} output tokens/s",
            f"Total num prompt tokens:  {self.prompt_tokens}",
            f"Total num output tokens:  {self.output_tokens}",
        ]

    def document(self) -> dict[str, Any]:
        """Under vLLM's names."""
        total, output = self._rates()
        return {
            "elapsed_time": self.seconds,
            "num_requests": self.requests,
            "total_num_tokens": self.prompt_tokens + self.output_tokens,
            "requests_per_second": self.requests / self.seconds,
            "tokens_per_second": total,
            "output_tokens_per_second": output,
            "num_gpus": None if self.on_cpu else self.nodes,
            "num_cpu_processes": self.nodes if self.on_cpu else None,
            "output_tokens_per_second_per_gpu": None if self.on_cpu else output / self.nodes,
        }

    def _rates(self) -> tuple[float, float]:
        tokens = self.prompt_tokens + self.output_tokens
        return tokens / self.seconds, self.output_tokens / self.seconds


def generate(llm: LLM, samples: Sequence[Sample]) -> tuple[float, int]:
    """Seconds and generated tokens of these requests, given all at once."""
    params = [
        SamplingParams(max_tokens=sample.output_tokens, temperature=1.0, ignore_eos=True, seed=i)
        for i, sample in enumerate(samples)
    ]
    begin = perf_counter()
    results = llm.generate([sample.prompt for sample in samples], params, progress=False)
    seconds = perf_counter() - begin
    return seconds, sum(len(answer.token_ids) for result in results for answer in result.outputs)


def write_json(path: Path | None, document: dict[str, Any]) -> None:
    """Write it there if there is a path. Raises MegaInferError when that fails."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(document, indent=1))
    except OSError as error:
        raise MegaInferError(f"--output-json {path} can't be written: {error}") from error
