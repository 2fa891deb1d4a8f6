"""The options of an instance whose nodes are on several hosts, and of an agent there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from megainfer.errors import ConfigError
from megainfer.hosts.listening import Address
from megainfer.hosts.reception import LEASE_SECONDS, PATIENCE_SECONDS, Reception
from megainfer.hosts.token import VARIABLE, find_token
from megainfer.launch.hosts.places import Wishes, parse_place
from megainfer.tls.peers import AUTHORITY, CERTIFICATE, PRIVATE_KEY, PeerTls, TlsFiles

HOSTS = "Hosts"
JOIN_SECONDS = PATIENCE_SECONDS
LEAST_LEASE_SECONDS = 2.0
MOST_SECONDS = 86400.0
TokenFile = Annotated[
    Path | None,
    Option(
        "--token-file",
        rich_help_panel=HOSTS,
        metavar="FILE",
        show_default=f"the environment's {VARIABLE}",
        help="The secret that agents and the supervisor share: 32 characters or more, readable by "
        "its owner only.",
    ),
]
TlsCertificate = Annotated[
    Path | None,
    Option(
        CERTIFICATE,
        rich_help_panel=HOSTS,
        metavar="FILE",
        help="This host's certificate (PEM), for TLS between hosts; with the two below, on all.",
    ),
]
TlsKey = Annotated[
    Path | None,
    Option(PRIVATE_KEY, rich_help_panel=HOSTS, metavar="FILE", help="The key of --tls-certfile."),
]
TlsAuthority = Annotated[
    Path | None,
    Option(
        AUTHORITY,
        rich_help_panel=HOSTS,
        metavar="FILE",
        help="Certificate of the authority that all hosts' are of: the instance's own, since names "
        "aren't looked at.",
    ),
]
_ADDRESS = re.compile(r"(\[?)([^\[\]]+)(\]?):(\d{1,5})")


@dataclass(frozen=True)
class HostOptions:
    """Of `megainfer serve`."""

    agents: Annotated[
        int,
        Option(
            rich_help_panel=HOSTS,
            metavar="NUMBER",
            help="Wait for so many `megainfer agent`s, and have all nodes on their hosts; 0: on "
            "this one.",
        ),
    ] = 0
    listen_agents: Annotated[
        str | None,
        Option(
            rich_help_panel=HOSTS,
            metavar="ADDRESS:PORT",
            help="Where agents join: the IP address of one interface.",
        ),
    ] = None
    token_file: TokenFile = None
    tls_certfile: TlsCertificate = None
    tls_keyfile: TlsKey = None
    tls_cafile: TlsAuthority = None
    place: Annotated[
        list[str] | None,
        Option(
            rich_help_panel=HOSTS,
            metavar="NODE=HOST",
            show_default="where cores and memory are",
            help="Where a node is to be, such as attention.0=left, or a rank of it "
            "(attention.0.1=right); repeatable.",
        ),
    ] = None
    agents_timeout: Annotated[
        float,
        Option(rich_help_panel=HOSTS, metavar="SECONDS", help="How long to wait for agents."),
    ] = JOIN_SECONDS
    agent_lease: Annotated[
        float,
        Option(
            rich_help_panel=HOSTS,
            metavar="SECONDS",
            help="Silence after which a host counts as lost here, and there ends its nodes.",
        ),
    ] = LEASE_SECONDS
    move_nodes_after: Annotated[
        float | None,
        Option(
            rich_help_panel=HOSTS,
            metavar="SECONDS",
            show_default="they wait for their host",
            help="Once it serves: when the nodes of a host that stays away are started on others.",
        ),
    ] = None
    load_from_peer: Annotated[
        bool,
        Option(
            "--load-from-peer",
            rich_help_panel=HOSTS,
            help="A host whose model folder lacks files with weights copies them from another's; "
            "expert nodes there have experts from others that serve.",
        ),
    ] = False

    def places(self) -> Wishes:
        """For nodes and ranks. Raises ConfigError."""
        return dict(map(parse_place, self.place or []))

    def tls(self) -> PeerTls | None:
        """Of connections between hosts. Raises ConfigError."""
        files = self.tls_files()
        return None if files is None else PeerTls(files)

    def tls_files(self) -> TlsFiles | None:
        """The same, unread: agents elsewhere have their own at these paths."""
        return TlsFiles.chosen(self.tls_certfile, self.tls_keyfile, self.tls_cafile)

    def reception(self, token: bytes | None = None) -> Reception | None:
        """Open, where there are to be agents. token: in place of what options say of it. Raises
        ConfigError."""
        if self.agents == 0:
            self._check_unused()
            return None
        if self.agents < 0:
            raise ConfigError(f"--agents must be 0 or more, not {self.agents}")
        self.places()
        if not self.agent_lease >= LEAST_LEASE_SECONDS:
            raise ConfigError(
                f"--agent-lease must be at least {LEAST_LEASE_SECONDS:g} s, not "
                f"{self.agent_lease:g}: in less a busy host would count as lost"
            )
        check_seconds("--agent-lease", self.agent_lease)
        check_seconds("--agents-timeout", self.agents_timeout)
        waits = self.agent_lease, self.agents_timeout
        token = token or find_token(self.token_file)
        reception = open_reception(self.agents, self.listen_agents, token, *waits, self.tls())
        if self.move_nodes_after is not None:
            check_seconds("--move-nodes-after", self.move_nodes_after)
            reception.move_after = self.move_nodes_after
        reception.load_from_peer = self.load_from_peer
        return reception

    def _check_unused(self) -> None:
        given = {
            "--listen-agents": self.listen_agents,
            "--token-file": self.token_file,
            CERTIFICATE: self.tls_certfile,
            PRIVATE_KEY: self.tls_keyfile,
            AUTHORITY: self.tls_cafile,
            "--place": self.place,
            "--load-from-peer": self.load_from_peer,
            "--move-nodes-after": self.move_nodes_after is not None,
        }
        for flag, value in given.items():
            if value:
                raise ConfigError(f"{flag} is for nodes on other hosts; --agents says on how many")


def open_reception(
    agents: int,
    listen_agents: str | None,
    token: bytes | None,
    lease: float = LEASE_SECONDS,
    patience: float = JOIN_SECONDS,
    tls: PeerTls | None = None,
) -> Reception:
    """Where so many agents are to join. Raises ConfigError."""
    if listen_agents is None or token is None:
        raise ConfigError(
            f"--agents {agents} needs --listen-agents ADDRESS:PORT, where they join, and "
            "--token-file FILE, by which they prove themselves; or --launcher, which starts them"
        )
    address = parse_address(listen_agents, "--listen-agents")
    return Reception.open(address, token, lease, patience, tls)


def open_tls(
    certificate: Path | None, private_key: Path | None, authority: Path | None
) -> PeerTls | None:
    """What these options ask for. Raises ConfigError where one is missing or can't be used."""
    files = TlsFiles.chosen(certificate, private_key, authority)
    return None if files is None else PeerTls(files)


def check_seconds(flag: str, seconds: float) -> None:
    """Of something that waits. Raises ConfigError where that would be no bound."""
    if not 0 <= seconds <= MOST_SECONDS:
        raise ConfigError(f"{flag} must be seconds from 0 to {MOST_SECONDS:g}, not {seconds:g}")


def parse_address(text: str, flag: str) -> Address:
    """An IP address or a name, and a port. Raises ConfigError.

    >>> parse_address("[::1]:7300", "--join")
    Address(host='::1', port=7300)
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or bool(match[1]) != bool(match[3]) or int(match[4]) > 65535:
        raise ConfigError(f"{flag} must be such as 10.0.0.1:7300, not {text!r}")
    return Address(match[2], int(match[4]))
