"""A load's summary as lines in the layout of `vllm bench serve`, and as its JSON result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megainfer.bench.load import Result
from megainfer.bench.metrics import Summary
from megainfer.bench.sample import Outcome

WIDTH = 50
HEADINGS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
}


@dataclass(frozen=True)
class Report:
    """shown: names of HEADINGS. rate: requests a second that were asked for, None for all at once.
    gpus: what throughput is divided by, None where there are none, or nobody knows. processes: of
    a server that computes on CPU."""

    summary: Summary
    result: Result
    shown: Sequence[str]
    rate: float | None = None
    max_concurrency: int | None = None
    gpus: int | None = None
    processes: int | None = None

    def lines(self) -> Iterator[str]:
        """As it is printed."""
        yield f"{' Serving Benchmark Result ':=^{WIDTH}}"
        yield from self._counts()
        yield from self._rates()
        for name in self.shown:
            yield from self._times(name)
        yield "=" * WIDTH
        yield from self._remarks()

    def document(self) -> dict[str, Any]:
        """The numbers, under vLLM's names."""
        summary = self.summary
        document = {
            "duration": summary.seconds,
            "completed": summary.completed,
            "failed": summary.failed,
            "unfinished": self.result.unfinished,
            "total_input_tokens": summary.input_tokens,
            "total_output_tokens": summary.output_tokens,
            "request_throughput": summary.request_rate,
            "request_goodput": summary.goodput,
            "output_throughput": summary.output_rate,
            "total_token_throughput": summary.total_rate,
            "max_output_tokens_per_s": summary.peak_output_rate,
            "max_concurrent_requests": summary.peak_concurrency,
            "num_gpus": self.gpus,
            "num_cpu_processes": self.processes,
            "output_throughput_per_gpu": self.gpus and summary.output_rate / self.gpus,
            "total_token_throughput_per_gpu": self.gpus and summary.total_rate / self.gpus,
        }
        for name in HEADINGS:
            own = summary.times[name]
            document[f"mean_{name}_ms"] = own.mean
            document[f"median_{name}_ms"] = own.median
            document[f"std_{name}_ms"] = own.std
            document |= {f"p{_number(p)}_{name}_ms": ms for p, ms in own.percentiles.items()}
        return document

    def details(self) -> dict[str, list[Any]]:
        """Of every request, under vLLM's names; times in seconds."""
        outcomes = self.result.outcomes
        return {
            "input_lens": [outcome.prompt_tokens for outcome in outcomes],
            "output_lens": [outcome.tokens if outcome.ok else 0 for outcome in outcomes],
            "ttfts": [outcome.ttft or 0.0 for outcome in outcomes],
            "itls": [outcome.itl for outcome in outcomes],
            "latencies": [outcome.latency for outcome in outcomes],
            "start_times": [outcome.start for outcome in outcomes],
            "queue_times": [outcome.queued for outcome in outcomes],
            "generated_texts": [outcome.text for outcome in outcomes],
            "errors": [outcome.error or "" for outcome in outcomes],
        }

    def _counts(self) -> Iterator[str]:
        summary = self.summary
        yield _line("Successful requests:", summary.completed)
        yield _line("Failed requests:", summary.failed)
        if self.result.unfinished:
            yield _line("Unfinished requests:", self.result.unfinished)
        if self.max_concurrency is not None:
            yield _line("Maximum request concurrency:", self.max_concurrency)
        if self.rate is not None:
            yield _line("Request rate configured (RPS):", self.rate)
        yield _line("Benchmark duration (s):", summary.seconds)
        yield _line("Total input tokens:", summary.input_tokens)
        yield _line("Total generated tokens:", summary.output_tokens)

    def _rates(self) -> Iterator[str]:
        summary = self.summary
        yield _line("Request throughput (req/s):", summary.request_rate)
        if summary.goodput is not None:
            yield _line("Request goodput (req/s):", summary.goodput)
        yield _line("Output token throughput (tok/s):", summary.output_rate)
        yield _line("Peak output token throughput (tok/s):", summary.peak_output_rate)
        yield _line("Peak concurrent requests:", float(summary.peak_concurrency))
        yield _line("Total token throughput (tok/s):", summary.total_rate)
        if self.processes:
            yield _line("Nodes (CPU processes):", self.processes)
        if self.gpus:
            yield _line("GPUs:", self.gpus)
            yield _line("Output throughput per GPU (tok/s):", summary.output_rate / self.gpus)
            yield _line("Total throughput per GPU (tok/s):", summary.total_rate / self.gpus)

    def _times(self, name: str) -> Iterator[str]:
        short, heading = HEADINGS[name]
        own = self.summary.times[name]
        yield f"{heading:-^{WIDTH}}"
        yield _line(f"Mean {short} (ms):", own.mean)
        yield _line(f"Median {short} (ms):", own.median)
        for percentile, milliseconds in own.percentiles.items():
            yield _line(f"P{_number(percentile)} {short} (ms):", milliseconds)

    def _remarks(self) -> Iterator[str]:
        failed = [outcome for outcome in self.result.outcomes if not outcome.ok]
        if failed:
            yield f"First of {len(failed)} failures: {failed[0].error}"
        if uncounted := _uncounted(self.result.outcomes):
            yield (
                f"{uncounted} answers came without usage, so their tokens are counted in pieces; "
                "with --tokenizer they are counted in tokens"
            )


def _uncounted(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.ok and outcome.output_tokens is None for outcome in outcomes)


def _number(percentile: float) -> str:
    return f"{percentile:g}"


def _line(name: str, value: float) -> str:
    shown = f"{value:<10}" if isinstance(value, int) else f"{value:<10.2f}"
    return f"{name:<40} {shown}"
