"""The command line: `megainfer serve | chat | generate | version`."""

import errno
import ipaddress
import logging
import socket
import sys
import textwrap
from functools import partial
from importlib.metadata import version as package_version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from megainfer.commands import serving_flags as flags
from megainfer.commands.trace import trace
from megainfer.config import MAX_MICRO_BATCHES, EngineConfig, parse_bytes, parse_micro_batches
from megainfer.control import ParentLink
from megainfer.errors import ConfigError, MegaInferError
from megainfer.model_source import served_name
from megainfer.plan import Plan, describe, make_plan
from megainfer.prepare import prepare
from megainfer.queue_limits import QueueLimits
from megainfer.serving_options import ServingOptions, read_keys
from megainfer.supervisor import Supervisor
from megainfer.terminal import TerminalObserver

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve Mixture-of-Experts models with attention and experts on separate nodes.",
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str | None,
    typer.Argument(help="Local folder or hub id (owner/name); the demo model if left out."),
]
AttnGpus = Annotated[
    int, typer.Option("--attn-gpus", help="Attention nodes; CPU processes where there is no GPU.")
]
FfnGpus = Annotated[
    int, typer.Option("--ffn-gpus", help="Expert nodes; CPU processes where there is no GPU.")
]
MicroBatches = Annotated[
    str,
    typer.Option(
        "--micro-batches",
        help=f"How many micro-batches take turns, 1 to {MAX_MICRO_BATCHES}; auto measures.",
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option("--max-model-len", help="Tokens of prompt and answer; the model's own limit."),
]
KvCacheMemory = Annotated[
    str | None,
    typer.Option("--kv-cache-memory", help="KV cache of an attention node, such as 512MiB or 4G."),
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto, float32 or bfloat16; auto: what suits model and CPU.")
]
MaxNumSeqs = Annotated[
    int,
    typer.Option(
        "--max-num-seqs", help="Requests running on an attention node, in all its micro-batches."
    ),
]
MaxNumBatchedTokens = Annotated[
    int,
    typer.Option(
        "--max-num-batched-tokens",
        help="Tokens in one step of a micro-batch, which is also the capacity of an M2N slot.",
    ),
]
Kernels = Annotated[
    str, typer.Option("--kernels", help="auto, reference or cpu; auto: cpu where it was built.")
]
ExpertDtype = Annotated[
    str,
    typer.Option(
        "--expert-dtype", help="Expert weights in float32, bfloat16 or int8; auto: as --dtype."
    ),
]
AttentionDtype = Annotated[
    str,
    typer.Option(
        "--attention-dtype",
        help="Other weights in float32, bfloat16 or int8; auto: as --dtype.",
    ),
]
Cores = Annotated[
    str,
    typer.Option(
        "--cores",
        help="split: cores of its own for each process; shared: all for all; auto: shared where "
        "two processes take turns.",
    ),
]
Colocated = Annotated[
    bool, typer.Option("--colocated", help="Both roles in one process: the baseline.")
]


@app.command()
def serve(
    model: Model = None,
    attn_gpus: AttnGpus = 1,
    ffn_gpus: FfnGpus = 1,
    micro_batches: MicroBatches = "auto",
    max_model_len: MaxModelLen = None,
    kv_cache_memory: KvCacheMemory = None,
    dtype: Dtype = "auto",
    max_num_seqs: MaxNumSeqs = 64,
    max_num_batched_tokens: MaxNumBatchedTokens = 512,
    kernels: Kernels = "auto",
    expert_dtype: ExpertDtype = "auto",
    attention_dtype: AttentionDtype = "auto",
    cores: Cores = "auto",
    colocated: Colocated = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option("--served-model-name", help="What the API calls the model; repeatable."),
    ] = None,
    api_key: flags.ApiKey = None,
    api_key_file: flags.ApiKeyFile = None,
    admin_key: flags.AdminKey = None,
    admin_key_file: flags.AdminKeyFile = None,
    public_metrics: flags.PublicMetrics = False,
    allowed_origins: flags.AllowedOrigins = None,
    ssl_certfile: flags.SslCertfile = None,
    ssl_keyfile: flags.SslKeyfile = None,
    max_queued_requests: flags.MaxQueuedRequests = None,
    queue_timeout: flags.QueueTimeout = None,
    request_timeout: flags.RequestTimeout = None,
    drain_timeout: flags.DrainTimeout = 25.0,
    health_timeout: flags.HealthTimeout = 20.0,
    log_interval: flags.LogInterval = 5.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run where, and exit.")
    ] = False,
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    config = EngineConfig(
        model=model,
        attn_gpus=attn_gpus,
        ffn_gpus=ffn_gpus,
        micro_batches=parse_micro_batches(micro_batches),
        max_model_len=max_model_len,
        kv_cache_memory=_bytes_or_none(kv_cache_memory),
        dtype=dtype,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        colocated=colocated,
        kernels=kernels,
        expert_dtype=expert_dtype,
        attention_dtype=attention_dtype,
        cores=cores,
    )
    options = ServingOptions(
        names=tuple(served_model_name or [served_name(config.model)]),
        api_keys=read_keys("--api-key", api_key or [], api_key_file),
        admin_keys=read_keys("--admin-key", admin_key or [], admin_key_file),
        loopback=_is_loopback(host),
        public_metrics=public_metrics,
        allowed_origins=tuple(allowed_origins or ()),
        certificate=ssl_certfile,
        private_key=ssl_keyfile,
        limits=QueueLimits(max_queued_requests, queue_timeout, request_timeout),
        drain_seconds=drain_timeout,
        patience=health_timeout,
        log_seconds=log_interval,
    )
    raise typer.Exit(_serve(config, options, host, port, dry_run))


