"""`megainfer bench throughput`."""

from pathlib import Path
from typing import Annotated

from typer import Option

from megainfer.commands.bench.serve_options import PromptOptions
from megainfer.commands.engine_options import EngineOptions, ModelOption
from megainfer.commands.options import takes_options
from megainfer.commands.whole_number import whole_number
from megainfer.errors import ModelError

EPILOG = """[bold]Example[/bold]

[cyan]megainfer bench throughput --num-prompts 64 --input-len 128 --output-len 64[/cyan]"""


@takes_options
def throughput(
    engine: EngineOptions,
    prompts: PromptOptions,
    model: ModelOption = None,
    num_prompts: Annotated[
        int, Option(parser=whole_number, metavar="NUMBER", help="Requests, given all at once.")
    ] = 1000,
    seed: Annotated[int, Option(help="Of prompts and lengths.", min=0)] = 0,
    output_json: Annotated[Path | None, Option(help="Write the numbers there.")] = None,
) -> None:
    """Measure requests and tokens a second of an engine, without a server.

    All requests are there from the start; answers have the length that was asked for.
    """
    config = engine.config(model)
    import numpy as np

    from megainfer.bench.text_codec import OwnCodec
    from megainfer.commands.bench.offline import Throughput, generate, write_json
    from megainfer.commands.bench.prompt_source import make_samples
    from megainfer.llm import LLM

    with LLM.of(config) as llm:
        if llm.tokenizer is None and prompts.dataset_name != "random":
            raise ModelError("this model's folder has no tokenizer; use --dataset-name random")
        codec = llm.tokenizer and OwnCodec(llm.tokenizer)
        samples = make_samples(
            prompts, num_prompts, np.random.default_rng(seed), codec, llm.vocab_size, as_text=False
        )
        seconds, output_tokens = generate(llm, samples)
        on_cpu = llm.on_cpu
    measured = Throughput(
        seconds=seconds,
        requests=len(samples),
        prompt_tokens=sum(sample.prompt_tokens for sample in samples),
        output_tokens=output_tokens,
        nodes=1 if config.colocated else config.attn_gpus + config.ffn_gpus,
        on_cpu=on_cpu,
    )
    print("\n".join(measured.lines()))
    write_json(output_json, measured.document())
