"""Who takes part, and with which command, offline or as a server."""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import megainfer
from peers import llamacpp, vllm
from peers.environments import PEERS, python_of

BENCHMARKS = Path(__file__).parent.parent
PROGRAMS = BENCHMARKS / "peers" / "programs"
PACKAGE = Path(megainfer.__file__).parent
PRECISIONS = "f32", "bf16", "int8", "q4"
"""From the highest to the lowest. int8 of llama.cpp is Q8_0, q4 Q4_0 and Q4_K_M; the others have
nothing like them."""
SERVED_NAME = "model"
"""What every server calls the model."""
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Entrant:
    """A name for the tables, a command, and the variables it needs.

    port: of a server on this machine; None for a program that speaks on its standard streams.
    """

    name: str
    precision: str
    ours: bool
    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None


@dataclass(frozen=True)
class Work:
    """What all of them are to be ready for.

    model: a checkpoint's folder. text_model: the same with a tokenizer, for servers. tokens: of
    prompt and answer together.
    """

    model: Path
    text_model: Path
    sequences: int
    tokens: int
    http: bool

    @property
    def cores(self) -> list[int]:
        return sorted(os.sched_getaffinity(0))


def own(work: Work, name: str, precision: str, options: Mapping[str, Any]) -> Entrant:
    """MegaInfer with these options of `LLM`."""
    options = {
        "max_model_len": work.tokens,
        "max_num_seqs": work.sequences,
        **options,
    }
    variables = {"PYTHONPATH": os.pathsep.join(map(str, (PACKAGE.parent, BENCHMARKS)))}
    if work.http:
        port = free_port()
        flags = [part for option in options.items() for part in _flag(*option)]
        command = [sys.executable, "-m", "megainfer", "serve", str(work.text_model)]
        arguments = (*command, "--port", str(port), "--served-model-name", SERVED_NAME, *flags)
        return Entrant(name, precision, True, arguments, variables, port)
    order = {"model": str(work.model), "options": {"prefix_cache": False, **options}}
    arguments = _program(Path(sys.executable), "run_megainfer.py", order)
    return Entrant(name, precision, True, arguments, variables)


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, str(value)]


def others(work: Work, folder: Path, names: Sequence[str], precision: str) -> Iterator[Entrant]:
    """The peers under `folder` at this precision, those that have it.

    Raises PreparationError where one hasn't been prepared.
    """
    kinds = {"vllm": _vllm, "llamacpp": _llamacpp, "transformers": _transformers}
    assert set(kinds) == set(PEERS)
    for name in names:
        yield from kinds[name](work, folder, precision)


def _vllm(work: Work, folder: Path, precision: str) -> Iterator[Entrant]:
    if precision not in DTYPES:
        return
    make = _vllm_server if work.http else _vllm_program
    for eager in (True, False):
        yield make(work, folder, precision, eager)


def _vllm_server(work: Work, folder: Path, precision: str, eager: bool) -> Entrant:
    port = free_port()
    module = "vllm.entrypoints.openai.api_server"
    command = [str(python_of(folder, "vllm")), "-m", module, "--model", str(work.text_model)]
    options = vllm.serve_options(DTYPES[precision], eager, work.sequences, work.tokens)
    arguments = (*command, *_listen(port), "--served-model-name", SERVED_NAME, *options)
    variables = vllm.variables(folder, work.cores, compiled=not eager)
    return Entrant(_vllm_name(eager), precision, False, arguments, variables, port)


def _vllm_program(work: Work, folder: Path, precision: str, eager: bool) -> Entrant:
    order = {
        "model": str(work.model),
        "dtype": DTYPES[precision],
        "eager": eager,
        "sequences": work.sequences,
        "tokens": work.tokens,
    }
    arguments = _program(python_of(folder, "vllm"), "run_vllm.py", order)
    variables = vllm.variables(folder, work.cores, compiled=not eager)
    return Entrant(_vllm_name(eager), precision, False, arguments, variables)


def _vllm_name(eager: bool) -> str:
    return "vllm eager" if eager else "vllm compiled"


def _llamacpp(work: Work, folder: Path, precision: str) -> Iterator[Entrant]:
    for outtype in llamacpp.OUTTYPES[precision]:
        yield _llamacpp_of(work, folder, precision, outtype)


def _llamacpp_of(work: Work, folder: Path, precision: str, outtype: str) -> Entrant:
    model = llamacpp.converted(folder, work.text_model, outtype)
    name = f"llama.cpp {outtype}"
    threads = len(work.cores)
    if work.http:
        port = free_port()
        options = llamacpp.serve_options(threads, work.sequences, work.tokens)
        server = str(llamacpp.tool(folder, "llama-server"))
        arguments = (server, "-m", str(model), *_listen(port), "--alias", SERVED_NAME, *options)
        return Entrant(name, precision, False, arguments, port=port)
    bench = llamacpp.tool(folder, "llama-batched-bench")
    order = {"bench": str(bench), "model": str(model), "threads": threads}
    arguments = _program(Path(sys.executable), "run_llamacpp.py", order)
    return Entrant(name, precision, False, arguments)


def _transformers(work: Work, folder: Path, precision: str) -> Iterator[Entrant]:
    """Offline only."""
    if precision not in DTYPES or work.http:
        return
    threads = len(work.cores)
    order = {"model": str(work.model), "dtype": DTYPES[precision], "threads": threads}
    arguments = _program(python_of(folder, "transformers"), "run_transformers.py", order)
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    yield Entrant("transformers", precision, False, arguments, variables)


def _program(python: Path, program: str, order: Mapping[str, Any]) -> tuple[str, ...]:
    return str(python), str(PROGRAMS / program), json.dumps(order)


def _listen(port: int) -> tuple[str, ...]:
    return "--host", "127.0.0.1", "--port", str(port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
