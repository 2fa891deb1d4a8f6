"""The options of the API server, as against the engine's."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from megainfer.commands.whole_number import whole_number
from megainfer.config import format_bytes, parse_bytes
from megainfer.console.logs import LEVELS
from megainfer.errors import ConfigError
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.serving_options import ServingOptions, read_keys
from megainfer.frontend.syntax_options import CALLS, REASONING, SyntaxOptions
from megainfer.planner.hardware import load_devices
from megainfer.sharing.budgets import CHARACTERS_A_TOKEN, BudgetOptions

HTTP, KEYS, LOAD, ANSWERS = "HTTP server", "Keys", "Overload and ending", "Answers"
SHARES = "Shares of clients"
OFF, BY_KEY = "off", "key"
DEFAULT = ServingOptions()


@dataclass(frozen=True)
class HttpOptions:
    """What becomes `ServingOptions`; defaults are its own."""

    api_key: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=KEYS,
            help="Clients must send this key; repeatable. Others on this machine can see command "
            "lines: prefer --api-key-file.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None, Option(rich_help_panel=KEYS, help="A file of such keys, one a line.")
    ] = None
    admin_key: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=KEYS,
            help="Opens everything; no other key opens /server_info, /admin, /debug. Repeatable.",
        ),
    ] = None
    admin_key_file: Annotated[
        Path | None, Option(rich_help_panel=KEYS, help="A file of such keys, one a line.")
    ] = None
    public_metrics: Annotated[
        bool,
        Option("--public-metrics", rich_help_panel=KEYS, help="Serve /metrics without a key."),
    ] = DEFAULT.public_metrics
    allowed_origins: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=HTTP,
            help="Web pages from this origin may call the API, * for all; repeatable.",
        ),
    ] = None
    allowed_hosts: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=HTTP,
            help="A name that a proxy on this machine passes on as Host, * for any; repeatable. "
            "Where no key is asked for, only localhost and addresses are taken else.",
        ),
    ] = None
    ssl_certfile: Annotated[
        Path | None, Option(rich_help_panel=HTTP, help="Certificate (PEM); makes it HTTPS.")
    ] = None
    ssl_keyfile: Annotated[
        Path | None, Option(rich_help_panel=HTTP, help="The certificate's private key (PEM).")
    ] = None
    log_interval: Annotated[
        float, Option(rich_help_panel=HTTP, help="Seconds between lines about traffic; 0: none.")
    ] = DEFAULT.log_seconds
    log_level: Annotated[
        str,
        Option(
            rich_help_panel=HTTP,
            metavar="|".join(LEVELS),
            help="The least severe lines that are logged.",
        ),
    ] = "info"
    access_log: Annotated[
        bool,
        Option("--access-log", rich_help_panel=HTTP, help="A log line for every request."),
    ] = DEFAULT.access_log
    otlp_traces_endpoint: Annotated[
        str | None,
        Option(
            rich_help_panel=HTTP,
            metavar="URL",
            help="Send a span for each request to this OpenTelemetry collector, over HTTP, such as "
            "http://127.0.0.1:4318/v1/traces; needs the extra otel.",
        ),
    ] = None
    hardware: Annotated[
        Path | None,
        Option(
            rich_help_panel=HTTP,
            help="Devices as megainfer calibrate writes them, or a table of your own; /metrics and "
            "the page then have what the plan expects beside what is measured.",
        ),
    ] = None
    hardware_name: Annotated[
        str | None,
        Option(rich_help_panel=HTTP, help="Which machine of that file this is."),
    ] = None
    health_timeout: Annotated[
        float,
        Option(
            rich_help_panel=HTTP,
            help="Seconds of silence after which a node counts as hung in /health.",
        ),
    ] = DEFAULT.patience
    recovery_timeout: Annotated[
        float,
        Option(
            rich_help_panel=LOAD,
            help="Seconds for which requests wait while nodes that they need are started again.",
        ),
    ] = DEFAULT.recovery_seconds
    max_queued_requests: Annotated[
        int | None,
        Option(
            rich_help_panel=LOAD,
            parser=whole_number,
            metavar="NUMBER",
            help="Requests that may wait beyond those that run; more are answered 503.",
        ),
    ] = None
    queue_timeout: Annotated[
        float | None,
        Option(rich_help_panel=LOAD, help="Seconds that a request may wait for its first step."),
    ] = None
    request_timeout: Annotated[
        float | None,
        Option(rich_help_panel=LOAD, help="Seconds that a request may take in all."),
    ] = None
    drain_timeout: Annotated[
        float,
        Option(
            rich_help_panel=LOAD,
            help="Seconds in which running requests may finish after SIGTERM; Ctrl-C ends at once.",
        ),
    ] = DEFAULT.drain_seconds
    client_share: Annotated[
        float,
        Option(
            rich_help_panel=SHARES,
            help="How much of what others leave one key, or one address without keys, may have: of "
            "sequences in flight and of --request-memory; 1: all.",
        ),
    ] = DEFAULT.budgets.client_share
    request_memory: Annotated[
        int,
        Option(
            rich_help_panel=SHARES,
            parser=partial(parse_bytes, flag="--request-memory"),
            metavar="BYTES",
            show_default=format_bytes(DEFAULT.budgets.request_memory),
            help="What all requests in flight may take beside the KV cache, such as 1GiB.",
        ),
    ] = DEFAULT.budgets.request_memory
    max_prompt_characters: Annotated[
        int | None,
        Option(
            rich_help_panel=SHARES,
            parser=whole_number,
            metavar="NUMBER",
            show_default=f"{CHARACTERS_A_TOKEN} a token of the context",
            help="Of one text; a longer one is refused before it is encoded.",
        ),
    ] = DEFAULT.budgets.prompt_characters
    max_body_bytes: Annotated[
        int | None,
        Option(
            rich_help_panel=SHARES,
            parser=partial(parse_bytes, flag="--max-body-bytes"),
            metavar="BYTES",
            show_default="what such a text takes, and 1 MiB",
            help="Of one request.",
        ),
    ] = DEFAULT.budgets.body_bytes
    max_connections_per_address: Annotated[
        int | None,
        Option(
            rich_help_panel=SHARES,
            parser=whole_number,
            metavar="NUMBER",
            show_default="half of all",
            help="Connections from one address; a proxy is one.",
        ),
    ] = DEFAULT.of_address
    cache_isolation: Annotated[
        str,
        Option(
            rich_help_panel=SHARES,
            metavar="off|key",
            help="key: each key, or address, finds only its own prompts in the prefix cache, so "
            "that nobody learns what others have sent.",
        ),
    ] = OFF

    tool_call_parser: Annotated[
        str,
        Option(
            rich_help_panel=ANSWERS,
            help=f"How the model writes tool calls: {', '.join(CALLS)} or none; auto sees it in "
            "the chat template.",
        ),
    ] = DEFAULT.syntax.tool_call_parser
    reasoning_parser: Annotated[
        str,
        Option(
            rich_help_panel=ANSWERS,
            help=f"What tells reasoning from the answer: {', '.join(REASONING)} or none; auto sees "
            "it in the chat template. With deepseek_r1 a model always thinks.",
        ),
    ] = DEFAULT.syntax.reasoning_parser
    enable_auto_tool_choice: Annotated[
        bool, Option(rich_help_panel=ANSWERS, help="Let the model choose when to call tools.")
    ] = DEFAULT.syntax.auto_tool_choice
    api_servers: Annotated[
        int,
        Option(
            rich_help_panel=HTTP,
            help="Processes that answer requests; they share the port, and all limits.",
        ),
    ] = DEFAULT.api_servers
    logprobs_mode: Annotated[
        str,
        Option(
            rich_help_panel=ANSWERS,
            metavar="raw_logprobs|processed_logprobs",
            help="Log-probabilities of requests that don't say: the model's own, or those of what "
            "is drawn from.",
        ),
    ] = DEFAULT.logprobs_mode
    enable_tokenizer_info_endpoint: Annotated[
        bool, Option(rich_help_panel=HTTP, help="Offer /tokenizer_info.")
    ] = DEFAULT.shows_tokenizer

    def serving(self, names: tuple[str, ...], loopback: bool) -> ServingOptions:
        """The wish as the server takes it. Raises ConfigError."""
        return ServingOptions(
            names=names,
            api_keys=read_keys("--api-key", self.api_key or [], self.api_key_file),
            admin_keys=read_keys("--admin-key", self.admin_key or [], self.admin_key_file),
            loopback=loopback,
            public_metrics=self.public_metrics,
            allowed_origins=tuple(self.allowed_origins or ()),
            allowed_hosts=tuple(self.allowed_hosts or ()),
            certificate=self.ssl_certfile,
            private_key=self.ssl_keyfile,
            limits=QueueLimits(self.max_queued_requests, self.queue_timeout, self.request_timeout),
            budgets=self._budgets(),
            of_address=self.max_connections_per_address,
            drain_seconds=self.drain_timeout,
            patience=self.health_timeout,
            recovery_seconds=self.recovery_timeout,
            log_seconds=self.log_interval,
            access_log=self.access_log,
            syntax=SyntaxOptions(
                self.tool_call_parser, self.reasoning_parser, self.enable_auto_tool_choice
            ),
            shows_tokenizer=self.enable_tokenizer_info_endpoint,
            logprobs_mode=self.logprobs_mode,
            traces_endpoint=self.otlp_traces_endpoint,
            api_servers=self.api_servers,
            hardware=None if self.hardware is None else load_devices(self.hardware),
            hardware_name=self.hardware_name,
        )

    def _budgets(self) -> BudgetOptions:
        if self.cache_isolation not in (OFF, BY_KEY):
            raise ConfigError(
                f"--cache-isolation must be {OFF} or {BY_KEY}, not {self.cache_isolation!r}"
            )
        return BudgetOptions(
            prompt_characters=self.max_prompt_characters,
            body_bytes=self.max_body_bytes,
            request_memory=self.request_memory,
            client_share=self.client_share,
            isolates_caches=self.cache_isolation == BY_KEY,
        )