app.command()(trace)


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Served name; the first if left out.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
) -> None:
    """Chat with a running server in the terminal."""
    from megainfer.chat_cli import run_chat

    run_chat(url, model, system, temperature=temperature, max_tokens=max_tokens)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id; else the demo model.")
    ] = None,
    attn_gpus: AttnGpus = 1,
    ffn_gpus: FfnGpus = 1,
    micro_batches: MicroBatches = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    expert_dtype: ExpertDtype = "auto",
    attention_dtype: AttentionDtype = "auto",
    cores: Cores = "auto",
    colocated: Colocated = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    as_chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Put each prompt into the chat template.")
    ] = True,
) -> None:
    """Generate answers to prompts offline, without a server."""
    from megainfer.llm import LLM
    from megainfer.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with LLM(
        model,
        attn_gpus=attn_gpus,
        ffn_gpus=ffn_gpus,
        micro_batches=micro_batches,
        dtype=dtype,
        colocated=colocated,
        kernels=kernels,
        expert_dtype=expert_dtype,
        attention_dtype=attention_dtype,
        cores=cores,
    ) as llm:
        wanted: list[str | list[int]] = list(prompts)
        if as_chat:
            wanted = [llm.chat_prompt([{"role": "user", "content": text}]) for text in prompts]
        for result in llm.generate(wanted, params, progress=sys.stdout.isatty()):
            print(result.outputs[0].text.strip())


@app.command()
def version() -> None:
    """Print the version."""
    print(package_version("megainfer"))


def main() -> None:
    """The console script: what a user did wrong is a line on stderr, not a traceback."""
    try:
        app()
    except MegaInferError as error:
        console = Console(stderr=True, highlight=False)
        console.print("[bold red]error:[/bold red]", escape(str(error)), soft_wrap=True)
        sys.exit(2)


def _serve(
    config: EngineConfig, options: ServingOptions, host: str, port: int, dry_run: bool
) -> int:
    console = Console(highlight=False)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    plan = make_plan(config, prepare(config.model))
    for line in describe(plan):
        shown = _wrapped(line, console.width) if console.is_terminal else line
        console.print(shown, soft_wrap=True, markup=False)
    if dry_run:
        return 0
    if not options.loopback and not options.api_keys:
        console.print(
            f"open       to whoever reaches {host}: no key is asked for; --api-key sets one"
        )
    sock = listen(host, port)
    url = f"http{'s' * options.uses_tls}://{_shown_host(host)}:{sock.getsockname()[1]}"
    observer = TerminalObserver(console, plan, url, options.names[0])
    server = partial(_run_server, plan=plan, sock=sock, options=options)
    supervisor = Supervisor(
        plan, observer, server=server, held=[sock], drain_seconds=options.drain_seconds
    )
    return supervisor.run()


def _wrapped(line: str, width: int) -> str:
    """At spaces, and so that the first word of a description stands out."""
    return textwrap.fill(line, width, subsequent_indent=" " * 11, break_long_words=False)


def _run_server(link: ParentLink, plan: Plan, sock: socket.socket, options: ServingOptions) -> None:
    # Imported in the server's own process: the supervisor has no use for a web framework.
    from server.process import run_server

    run_server(link, plan, sock, options)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError when the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(_why_not_listening(error, host, port)) from error
    return sock


def _why_not_listening(error: OSError | OverflowError, host: str, port: int) -> str:
    if isinstance(error, OverflowError):
        return f"--port must be from 0 (any free one) to 65535, not {port}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        fix = "name an address of this machine with --host"
    else:
        fix = "choose another with --port (0 takes a free one)"
    return f"can't listen on {host} port {port}: {error.strerror}; {fix}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _bytes_or_none(text: str | None) -> int | None:
    return None if text is None else parse_bytes(text, "--kv-cache-memory")
