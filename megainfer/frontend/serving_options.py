"""What a user may ask of the API server, checked before any process starts."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from megainfer.errors import ConfigError
from megainfer.frontend.queue_limits import QueueLimits
from megainfer.frontend.recovery import RECOVERY_SECONDS
from megainfer.frontend.syntax_options import SyntaxOptions
from megainfer.planner.hardware import Device
from megainfer.sampling import LOGPROBS_MODES, RAW
from megainfer.sharing.budgets import BudgetOptions
from megainfer.small_file import MEGABYTE, read_small_text
from megainfer.tls.certificate import load_certificate

MAX_KEY_CHARACTERS = 512
MAX_API_SERVERS = 64
MAX_NAME_CHARACTERS = 512
MAX_KEY_FILE_BYTES = MEGABYTE
SHORT_KEY = 16


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """api_keys: any of them opens the API; none: it is open. admin_keys: open all, and alone what
    shows the inside or costs the operator (`server.http.access`). loopback: only this machine can
    reach the server. public_metrics: /metrics asks for no key. allowed_origins: web pages from
    there may call the API. allowed_hosts: names that a request may call a server by which only this
    machine can reach, and which asks for no key, beside localhost and addresses; * for all.
    certificate, private_key: PEM files, for TLS. of_address: connections from one address, None for
    half of all. drain_seconds: how long admitted requests may take
    to finish after a termination signal. patience: seconds after which a node that says nothing
    counts as hung. recovery_seconds: how long requests wait for nodes that were lost. log_seconds:
    how often a line tells of the traffic; 0: never. access_log: whether a line tells of every
    request. syntax: of tool calls and reasoning. shows_tokenizer: whether /tokenizer_info is there.
    logprobs_mode: of requests that don't say; see `SamplingParams`.
    traces_endpoint: an OpenTelemetry collector's address, for a span a request. api_servers:
    processes that share the port. hardware: devices by name, from which the plan's terms are
    expected; hardware_name: which machine of them this is. Raises ConfigError.
    """

    names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    loopback: bool = True
    public_metrics: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    limits: QueueLimits = field(default_factory=QueueLimits)
    budgets: BudgetOptions = field(default_factory=BudgetOptions)
    of_address: int | None = None
    drain_seconds: float = 25.0
    patience: float = 20.0
    recovery_seconds: float = RECOVERY_SECONDS
    log_seconds: float = 5.0
    access_log: bool = False
    syntax: SyntaxOptions = field(default_factory=SyntaxOptions)
    shows_tokenizer: bool = False
    logprobs_mode: str = RAW
    traces_endpoint: str | None = None
    api_servers: int = 1
    hardware: Mapping[str, Device] | None = field(default=None, repr=False)
    hardware_name: str | None = None

    def __post_init__(self) -> None:
        for flag, keys in (("--api-key", self.api_keys), ("--admin-key", self.admin_keys)):
            _check_keys(flag, keys)
        _check_names(self.names)
        for origin in self.allowed_origins:
            _check_origin(origin)
        _check_seconds("--drain-timeout", self.drain_seconds, least=0.0)
        _check_seconds("--log-interval", self.log_seconds, least=0.0)
        _check_seconds("--health-timeout", self.patience, least=2.0)
        _check_seconds("--recovery-timeout", self.recovery_seconds, least=0.0)
        if not 1 <= self.api_servers <= MAX_API_SERVERS:
            raise ConfigError(
                f"--api-servers must be from 1 to {MAX_API_SERVERS}, not {self.api_servers}"
            )
        if self.logprobs_mode not in LOGPROBS_MODES:
            raise ConfigError(
                f"--logprobs-mode must be {' or '.join(LOGPROBS_MODES)}, not {self.logprobs_mode!r}"
            )
        _check_limits(self.limits)
        if self.of_address is not None and self.of_address < 1:
            raise ConfigError(
                f"--max-connections-per-address must be at least 1, not {self.of_address}"
            )
        _check_tls(self.certificate, self.private_key)
        if self.traces_endpoint is not None:
            _check_traces_endpoint(self.traces_endpoint)

    @property
    def asks_for_key(self) -> bool:
        """Whether clients need one: with admin keys alone they need one of these."""
        return bool(self.api_keys or self.admin_keys)

    @property
    def has_short_keys(self) -> bool:
        """Whether one can be found by trying."""
        return any(len(key) < SHORT_KEY for key in (*self.api_keys, *self.admin_keys))

    @property
    def uses_tls(self) -> bool:
        return self.certificate is not None


def read_keys(flag: str, given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Keys of the command line and of a file with one a line; empty lines and # don't count.

    Raises ConfigError when the file can't be read or holds no key.
    """
    if file is None:
        return tuple(given)
    try:
        lines = [line.strip() for line in read_small_text(file, MAX_KEY_FILE_BYTES).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}-file {file} can't be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{flag}-file {file} holds no key; write one a line")
    return (*given, *keys)


