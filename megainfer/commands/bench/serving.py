"""`megainfer bench serve` at work: ask the server, send the load, report."""

import asyncio
from collections.abc import Callable
from contextlib import closing

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megainfer.bench.arrivals import Arrivals
from megainfer.bench.client import Client, Target, wait_until_ready
from megainfer.bench.load import Result, run_load
from megainfer.bench.metrics import parse_goals, summarise
from megainfer.bench.plots import require_matplotlib
from megainfer.bench.report import HEADINGS, Report
from megainfer.bench.sample import Outcome, Sample
from megainfer.bench.server_facts import ServerFacts
from megainfer.bench.text_codec import OwnCodec, ServerCodec, TextCodec
from megainfer.commands.bench.prompt_source import make_samples
from megainfer.commands.bench.result_file import save_all
from megainfer.commands.bench.serve_options import (
    LoadOptions,
    PromptOptions,
    ReportOptions,
    SamplingOptions,
    ServerOptions,
)
from megainfer.commands.bench.target import (
    make_target,
    name_value_pairs,
    request_headers,
    server_url,
)
from megainfer.errors import ConfigError

INTERRUPTED = 130  # what a shell says of Ctrl-C


def bench_server(
    server: ServerOptions,
    load: LoadOptions,
    prompts: PromptOptions,
    sampling: SamplingOptions,
    report: ReportOptions,
) -> int:
    """Measure and print; the exit status: 0, 1 when nothing was answered, 130 after Ctrl-C.

    Raises MegaInferError.
    """
    shown, percentiles = _shown(report.percentile_metrics), _percentiles(report.metric_percentiles)
    goals, arrivals = parse_goals(report.goodput or []), _arrivals(load)
    metadata = name_value_pairs("--metadata", report.metadata)
    url, headers = server_url(server), request_headers(server)
    _check(report, load)
    random = np.random.default_rng(load.seed)
    with closing(ServerFacts(url, headers, not server.insecure)) as facts:
        model = server.served_model_name or server.model or facts.first_model()
        target = make_target(server, sampling, url, model, headers)
        info = facts.info()
        own = None if server.tokenizer is None else OwnCodec.load(server.tokenizer)
        samples = make_samples(
            prompts,
            load.num_prompts,
            random,
            own or ServerCodec(facts.http, model),
            own.vocab_size if own else info.vocab_size,
            as_text=own is not None or target.chat,
        )
    times = arrivals.times(len(samples), random)
    result = _run(server, load, report, target, samples, times)
    _count_tokens(result, own)
    made = Report(
        summary=summarise(result.outcomes, result.seconds, percentiles, goals),
        result=result,
        shown=shown,
        rate=None if load.request_rate == float("inf") else load.request_rate,
        max_concurrency=load.max_concurrency,
        gpus=report.num_gpus or info.gpus,
        processes=info.processes,
    )
    print("\n".join(made.lines()), flush=True)
    save_all(report, load, server, made, {"model_id": model, **metadata})
    return _status(made)


def _status(report: Report) -> int:
    if report.result.unfinished:
        return INTERRUPTED
    return 0 if report.summary.completed else 1


def _check(report: ReportOptions, load: LoadOptions) -> None:
    if load.num_prompts < 1:
        raise ConfigError(f"--num-prompts must be at least 1, not {load.num_prompts}")
    if report.plot is not None:
        require_matplotlib()


def _shown(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in HEADINGS:
            raise ConfigError(f"--percentile-metrics knows {', '.join(HEADINGS)}, not {name!r}")
    return names


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [-1.0]
    if not all(0 <= percentile <= 100 for percentile in found):
        raise ConfigError(f"--metric-percentiles takes numbers from 0 to 100, not {text!r}")
    return found


def _arrivals(load: LoadOptions) -> Arrivals:
    return Arrivals(
        rate=load.request_rate,
        burstiness=load.burstiness,
        ramp=load.ramp_up_strategy,
        ramp_start=load.ramp_up_start_rps,
        ramp_end=load.ramp_up_end_rps,
    )


def _run(
    server: ServerOptions,
    load: LoadOptions,
    report: ReportOptions,
    target: Target,
    samples: list[Sample],
    times: list[float],
) -> Result:
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=report.disable_tqdm or not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=len(samples))

        def done(outcome: Outcome) -> None:
            bar.advance(task)

        return asyncio.run(_measure(server, load, target, samples, times, done))


async def _measure(
    server: ServerOptions,
    load: LoadOptions,
    target: Target,
    samples: list[Sample],
    times: list[float],
    done: Callable[[Outcome], None],
) -> Result:
    async with Client(target) as client:
        if server.ready_check_timeout_sec > 0:
            await wait_until_ready(client, samples[0], server.ready_check_timeout_sec)
        if load.num_warmups:
            warmups = [samples[0]] * load.num_warmups
            at_once = [0.0] * load.num_warmups
            await run_load(client.send, warmups, at_once, load.max_concurrency, lambda _: None)
        return await run_load(client.send, samples, times, load.max_concurrency, done)


def _count_tokens(result: Result, codec: TextCodec | None) -> None:
    """Of answers that came without usage."""
    if codec is None:
        return
    for outcome in result.outcomes:
        if outcome.ok and outcome.output_tokens is None:
            outcome.output_tokens = max(1, len(codec.encode(outcome.text)))
