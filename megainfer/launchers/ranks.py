"""Which of several processes this one is that an engine has started alike: torchrun and Slurm."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megainfer.errors import ConfigError

TORCHRUN = "torchrun --nnodes N --nproc-per-node 1 ... -m megainfer serve ... --launcher torchrun"
SLURM = "srun --nodes N --ntasks-per-node 1 megainfer serve ... --launcher slurm"
_GROUP = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Rank:
    """rank: of how many (size); 0 is the supervisor, with an agent beside it, others are agents.
    leader: name or address of rank 0's host."""

    rank: int
    size: int
    leader: str


def torchrun_rank(environment: Mapping[str, str]) -> Rank:
    """Raises ConfigError, naming what is missing."""
    found = _Variables(environment, "torchrun", TORCHRUN)
    found.check_alone(found.number("LOCAL_WORLD_SIZE"))
    return Rank(found.number("RANK"), found.number("WORLD_SIZE"), found.text("MASTER_ADDR"))


def slurm_rank(environment: Mapping[str, str]) -> Rank:
    """Of a step. Raises ConfigError, naming what is missing."""
    found = _Variables(environment, "slurm", SLURM)
    nodes = environment.get("SLURM_STEP_NODELIST") or found.text("SLURM_JOB_NODELIST")
    rank, size = found.number("SLURM_PROCID"), found.number("SLURM_NTASKS")
    found.check_alone(max(found.number("SLURM_LOCALID") + 1, _most_tasks(environment)))
    return Rank(rank, size, first_host(nodes))


def first_host(nodes: str) -> str:
    """Of a node list as Slurm writes them. Raises ConfigError where there is none.

    >>> first_host("gpu[003-005,9],head"), first_host("rack[1-2]n[07,09]-ib"), first_host("a,b")
    ('gpu003', 'rack1n07-ib', 'a')
    """
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    host = _GROUP.sub(lambda group: re.split("[-,]", group[1])[0], first).strip()
    if not host:
        raise ConfigError(f"the node list of Slurm names no host: {nodes!r}")
    return host


def _most_tasks(environment: Mapping[str, str]) -> int:
    """On a node of the step: `2(x3),1`, where Slurm says so."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    return max((int(count) for count in re.findall(r"(?:^|,)(\d+)", text)), default=1)


class _Variables:
    """Of an environment; command: which would have set them."""

    def __init__(self, environment: Mapping[str, str], launcher: str, command: str) -> None:
        self._environment = environment
        self._launcher = launcher
        self._command = command

    def text(self, name: str) -> str:
        if not (value := self._environment.get(name)):
            raise ConfigError(
                f"--launcher {self._launcher} finds no {name} in the environment: start it by "
                f"`{self._command}`"
            )
        return value

    def check_alone(self, ranks: int) -> None:
        """ranks: on a host, of which there is to be one."""
        if ranks > 1:
            raise ConfigError(
                f"--launcher {self._launcher} needs one rank a host, which starts as many "
                f"processes there as the instance needs, and there are {ranks}: `{self._command}`"
            )

    def number(self, name: str) -> int:
        value = self.text(name)
        if re.fullmatch(r"\d{1,9}", value) is None:
            raise ConfigError(f"{name} must be a whole number, not {value!r}")
        return int(value)
