"""The options of `megainfer bench serve`, by panel; names are those of `vllm bench serve`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from megainfer.commands.whole_number import whole_number

SERVER, LOAD, PROMPTS = "Server", "Load", "Prompts"
SAMPLING, REPORT = "Sampling", "Report"


@dataclass(frozen=True)
class ServerOptions:
    """Whom to ask, and how."""

    base_url: Annotated[
        str | None,
        Option(
            rich_help_panel=SERVER,
            help="Scheme, host and port, such as https://example.org:8443; instead of --host and "
            "--port.",
        ),
    ] = None
    host: Annotated[str, Option(rich_help_panel=SERVER, help="The server's host.")] = "127.0.0.1"
    port: Annotated[int, Option(rich_help_panel=SERVER, help="The server's port.")] = 8000
    backend: Annotated[
        str,
        Option(
            rich_help_panel=SERVER,
            metavar="openai|openai-chat",
            help="openai: /v1/completions; openai-chat: /v1/chat/completions.",
        ),
    ] = "openai"
    endpoint: Annotated[
        str | None,
        Option(
            rich_help_panel=SERVER, help="Path of the API.", show_default="the backend's own path"
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(rich_help_panel=SERVER, help="Its name there.", show_default="the first served"),
    ] = None
    served_model_name: Annotated[
        str | None, Option(rich_help_panel=SERVER, help="Another word for --model; it wins.")
    ] = None
    tokenizer: Annotated[
        str | None,
        Option(
            rich_help_panel=SERVER,
            help="Folder or hub id of the model's tokenizer. Without one prompts are sent as token "
            "ids, and where text is needed the server's /tokenize and /detokenize are asked.",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        Option(rich_help_panel=SERVER, envvar="OPENAI_API_KEY", help="Sent as a bearer token."),
    ] = None
    header: Annotated[
        list[str] | None,
        Option(rich_help_panel=SERVER, metavar="NAME=VALUE", help="A further header; repeatable."),
    ] = None
    extra_body: Annotated[
        str | None,
        Option(
            rich_help_panel=SERVER,
            metavar="JSON",
            help="""Merged into each request, such as '{"min_tokens": 8}'.""",
        ),
    ] = None
    insecure: Annotated[
        bool,
        Option("--insecure", rich_help_panel=SERVER, help="Don't check the TLS certificate."),
    ] = False
    ready_check_timeout_sec: Annotated[
        float,
        Option(
            rich_help_panel=SERVER,
            help="Send one request until it is answered, for at most so long; 0: don't.",
        ),
    ] = 0.0
    request_timeout_sec: Annotated[
        float,
        Option(
            rich_help_panel=SERVER, help="An answer that is silent for so long counts as failed."
        ),
    ] = 600.0


@dataclass(frozen=True)
class LoadOptions:
    """How many requests, and when."""

    num_prompts: Annotated[
        int,
        Option(
            rich_help_panel=LOAD, parser=whole_number, metavar="NUMBER", help="Requests to send."
        ),
    ] = 1000
    request_rate: Annotated[
        float, Option(rich_help_panel=LOAD, help="Requests a second; inf: all at once.")
    ] = math.inf
    burstiness: Annotated[
        float,
        Option(
            rich_help_panel=LOAD,
            help="Shape of the gamma distribution of intervals: 1 is a Poisson process, less is "
            "burstier, more is steadier.",
        ),
    ] = 1.0
    ramp_up_strategy: Annotated[
        str | None,
        Option(
            rich_help_panel=LOAD,
            metavar="linear|exponential",
            help="Let the rate grow over the requests, instead of --request-rate.",
        ),
    ] = None
    ramp_up_start_rps: Annotated[
        float | None, Option(rich_help_panel=LOAD, help="The rate at the beginning.")
    ] = None
    ramp_up_end_rps: Annotated[
        float | None, Option(rich_help_panel=LOAD, help="The rate in the end.")
    ] = None
    max_concurrency: Annotated[
        int | None,
        Option(
            rich_help_panel=LOAD,
            min=1,
            help="Requests under way at a time; the others wait in the client, and that isn't "
            "part of their latency.",
            show_default="no limit",
        ),
    ] = None
    num_warmups: Annotated[
        int, Option(rich_help_panel=LOAD, min=0, help="Requests before those that count.")
    ] = 0
    seed: Annotated[
        int, Option(rich_help_panel=LOAD, min=0, help="Of prompts, lengths and arrivals.")
    ] = 0


@dataclass(frozen=True)
class PromptOptions:
    """What is asked."""

    dataset_name: Annotated[
        str,
        Option(
            rich_help_panel=PROMPTS,
            metavar="random|sharegpt|custom",
            help="custom: a JSON object with a prompt a line, and perhaps output_tokens.",
        ),
    ] = "random"
    dataset_path: Annotated[
        Path | None, Option(rich_help_panel=PROMPTS, help="The file of sharegpt or custom.")
    ] = None
    input_len: Annotated[
        int | None,
        Option(
            rich_help_panel=PROMPTS,
            parser=whole_number,
            metavar="TOKENS",
            help="Short for --random-input-len.",
        ),
    ] = None
    output_len: Annotated[
        int | None,
        Option(
            rich_help_panel=PROMPTS,
            parser=whole_number,
            metavar="TOKENS",
            help="Tokens to ask for, whichever the dataset.",
        ),
    ] = None
    random_input_len: Annotated[
        int,
        Option(
            rich_help_panel=PROMPTS,
            parser=whole_number,
            metavar="TOKENS",
            help="Of a random prompt, its prefix aside.",
        ),
    ] = 1024
    random_output_len: Annotated[
        int,
        Option(
            rich_help_panel=PROMPTS,
            parser=whole_number,
            metavar="TOKENS",
            help="Tokens to ask for after a random prompt.",
        ),
    ] = 128
    random_range_ratio: Annotated[
        float,
        Option(
            rich_help_panel=PROMPTS,
            help="r: both lengths are drawn from [length (1 - r), length (1 + r)].",
        ),
    ] = 0.0
    random_prefix_len: Annotated[
        int, Option(rich_help_panel=PROMPTS, help="Tokens with which all random prompts begin.")
    ] = 0
    sharegpt_output_len: Annotated[
        int | None,
        Option(
            rich_help_panel=PROMPTS,
            help="Tokens to ask for.",
            show_default="as many as the conversation's own answer",
        ),
    ] = None
    custom_output_len: Annotated[
        int, Option(rich_help_panel=PROMPTS, help="Tokens to ask for where a line doesn't say.")
    ] = 256


@dataclass(frozen=True)
class SamplingOptions:
    """Fields of each request; what isn't given isn't sent."""

    temperature: Annotated[float | None, Option(rich_help_panel=SAMPLING, help="0 is greedy.")] = (
        None
    )
    top_p: Annotated[float | None, Option(rich_help_panel=SAMPLING)] = None
    top_k: Annotated[int | None, Option(rich_help_panel=SAMPLING)] = None
    min_p: Annotated[float | None, Option(rich_help_panel=SAMPLING)] = None
    frequency_penalty: Annotated[float | None, Option(rich_help_panel=SAMPLING)] = None
    presence_penalty: Annotated[float | None, Option(rich_help_panel=SAMPLING)] = None
    repetition_penalty: Annotated[float | None, Option(rich_help_panel=SAMPLING)] = None
    logprobs: Annotated[
        int | None, Option(rich_help_panel=SAMPLING, help="Log-probabilities a token.")
    ] = None
    ignore_eos: Annotated[
        bool,
        Option(
            "--ignore-eos",
            rich_help_panel=SAMPLING,
            help="Generate as many tokens as asked for, whatever the model says.",
        ),
    ] = False


@dataclass(frozen=True)
class ReportOptions:
    """What is made of it."""

    percentile_metrics: Annotated[
        str,
        Option(
            rich_help_panel=REPORT,
            help="Which times to print: ttft, tpot, itl, e2el, client_queue_time, with commas.",
        ),
    ] = "ttft,tpot,itl,e2el"
    metric_percentiles: Annotated[
        str, Option(rich_help_panel=REPORT, help="Which percentiles of them, with commas.")
    ] = "99"
    goodput: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=REPORT,
            metavar="NAME:MS,...",
            help="Count requests that meet all of these goals: ttft, tpot and e2el, such as "
            "ttft:200,tpot:50.",
        ),
    ] = None
    num_gpus: Annotated[
        int | None,
        Option(
            rich_help_panel=REPORT,
            min=1,
            help="What throughput is divided by.",
            show_default="what the server's /server_info says",
        ),
    ] = None
    save_result: Annotated[
        bool, Option("--save-result", rich_help_panel=REPORT, help="Write the numbers as JSON.")
    ] = False
    save_detailed: Annotated[
        bool,
        Option(
            "--save-detailed", rich_help_panel=REPORT, help="With every request's times and text."
        ),
    ] = False
    result_dir: Annotated[
        Path | None,
        Option(rich_help_panel=REPORT, help="Where to.", show_default="the current folder"),
    ] = None
    result_filename: Annotated[
        str | None,
        Option(
            rich_help_panel=REPORT, help="What to.", show_default="made of label, rate, model, time"
        ),
    ] = None
    label: Annotated[
        str | None,
        Option(rich_help_panel=REPORT, help="First part of the file's name; the backend's."),
    ] = None
    metadata: Annotated[
        list[str] | None,
        Option(rich_help_panel=REPORT, metavar="NAME=VALUE", help="Kept in the file; repeatable."),
    ] = None
    plot: Annotated[
        Path | None,
        Option(
            rich_help_panel=REPORT,
            metavar="FOLDER",
            help="Draw timeline and latencies there; needs megainfer[bench].",
        ),
    ] = None
    disable_tqdm: Annotated[
        bool, Option("--disable-tqdm", rich_help_panel=REPORT, help="No progress bar.")
    ] = False
