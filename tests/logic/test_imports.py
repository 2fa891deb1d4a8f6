"""Who may import whom: no package imports one above it, and what must stay light stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up. A room imports itself and those before it, in its functions too and for types.
FLOORS = (
    *("errors", "config", "native", "instruments", "topology", "small_file", "sharing"),
    "tls",
    *("gguf", "models", "helper_frames", "helper_process"),
    *("text", "structured", "sampling", "messages", "pipeline", "gather"),
    *("device", "m2n", "ranks", "checkpoint", "compute", "memory"),
    *("simulator", "planner", "frontend", "launch", "weight_group"),
    *("attention_node", "expert_node", "colocated", "hosts", "supervise", "agent"),
    *("console", "model_folder", "local_engine", "llm", "async_llm", "bench", "calibration"),
    *("launchers", "rl"),
)
SERVER_FLOORS = (
    *("parsing", "history", "http", "openai", "narration", "anthropic", "responses", "document"),
    *("operate", "page", "other_apis", "routes", "app", "main", "process"),
)
ORDER = (
    *(f"megainfer.{room}" for room in FLOORS),
    *(f"server.{room}" for room in SERVER_FLOORS),
    *("megainfer.commands", "megainfer.cli", "megainfer.__main__"),
)
# Neither imports the other, whichever comes first.
STRANGERS = (
    ("megainfer.attention_node", "megainfer.expert_node"),
    ("server.anthropic", "server.responses"),
)
# Only what these hold may be loaded with them.
TORCHLESS = (
    *("server", "megainfer/models", "megainfer/bench", "megainfer/simulator", "megainfer/planner"),
    "megainfer/gguf",
    *("megainfer/memory.py", "megainfer/gather", "megainfer/pipeline.py", "megainfer/topology"),
    *("megainfer/attention_node/scheduling", "megainfer/rl/advantages", "megainfer/rl/samples"),
    *("megainfer/rl/rewards", "megainfer/rl/data", "megainfer/rl/simulation"),
)
FORKS = {"fork", "forkpty", "ProcessPoolExecutor"}
HEAVY = {"torch", "numpy", "fastapi", "zmq", "tokenizers", "safetensors", "transformers", "msgspec"}


def module_files() -> Mapping[str, Path]:
    """Dotted name -> file of every module of the product."""
    paths = (path for top in ("megainfer", "server") for path in (ROOT / top).rglob("*.py"))
    return {_dotted(path): path for path in paths}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = module_files()


@cache
def imported_by(path: Path) -> Sequence[str]:
    """The modules that it names in imports, wherever these stand."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def arrows() -> Iterator[tuple[str, str]]:
    """(module, another module of the product that it imports), between different rooms."""
    for module, path in MODULES.items():
        for imported in imported_by(path):
            if imported in MODULES and room_of(imported) != room_of(module):
                yield module, imported


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module) for module in MODULES} - {"megainfer", "server"}
    assert rooms == set(ORDER)


def test_no_package_imports_one_above_it() -> None:
    floor = {room: height for height, room in enumerate(ORDER)}
    # The packages themselves hold a version, which anybody may ask for, and stand above all.
    climbing = [
        f"{module} imports {imported}"
        for module, imported in arrows()
        if room_of(imported) in floor
        and floor[room_of(imported)] > floor.get(room_of(module), len(ORDER))
    ]
    assert climbing == []


@pytest.mark.parametrize("pair", STRANGERS, ids="-".join)
def test_strangers_do_not_know_each_other(pair: tuple[str, str]) -> None:
    rooms = {(room_of(module), room_of(imported)) for module, imported in arrows()}
    assert not {pair, pair[::-1]} & rooms


@pytest.mark.parametrize("place", TORCHLESS)
def test_what_decides_has_no_torch(place: str) -> None:
    root = ROOT / place
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    assert files
    heavy = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_by(path)
        if name.partition(".")[0] in ("torch", "transformers")
    ]
    assert heavy == []


def test_one_place_forks() -> None:
    """It refuses where forking isn't safe; others would not."""
    forking = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in FORKS)
        or (isinstance(node, ast.ImportFrom) and FORKS & {alias.name for alias in node.names})
        or (isinstance(node, ast.Constant) and node.value in FORKS)
    }
    assert forking == {"megainfer.supervise.child"}
    starting = [
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == "multiprocessing" for name in imported_by(path))
    ]
    assert starting == []


def test_only_a_nodes_device_initialises_cuda() -> None:
    """Whoever forks nodes must not; and finds GPUs without."""
    allowed = {"megainfer.device.cuda", "megainfer.m2n.ipc"}
    touching = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda."))
        or (isinstance(node, ast.ImportFrom) and node.module == "torch" and _names_cuda(node))
    }
    others = {m for m in touching if not any(m.startswith(name) for name in allowed)}
    assert others == {"megainfer.supervise.child"}, "which asks whether it is, and no more"
    child = MODULES["megainfer.supervise.child"].read_text()
    assert child.count("torch.cuda.") == child.count("torch.cuda.is_initialized()") == 1
    opening = {
        module for module, path in MODULES.items() if "megainfer.device.cuda" in imported_by(path)
    }
    assert opening == {"megainfer.compute.selection"}


def _names_cuda(node: ast.ImportFrom) -> bool:
    return any(alias.name == "cuda" for alias in node.names)


def test_kernels_alone_know_triton() -> None:
    """So that the rest is there where no GPU and no Triton is."""
    knowing = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == "triton" for name in imported_by(path))
    }
    assert knowing
    assert all(module.startswith("megainfer.compute.gpu.kernels.") for module in knowing)


def test_no_room_is_crowded() -> None:
    folders = {path.parent for path in MODULES.values()}
    counts = {
        str(folder.relative_to(ROOT)): len(list(folder.glob("*.py")))
        for folder in folders
        if folder.relative_to(ROOT).parts != ("megainfer", "models", "families")
        and folder.name != "commands"
    }
    assert {folder: count for folder, count in counts.items() if count > 20} == {}


def loaded_modules(code: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_or_its_pipeline_is_cheap() -> None:
    assert not HEAVY & loaded_modules("import megainfer, megainfer.pipeline, megainfer.gather")


def test_the_command_line_loads_nothing_that_starts_threads() -> None:
    """`megainfer serve` forks: numpy's BLAS is told before it is loaded (`load_libraries`)."""
    assert not {"torch", "numpy"} & loaded_modules("import megainfer.cli, megainfer.commands.serve")


def test_the_whole_server_runs_without_torch() -> None:
    own = "megainfer.frontend.engine_client, megainfer.text.tokenizer"
    code = f"import server.app, server.process, {own}"
    assert "torch" not in loaded_modules(code)


def test_no_test_imports_another() -> None:
    """What two of them share stands in tests/support, or beside them under a name of its own."""
    reaching = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in imported_by(path)
        if name.startswith("tests.") and ".test_" in name
    ]
    assert reaching == []
