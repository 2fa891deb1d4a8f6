"""Where the nodes of an instance are to be: on this host, or on those of agents, and who starts
these."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from megainfer.commands.agent_offer import Offer
from megainfer.commands.host_options import MOST_SECONDS, HostOptions, parse_address
from megainfer.commands.launcher_options import Launcher, LauncherOptions
from megainfer.errors import ConfigError
from megainfer.hosts.listening import Address
from megainfer.hosts.reception import Reception
from megainfer.hosts.token import VARIABLE, find_token, make_token
from megainfer.launchers.ranks import Rank
from megainfer.model_folder.demo.model import DEMO_MODEL_NAME
from megainfer.model_folder.resolve import ModelSource
from megainfer.tls.peers import PeerTls

if TYPE_CHECKING:
    from megainfer.agent.agent import AgentWish
    from megainfer.supervise.child import Closable

HERE = "127.0.0.1"
CLUSTER_SECONDS = 60.0
"""In which a cluster of Ray has to answer."""
PLACING_SHARE = 0.8
"""Of the time for agents to join, what Ray may take to find room: it says what is missing."""
END_SECONDS = 5.0
"""That agents go on beyond the supervisor's --drain-timeout: it ends them."""


@dataclass(frozen=True)
class Launching:
    """What the options say, and `model`, which agents elsewhere fetch themselves where it isn't a
    folder. drain_seconds: of the supervisor. log_level: of agents on Ray."""

    hosts: HostOptions
    options: LauncherOptions = field(default_factory=LauncherOptions)
    model: ModelSource = field(default_factory=ModelSource)
    drain_seconds: float = 0.0
    log_level: str = "info"

    def rank(self) -> Rank | None:
        """Which of several processes this is that were started alike; None: the only one. Raises
        ConfigError."""
        return self.options.rank(os.environ)

    def run_agent(self, rank: Rank, told: Callable[[str], None]) -> int:
        """What ranks other than 0 are, to its end; the exit status. Raises MegaInferError."""
        offer = Offer(
            self._join(rank),
            self._told_token(rank),
            _name_of(rank),
            self.hosts.agents_timeout,
            model=self._fetched(),
            drain_seconds=self.drain_seconds + END_SECONDS,
            tls=self.hosts.tls(),
        )
        return offer.run(told)

    def reception(self, held: Sequence["Closable"] = ()) -> Reception | None:
        """Open, where there are to be agents, and those started. held: what only the supervisor may
        hold. Raises MegaInferError."""
        match self.options.launcher:
            case None:
                return self.hosts.reception()
            case Launcher.LOCAL:
                return self._local(held)
            case Launcher.RAY:
                return self._on_ray()
            case Launcher.TORCHRUN | Launcher.SLURM:
                rank = self.rank()
                assert rank is not None, "there is one with this launcher"
                return self._of_ranks(rank, held)

    @property
    def agents(self) -> int:
        """How many to wait for."""
        rank = self.rank()
        return self.hosts.agents if rank is None else rank.size

    # --- local --------------------------------------------------------------------------------

    def _local(self, held: Sequence["Closable"]) -> Reception:
        names = [f"local-{agent}" for agent in range(self._count())]
        listen = self.hosts.listen_agents or f"{HERE}:0"
        reception, token = self._open(listen, len(names))
        host = reception.address.host
        tls = reception.tls
        wishes = [_kept(reception.address, token, name, host, tls) for name in names]
        return _with_keeper(reception, wishes, held)

    # --- torchrun and Slurm -------------------------------------------------------------------

    def _of_ranks(self, rank: Rank, held: Sequence["Closable"]) -> Reception:
        """Of rank 0, which has one of the agents beside it."""
        if self.hosts.agents not in (0, rank.size):
            raise ConfigError(
                f"--agents {self.hosts.agents}, but {rank.size} ranks were started, each of which "
                "is an agent; leave it out"
            )
        join = self._join(rank)
        reception, token = self._open(str(join), rank.size, self._told_token(rank))
        wish = _kept(join, token, _name_of(rank), join.host, reception.tls)
        return _with_keeper(reception, [wish], held)

    def _join(self, rank: Rank) -> Address:
        """Where agents join: an IP address of rank 0's host."""
        if self.hosts.listen_agents is not None:
            return parse_address(self.hosts.listen_agents, "--listen-agents")
        try:
            found = socket.getaddrinfo(rank.leader, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(
                f"the host of rank 0, {rank.leader}, isn't known here ({error}); name its address "
                "by --listen-agents ADDRESS:PORT, the same for all ranks"
            ) from error
        address = min(found, key=lambda each: each[0] != socket.AF_INET)[4][0]
        if _is_only_here(str(address), rank):
            raise ConfigError(
                f"to itself the host of rank 0, {rank.leader}, is {address}, where nobody else "
                "reaches it; name its address by --listen-agents ADDRESS:PORT, the same for all "
                "ranks"
            )
        return Address(str(address), self.options.agents_port)

    def _told_token(self, rank: Rank) -> bytes:
        token = find_token(self.hosts.token_file)
        if token is None:
            raise ConfigError(
                f"rank {rank.rank} has no token: --launcher {self.options.launcher} needs "
                f"--token-file FILE, in a folder that all hosts share, or {VARIABLE} in the "
                "environment of all ranks"
            )
        return token

    # --- Ray ----------------------------------------------------------------------------------

    def _on_ray(self) -> Reception:
        from megainfer.launchers.on_ray.process import RayProcess, check_ray
        from megainfer.launchers.on_ray.wish import RayStart, RayWish

        agents, file = self._count(), self.hosts.token_file
        check_ray()
        wish = RayWish(
            parent=os.getpid(),
            address=self.options.ray_address,
            agents=agents,
            resources=self.options.ray_resources(),
            strategy=self.options.strategy(),
            seconds=self.hosts.agents_timeout * PLACING_SHARE,
            arguments=self._arguments(),
        )
        process = RayProcess(wish)
        listen = self.hosts.listen_agents or str(Address(process.address(CLUSTER_SECONDS), 0))
        reception, token = self._open(listen, agents)
        reception.launcher = process
        sent = None if file is not None else token.decode()
        process.start(RayStart(str(reception.address), sent))
        return reception

    def _arguments(self) -> list[str]:
        """Of each agent on Ray."""
        told = [
            *("--join-timeout", f"{MOST_SECONDS:g}", "--log-level", self.log_level),
            *("--drain-timeout", f"{self.drain_seconds + END_SECONDS:g}"),
        ]
        if self.hosts.token_file is not None:
            told += ["--token-file", str(self.hosts.token_file.absolute())]
        if (tls := self.hosts.tls_files()) is not None:
            told += tls.options()
        if self.options.ray_memory is not None:
            told += ["--memory", str(self.options.ray_memory)]
        if (source := self._fetched()) is not None:
            told += ["--model", source.model or DEMO_MODEL_NAME]
            if source.revision is not None:
                told += ["--revision", source.revision]
        return told

    # --- any ----------------------------------------------------------------------------------

    def _count(self) -> int:
        if self.hosts.agents < 1:
            raise ConfigError(
                f"--launcher {self.options.launcher} needs --agents NUMBER: how many it is to start"
            )
        return self.hosts.agents

    def _open(
        self, listen: str, agents: int, token: bytes | None = None
    ) -> tuple[Reception, bytes]:
        """token: None: what options say, or a new one."""
        token = token or find_token(self.hosts.token_file) or make_token()
        reception = replace(self.hosts, agents=agents, listen_agents=listen).reception(token)
        assert reception is not None, "there are to be agents"
        return reception, token

    def _fetched(self) -> ModelSource | None:
        """What each host fetches, or makes, for itself; None: it is at the same path on all."""
        place = self.model.place
        return None if place is not None and place.is_dir() else self.model


def _with_keeper(
    reception: Reception, wishes: Sequence["AgentWish"], held: Sequence["Closable"]
) -> Reception:
    from megainfer.launchers.keeper import start_keeper

    reception.launcher = start_keeper(wishes, [reception, *held])
    return reception


def _kept(join: Address, token: bytes, name: str, host: str, tls: PeerTls | None) -> "AgentWish":
    """An agent of this machine that ends with this process, so that it need not look for an end."""
    from megainfer.agent.agent import AgentWish
    from megainfer.agent.attendant import Ground

    return AgentWish(join, name, 0, MOST_SECONDS, Ground(token, host, None, tls))


def _name_of(rank: Rank) -> str:
    """Of a host, unlike any other rank's, even on the same machine."""
    return f"{socket.gethostname()[:50]}-{rank.rank}"


def _is_only_here(address: str, rank: Rank) -> bool:
    """Where the host's own name leads to its loopback interface, as Debian has it."""
    alone = rank.size == 1 or rank.leader in ("localhost", address)
    return not alone and (address.startswith("127.") or address == "::1")
