"""`megainfer nodes`, `scale`, `drain` and `restart`: the nodes of a running server."""

from typing import Annotated, Any

import typer

from megainfer.commands.admin_client import DEFAULT_URL, ask

LOOK_SECONDS = 10.0
CHANGE_SECONDS = 3600.0
"""Nodes load their weights; the answer comes when all serve."""

Url = Annotated[str, typer.Option(help="Where the server is.")]
AdminKey = Annotated[
    str | None, typer.Option("--admin-key", help="Of the server's admin keys, one.")
]
NodeName = Annotated[
    str, typer.Argument(help="As `megainfer nodes` has it: expert-1, or 'expert node 1'.")
]

SCALE_EPILOG = """[bold]Examples[/bold]

  megainfer scale --attn 3 --ffn 2    so many nodes of each role from now on

  megainfer drain attention-0         do without this one; its requests go to others

  megainfer restart                   each node anew, one after the other
"""


def nodes(url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """List a running server's nodes: which serve, since when, how often they were restarted."""
    import msgspec
    from rich.console import Console
    from rich.table import Table

    report = msgspec.json.decode(ask("GET", url, "/admin/nodes", admin_key, LOOK_SECONDS))
    hosts = ["host"] * any("host" in node for node in report["nodes"])
    columns = ("node", *hosts, "ranks", "state", "restarts", "last beat", "reaches", "reason")
    table = Table(*columns, box=None, pad_edge=False)
    for node in report["nodes"]:
        beat = node["heartbeat_seconds"]
        table.add_row(
            f"{node['role']}-{node['node']}",
            *(node[name] for name in hosts),
            str(node["ranks"]),
            node["state"],
            str(node["restarts"]),
            "" if beat is None else f"{beat:.1f} s ago",
            _roads_text(node.get("roads", {})),
            node.get("reason", ""),
        )
    console = Console(highlight=False)
    console.print(f"{report['state']}, epoch {report['epoch']}")
    console.print(table)


def _roads_text(roads: dict[str, list[int]]) -> str:
    """Which expert nodes an attention node reaches over what.

    >>> _roads_text({"shm": [0], "dist": [1, 2]})
    'expert 0 by shm, expert 1,2 by dist'
    """
    told = (f"expert {','.join(map(str, nodes))} by {road}" for road, nodes in roads.items())
    return ", ".join(told)


def scale(
    attn: Annotated[int | None, typer.Option(help="Attention nodes from now on.")] = None,
    ffn: Annotated[int | None, typer.Option(help="Expert nodes from now on.")] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Serve with other numbers of nodes, while requests go on."""
    body = {name: count for name, count in (("attn", attn), ("ffn", ffn)) if count is not None}
    _change(url, "/admin/scale", admin_key, body)


def drain(node: NodeName, url: Url = DEFAULT_URL, admin_key: AdminKey = None) -> None:
    """Do without a node: its requests and experts go to others, then it ends."""
    _change(url, "/admin/drain", admin_key, {"node": node})


def restart(
    node: Annotated[
        str | None, typer.Argument(help="As `megainfer nodes` has it; all if left out.")
    ] = None,
    url: Url = DEFAULT_URL,
    admin_key: AdminKey = None,
) -> None:
    """Start a node anew, or all of them, one after the other, while requests go on."""
    _change(url, "/admin/restart", admin_key, {} if node is None else {"node": node})


def _change(url: str, path: str, admin_key: str | None, body: dict[str, Any]) -> None:
    import msgspec

    done = msgspec.json.decode(ask("POST", url, path, admin_key, CHANGE_SECONDS, body=body))
    print(
        f"attention nodes {done['attention']} and expert nodes {done['experts']} serve, "
        f"{done['seconds']:.2f} s later"
    )
