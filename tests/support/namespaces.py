"""Hosts as network namespaces: a bridge in this one, and a pair of virtual links to each."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

_PREFIX = "10.77"


def may_make_hosts() -> None:
    """Skips where this user or machine can't: a container's root may not be allowed to."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2)")
    name = f"mi-{uuid.uuid4().hex[:6]}-may"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except AssertionError as error:
        pytest.skip(f"only root can make network namespaces, and not every root: {error}")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass(frozen=True)
class NetHost:
    """One of the hosts. address: its own. command: what runs a command there."""

    name: str
    address: str
    link: str

    @property
    def command(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def unplug(self) -> None:
        """From now on nothing reaches it, and nobody is told."""
        ip("link", "set", self.link, "down")

    def plug(self) -> None:
        ip("link", "set", self.link, "up")


@dataclass(frozen=True)
class Network:
    """address: of this namespace."""

    address: str
    hosts: tuple[NetHost, ...]


@contextmanager
def network(count: int) -> Iterator[Network]:
    """So many hosts, each of which reaches this one and the others."""
    tag = uuid.uuid4().hex[:6]
    subnet = f"{_PREFIX}.{os.getpid() % 250}"
    hosts = tuple(
        NetHost(f"mi-{tag}-{n}", f"{subnet}.{n + 2}", f"mi{tag}{n}") for n in range(count)
    )
    bridge = f"mi{tag}b"
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for host in hosts:
            _add(host, bridge)
        yield Network(f"{subnet}.1", hosts)
    finally:
        for host in hosts:
            with suppress(AssertionError):  # it wasn't made
                ip("netns", "del", host.name)
        with suppress(AssertionError):
            ip("link", "del", bridge)


def _add(host: NetHost, bridge: str) -> None:
    ip("netns", "add", host.name)
    ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    ip("link", "set", host.link, "master", bridge, "up")
    for words in (
        ("address", "add", f"{host.address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
    ):
        ip("-n", host.name, *words)
