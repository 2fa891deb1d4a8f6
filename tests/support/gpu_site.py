"""An instance on hosts of one machine whose GPUs are pretended (`gpu_hosts`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.agents import AgentProcess, free_port, wait_until_ready, write_token
from tests.support.served import Served

Hosts = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""By name, which GPUs a host has, and what else is said to its agent."""


@dataclass
class GpuSite:
    """join: an agent of this name, whose host has these GPUs, with these options."""

    served: Served
    agents: dict[str, AgentProcess]
    join: Callable[..., None]


@contextmanager
def gpu_site(
    folder: Path,
    hosts: Hosts,
    options: Sequence[str],
    kernels: str = "reference",
) -> Iterator[GpuSite]:
    """folder: for its token. options: of `serve`. kernels: of `chaos.gpus.KERNELS`."""
    token, address = write_token(folder), ("127.0.0.1", free_port())
    where = ("--agents", f"{len(hosts)}", "--listen-agents", "{}:{}".format(*address))
    with ExitStack() as stack:
        agents: dict[str, AgentProcess] = {}

        def join(name: str, gpus: Sequence[str], *more: str) -> None:
            own = ("--name", name, "--host", f"127.0.0.{[*hosts].index(name) + 2}", *more)
            program = ("tests.support.gpu_hosts", kernels, *gpus)
            agents[name] = AgentProcess.joining(address, token, *own, program=program)
            stack.callback(agents[name].kill)

        for name, (gpus, more) in hosts.items():
            join(name, gpus, *more)
        served = Served([*options, *where, "--token-file", str(token)], wait=False)
        stack.callback(served.kill)
        wait_until_ready(served, [*agents.values()])
        yield GpuSite(served, agents, join)