def _check_keys(flag: str, keys: Sequence[str]) -> None:
    """A key travels in a header, so it must be visible ASCII; the message must not show it."""
    for number, key in enumerate(keys, 1):
        visible = key.isascii() and key.isprintable() and " " not in key
        if not (visible and 1 <= len(key) <= MAX_KEY_CHARACTERS):
            raise ConfigError(
                f"{flag}: key {number} must be 1 to {MAX_KEY_CHARACTERS} visible ASCII characters "
                f"without spaces; it has {len(key)} characters"
            )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not (name.isprintable() and name.strip() and len(name) <= MAX_NAME_CHARACTERS):
            raise ConfigError(
                f"--served-model-name must be 1 to {MAX_NAME_CHARACTERS} visible characters, not "
                f"{name!r:.80}"
            )
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"--served-model-name {twice[0]!r:.80} is given twice")


def _check_origin(origin: str) -> None:
    """As browsers send it, which is compared letter by letter."""
    if origin == "*":
        return
    try:
        parts = urlsplit(origin)
        port = "" if parts.port is None else f":{parts.port}"
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        exact = bool(parts.scheme and host) and origin == f"{parts.scheme}://{shown}{port}"
    except ValueError:
        exact = False
    if not (exact and origin.isascii() and origin.isprintable() and " " not in origin):
        raise ConfigError(
            f"--allowed-origins takes * or what browsers send as Origin, such as "
            f"https://chat.example.com or http://localhost:3000, in small letters and without a "
            f"path, not {origin!r:.80}"
        )


def _check_seconds(flag: str, value: float, least: float) -> None:
    if not least <= value < float("inf"):
        raise ConfigError(f"{flag} must be a number of seconds of at least {least:g}, not {value}")


def _check_limits(limits: QueueLimits) -> None:
    if limits.queued is not None and limits.queued < 0:
        raise ConfigError(f"--max-queued-requests must be at least 0, not {limits.queued}")
    for flag, value in (
        ("--queue-timeout", limits.queue_seconds),
        ("--request-timeout", limits.total_seconds),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{flag} must be a number of seconds above 0, not {value}")


def _check_tls(certificate: Path | None, private_key: Path | None) -> None:
    if certificate is None and private_key is None:
        return
    if certificate is None or private_key is None:
        missing = "--ssl-certfile" if certificate is None else "--ssl-keyfile"
        raise ConfigError(f"TLS needs a certificate and its key: give {missing} as well")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_certificate(context, certificate, private_key, ("--ssl-certfile", "--ssl-keyfile"))


def _check_traces_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError(
            f"--otlp-traces-endpoint must be a collector's whole address, such as "
            f"http://127.0.0.1:4318/v1/traces, not {url!r}"
        )
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec(
            "opentelemetry.sdk"
        )
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            "--otlp-traces-endpoint needs OpenTelemetry's packages; install MegaInfer with its "
            "extra: pip install 'megainfer[otel]'"
        )
