"""`megainfer bench latency`."""

import sys
from pathlib import Path
from typing import Annotated

from rich.progress import track
from typer import Option

from megainfer.commands.engine_options import EngineOptions, ModelOption
from megainfer.commands.options import takes_options
from megainfer.commands.whole_number import whole_number

EPILOG = """[bold]Example[/bold]

[cyan]megainfer bench latency --batch-size 1 --input-len 512 --output-len 64[/cyan]"""


@takes_options
def latency(
    engine: EngineOptions,
    model: ModelOption = None,
    input_len: Annotated[
        int, Option(parser=whole_number, metavar="TOKENS", help="Of each prompt.")
    ] = 32,
    output_len: Annotated[
        int, Option(parser=whole_number, metavar="TOKENS", help="Of each answer.")
    ] = 128,
    batch_size: Annotated[int, Option(help="Requests given at once.", min=1)] = 8,
    num_iters_warmup: Annotated[int, Option(help="Times before those that count.", min=0)] = 10,
    num_iters: Annotated[int, Option(help="Times that count.", min=1)] = 30,
    seed: Annotated[int, Option(help="Of the prompts, which are new each time.", min=0)] = 0,
    output_json: Annotated[Path | None, Option(help="Write the numbers there.")] = None,
) -> None:
    """Measure how long one batch takes, from prompts to last tokens, without a server."""
    config = engine.config(model)
    import numpy as np

    from megainfer.bench.datasets import RandomPrompts
    from megainfer.commands.bench.offline import Latencies, generate, write_json
    from megainfer.llm import LLM

    random = np.random.default_rng(seed)
    with LLM.of(config) as llm:
        prompts = RandomPrompts(llm.vocab_size, input_len, output_len)
        times = [
            generate(llm, prompts.samples(batch_size, random, None))[0]
            for _ in track(
                range(num_iters_warmup + num_iters), "batches", disable=not sys.stderr.isatty()
            )
        ]
    measured = Latencies(times[num_iters_warmup:])
    print("\n".join(measured.lines()))
    write_json(output_json, measured.document())
