"""The options of `megainfer agent`."""

import socket
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from typer import Option

from megainfer.commands.agent_offer import Offer
from megainfer.commands.gpu_numbers import GpuNumbers
from megainfer.commands.host_options import (
    JOIN_SECONDS,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    TokenFile,
    check_seconds,
    open_tls,
    parse_address,
)
from megainfer.config import parse_bytes
from megainfer.errors import ConfigError
from megainfer.hosts.token import VARIABLE, find_token
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME
from megainfer.model_folder.resolve import ModelSource


@dataclass(frozen=True)
class AgentOptions:
    """In the order in which its help lists them."""

    join: Annotated[
        str, Option(metavar="HOST:PORT", help="Where the supervisor listens (--listen-agents).")
    ]
    token_file: TokenFile = None
    tls_certfile: TlsCertificate = None
    tls_keyfile: TlsKey = None
    tls_cafile: TlsAuthority = None
    host: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            show_default="the one that leads to --join",
            help="The IP address of this machine at which it, and its nodes, listen.",
        ),
    ] = None
    port: Annotated[
        int, Option(help="Port at which the supervisor starts nodes here; 0 takes a free one.")
    ] = 0
    name: Annotated[
        str | None,
        Option(show_default="the machine's", help="What the instance calls this host."),
    ] = None
    model: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            show_default="the path that serve has",
            help="Where the model is on this machine: a folder, or a GGUF file; or a hub id, which "
            f"is fetched before it joins, or {DEMO_MODEL_NAME}, which is made.",
        ),
    ] = None
    revision: Annotated[
        str | None, Option(help="Branch, tag or commit of a --model that is a hub id.")
    ] = None
    memory: Annotated[
        int | None,
        Option(
            parser=partial(parse_bytes, flag="--memory"),
            metavar="BYTES",
            show_default="what is available",
            help="What nodes here may take, such as 64GiB, where others need memory, too.",
        ),
    ] = None
    gpus: Annotated[
        GpuNumbers | None,
        Option(
            parser=GpuNumbers.parse,
            metavar="NUMBERS",
            show_default="all, one node each",
            help="Which GPUs nodes here may have, such as 0,1: of those that CUDA_VISIBLE_DEVICES "
            "leaves. One that is named twice may have two nodes.",
        ),
    ] = None
    join_timeout: Annotated[
        float,
        Option(
            metavar="SECONDS",
            help="How long to try to join, at the start and when the supervisor is lost.",
        ),
    ] = JOIN_SECONDS
    drain_timeout: Annotated[
        float,
        Option(
            metavar="SECONDS",
            help="How long after SIGTERM nodes go on, for an instance that is told to end at the "
            "same time; it ends with that, and with a second signal at once.",
        ),
    ] = 0.0
    log_level: Annotated[str, Option(help="debug, info, warning or error.")] = "info"

    def offer(self) -> Offer:
        """What they say. Raises ConfigError."""
        token = find_token(self.token_file)
        if token is None:
            raise ConfigError(
                f"--token-file FILE is needed, the same as the supervisor's, or {VARIABLE} in the "
                "environment"
            )
        check_seconds("--join-timeout", self.join_timeout)
        check_seconds("--drain-timeout", self.drain_timeout)
        return Offer(
            join=parse_address(self.join, "--join"),
            token=token,
            name=self.name or socket.gethostname(),
            join_seconds=self.join_timeout,
            host=self.host,
            port=self.port,
            model=model_source(self.model, self.revision),
            memory=self.memory,
            gpus=self.gpus,
            drain_seconds=self.drain_timeout,
            tls=open_tls(self.tls_certfile, self.tls_keyfile, self.tls_cafile),
        )


def model_source(model: str | None, revision: str | None) -> ModelSource | None:
    """What an agent is to have before it joins; None: the model is where `serve` says. Raises
    ConfigError."""
    if model is None:
        if revision is not None:
            raise ConfigError("--revision is for a hub id; name it by --model")
        return None
    return ModelSource(None if model == DEMO_MODEL_NAME else model, revision)
