"""Who may import whom: the rules that keep the roles separable and the front end light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "fastapi", "zmq", "tokenizers", "safetensors", "transformers"}

FORBIDDEN = {
    "megainfer/attention_node": ["megainfer.expert_node"],
    "megainfer/expert_node": ["megainfer.attention_node"],
    "megainfer/m2n": ["megainfer.attention_node", "megainfer.expert_node"],
    "megainfer/pipeline.py": ["megainfer.attention_node", "megainfer.expert_node", "torch"],
    "megainfer/models": ["torch", "megainfer.attention_node", "megainfer.expert_node"],
    "megainfer/topology.py": ["torch"],
    "megainfer/bench": ["torch", "megainfer.llm", "megainfer.commands"],
    "megainfer/simulator": ["torch"],
    "megainfer/expert_node/gather.py": ["torch"],
    "megainfer/attention_node/scheduler.py": ["torch"],
    "megainfer/attention_node/block_manager.py": ["torch"],
    "server": ["torch", "transformers"],
}


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_no_forbidden_import(place: str) -> None:
    root = ROOT / place
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    assert files
    for path in files:
        for name in imported_by(path):
            for forbidden in FORBIDDEN[place]:
                assert not f"{name}.".startswith(f"{forbidden}."), (
                    f"{path.relative_to(ROOT)} imports {name}"
                )


def loaded_modules(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_is_cheap() -> None:
    assert not HEAVY & loaded_modules("import megainfer")


def test_the_whole_server_runs_without_torch() -> None:
    own = "megainfer.frontend.engine_client, megainfer.text.tokenizer"
    code = f"import server.app, server.process, {own}"
    assert "torch" not in loaded_modules(code)
