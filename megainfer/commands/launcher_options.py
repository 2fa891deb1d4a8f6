"""The options of who starts the agents of an instance."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated

from typer import Option

from megainfer.config import parse_bytes
from megainfer.errors import ConfigError
from megainfer.launchers.on_ray.wish import Strategy
from megainfer.launchers.ranks import Rank, slurm_rank, torchrun_rank

LAUNCHERS = "Launchers"
AGENTS_PORT = 7300


class Launcher(StrEnum):
    LOCAL = "local"
    RAY = "ray"
    TORCHRUN = "torchrun"
    SLURM = "slurm"


class RayStrategy(StrEnum):
    STRICT_SPREAD = "STRICT_SPREAD"
    SPREAD = "SPREAD"
    PACK = "PACK"
    STRICT_PACK = "STRICT_PACK"


_RESOURCE = re.compile(r"([\w.:/-]{1,128})=(\d{1,12}(?:\.\d{1,6})?)")


@dataclass(frozen=True)
class LauncherOptions:
    """Of `megainfer serve`."""

    launcher: Annotated[
        Launcher | None,
        Option(
            rich_help_panel=LAUNCHERS,
            show_default="agents are started by hand",
            help="Who starts the agents: local, so many on this machine; ray, actors of a cluster; "
            "torchrun and slurm, which start this command on each host.",
        ),
    ] = None
    agents_port: Annotated[
        int,
        Option(
            rich_help_panel=LAUNCHERS,
            min=1,
            max=65535,
            help="Where agents join on the host of rank 0, with torchrun and slurm, unless "
            "--listen-agents says so.",
        ),
    ] = AGENTS_PORT
    ray_address: Annotated[
        str,
        Option(
            rich_help_panel=LAUNCHERS,
            metavar="ADDRESS",
            help="The cluster, as ray.init takes it: auto is RAY_ADDRESS, or the one here.",
        ),
    ] = "auto"
    ray_strategy: Annotated[
        RayStrategy,
        Option(
            rich_help_panel=LAUNCHERS,
            case_sensitive=False,
            help="How Ray places agents: STRICT_SPREAD has each on a node of its own.",
        ),
    ] = RayStrategy.STRICT_SPREAD
    ray_cpus: Annotated[
        float,
        Option(rich_help_panel=LAUNCHERS, min=0, help="CPUs that Ray reserves for each agent."),
    ] = 1.0
    ray_gpus: Annotated[
        float,
        Option(rich_help_panel=LAUNCHERS, min=0, help="GPUs that Ray reserves for each agent."),
    ] = 0.0
    ray_memory: Annotated[
        int | None,
        Option(
            rich_help_panel=LAUNCHERS,
            parser=partial(parse_bytes, flag="--ray-memory"),
            metavar="BYTES",
            show_default="not reserved",
            help="Memory that Ray reserves for each agent, and that its nodes may take.",
        ),
    ] = None
    ray_resource: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=LAUNCHERS,
            metavar="NAME=NUMBER",
            help="What else an agent needs of the cluster's resources; repeatable.",
        ),
    ] = None

    def rank(self, environment: Mapping[str, str]) -> Rank | None:
        """Of this process, where several are started alike. Raises ConfigError."""
        if self.launcher is Launcher.TORCHRUN:
            return torchrun_rank(environment)
        return slurm_rank(environment) if self.launcher is Launcher.SLURM else None

    def ray_resources(self) -> dict[str, float]:
        """Of each agent, by Ray's names. Raises ConfigError."""
        asked: dict[str, float] = {"CPU": self.ray_cpus, "GPU": self.ray_gpus}
        asked["memory"] = float(self.ray_memory or 0)
        for text in self.ray_resource or []:
            if (match := _RESOURCE.fullmatch(text)) is None:
                raise ConfigError(f"--ray-resource must be such as fast_disk=1, not {text!r}")
            asked[match[1]] = float(match[2])
        wanted = {name: amount for name, amount in asked.items() if amount > 0}
        if not wanted:
            raise ConfigError("--ray-cpus 0 leaves nothing that Ray could place an agent by")
        return wanted

    def strategy(self) -> Strategy:
        return self.ray_strategy.value
