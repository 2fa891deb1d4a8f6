"""The driver of Ray: places an actor for each agent, and tells the supervisor of those that end.

    python -m megainfer.launchers.on_ray.driver PIPE

reads a `RayWish` and a `RayStart`, a line each, from standard input. What it places belongs to it:
when it ends, however that comes, Ray ends the actors.
"""

import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from megainfer.errors import MegaInferError, NodeDied
from megainfer.helper_frames import die_with
from megainfer.launchers.on_ray.actor import HostActor
from megainfer.launchers.on_ray.wish import RayStart, RayWish
from megainfer.launchers.words import Failed, Here, say

LOOK_SECONDS = 1.0


def name_of(agent: int) -> str:
    """Of a host: an actor that Ray starts again elsewhere has its name."""
    return f"ray-{agent}"


def drive(pipe: int, wish: RayWish, lines: Any) -> None:
    """To the end of all agents. lines: of standard input. Raises NodeDied, RayError."""
    try:
        ray.init(wish.address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason, *_ = str(error).strip().split("\n")
        raise NodeDied(
            f"there is no Ray cluster at --ray-address {wish.address} ({reason}); start one here "
            "by `ray start --head`, or name its address"
        ) from error
    say(pipe, Here(ray.util.get_node_ip_address()))
    if not (line := lines.readline()):
        return  # the supervisor has given up
    start = msgspec.json.decode(line, type=RayStart)
    group = _placed(wish)
    try:
        _watch(_started(wish, start, group))
    finally:
        ray.util.remove_placement_group(group)


def _placed(wish: RayWish) -> PlacementGroup:
    """A bundle for each agent. Raises NodeDied where there is no room in time."""
    bundles = [wish.resources] * wish.agents
    group = placement_group(bundles, strategy=wish.strategy)
    try:
        ray.get(group.ready(), timeout=wish.seconds)
    except GetTimeoutError:
        each = ", ".join(f"{name} {amount:g}" for name, amount in wish.resources.items())
        nodes = [node for node in ray.nodes() if node["Alive"]]
        there = "; ".join(f"{node['NodeManagerAddress']}: {_told(node)}" for node in nodes)
        raise NodeDied(
            f"Ray found no room within {wish.seconds:g} s for {wish.agents} agents "
            f"({wish.strategy}) with {each} each; its nodes have {there}"
        ) from None
    return group


def _told(node: dict[str, Any]) -> str:
    resources = node["Resources"]
    return ", ".join(f"{name} {resources.get(name, 0):g}" for name in ("CPU", "GPU", "memory"))


@dataclass(frozen=True, slots=True)
class _Host:
    """actor: Ray ends one that nobody holds any more."""

    name: str
    actor: Any


def _started(wish: RayWish, start: RayStart, group: PlacementGroup) -> dict[Any, _Host]:
    """Hosts by what tells their agents' ends."""
    remote = ray.remote(HostActor)
    ends = {}
    for agent in range(wish.agents):
        name = name_of(agent)
        actor = remote.options(
            name=f"megainfer-{name}-{group.id.hex()[:8]}",
            num_cpus=wish.resources.get("CPU", 0),
            num_gpus=wish.resources.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, agent),
            max_restarts=-1,
            max_task_retries=-1,
        ).remote()
        arguments = ["--join", start.join, "--name", name, *wish.arguments]
        ends[actor.run.remote(arguments, start.token)] = _Host(name, actor)
    return ends


def _watch(ends: dict[Any, _Host]) -> None:
    """Raises NodeDied for an agent that can't go on."""
    while ends:
        ended, _ = ray.wait(list(ends), num_returns=1, timeout=LOOK_SECONDS)
        for end in ended:
            name = ends.pop(end).name
            try:
                status, words = ray.get(end)
            except RayError as error:
                raise NodeDied(f"Ray has lost the actor of host {name}: {error}") from error
            if status:
                raise NodeDied(f"the agent of host {name} ended with status {status}: {words}")


def main(pipe: int) -> int:
    """The exit status."""
    lines = sys.stdin.buffer
    if not (line := lines.readline()):
        return 0
    wish = msgspec.json.decode(line, type=RayWish)
    die_with(wish.parent)
    try:
        drive(pipe, wish, lines)
    except (MegaInferError, RayError) as error:
        say(pipe, Failed(str(error)))
        return 1
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
