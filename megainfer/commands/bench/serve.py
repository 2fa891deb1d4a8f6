"""`megainfer bench serve`."""

from importlib.util import find_spec

import typer

from megainfer.commands.bench.serve_options import (
    LoadOptions,
    PromptOptions,
    ReportOptions,
    SamplingOptions,
    ServerOptions,
)
from megainfer.commands.options import takes_options
from megainfer.errors import ConfigError

EPILOG = """[bold]Examples[/bold]

All at once, 64 at a time, prompts of 512 tokens and answers of up to 128:

[cyan]megainfer bench serve --num-prompts 256 --max-concurrency 64 --input-len 512[/cyan]

Ten requests a second, and how many of them are answered in good time:

[cyan]megainfer bench serve --request-rate 10 --goodput ttft:500,tpot:50[/cyan]

Another server's chat API, with its file of prompts and pictures of the result:

[cyan]megainfer bench serve --base-url https://example.org --backend openai-chat \\[/cyan]
[cyan]--dataset-name custom --dataset-path prompts.jsonl --plot out[/cyan]"""


@takes_options
def serve(
    server: ServerOptions,
    load: LoadOptions,
    prompts: PromptOptions,
    sampling: SamplingOptions,
    report: ReportOptions,
) -> None:
    """Measure a running server: times to first and further tokens, throughput, goodput.

    Works with every server that has OpenAI's API, and prints what `vllm bench serve` prints, by the
    same definitions. Ctrl-C ends it with what was measured so far.
    """
    _require_client()
    from megainfer.commands.bench.serving import bench_server

    raise typer.Exit(bench_server(server, load, prompts, sampling, report))


def _require_client() -> None:
    if find_spec("aiohttp") is None:
        raise ConfigError("bench serve needs aiohttp: install megainfer[bench], or aiohttp itself")
