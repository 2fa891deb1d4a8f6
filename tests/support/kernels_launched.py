"""Which kernels there are for GPUs: those that their modules launch."""

import ast
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "megainfer" / "compute" / "gpu" / "kernels"
LAUNCHERS = ("launch", "launch_through")


def kernels_launched() -> list[str]:
    """Their names, as they are defined; no two kernels may have one."""
    names = [name for path in sorted(FOLDER.rglob("*.py")) for name in _of_module(path)]
    assert len(names) > 20, "launches are looked for where there are none"
    return names


def _of_module(path: Path) -> set[str]:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {
        call.args[1].id
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in LAUNCHERS
        if len(call.args) > 1 and isinstance(call.args[1], ast.Name)
    }
