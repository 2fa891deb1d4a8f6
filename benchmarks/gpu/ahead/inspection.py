"""What a compiled kernel needs of a GPU, and what it is made of."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton.backends.nvidia as nvidia

TOOLS = Path(nvidia.__file__).parent / "bin"
PRODUCTS = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}
"""Instructions that multiply matrices, as PTX has them; the newest first."""


@dataclass(frozen=True, slots=True)
class Resources:
    """registers: of a thread. spills: bytes a thread stores to memory for want of registers.
    shared: bytes of a block. product: a key of PRODUCTS, or empty. loops: whether it multiplies
    tiles in a loop. pipelined: whether tiles are loaded while others are used.
    """

    registers: int
    spills: int
    shared: int
    warps: int
    product: str
    loops: bool
    pipelined: bool


def resources_of(compiled: Any) -> Resources:
    """Of what `JITFunction.run` returns; the assembler's own tools tell."""
    ptx = compiled.asm["ptx"]
    registers, stack = _usage(compiled.asm["cubin"])
    return Resources(
        registers=registers,
        spills=_spills(ptx) if stack else 0,
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        product=next((name for name, word in PRODUCTS.items() if word in ptx), ""),
        loops=multiplies_in_a_loop(compiled.asm["ttir"]),
        pipelined="cp.async" in ptx,
    )


def multiplies_in_a_loop(ttir: str) -> bool:
    """Whether a loop of Triton's intermediate code has a product of matrices in it."""
    loops, depth = list[int](), 0  # how deep each loop's body lies that is open
    for line in ttir.splitlines():
        code = line.partition(" loc(")[0]
        if loops and "tt.dot" in code:
            return True
        if re.search(r"\bscf\.(for|while)\b", code):
            loops.append(depth)
        depth += code.count("{") - code.count("}")
        if loops and depth <= loops[-1]:
            loops.pop()
    return False


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack."""
    told = _with_file(cubin, ".cubin", partial(_told, "cuobjdump", "--dump-resource-usage"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])


def _spills(ptx: str) -> int:
    """Bytes; a stack may also hold what isn't spilt."""
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert target, "PTX says for what it is"
    tool = "ptxas-blackwell" if target[1].startswith("sm_10") else "ptxas"
    compiling = partial(_told, tool, "-v", f"--gpu-name={target[1]}", "--output-file=/dev/null")
    found = re.search(r"(\d+) bytes spill stores", _with_file(ptx.encode(), ".ptx", compiling))
    assert found, "the assembler tells what it spills"
    return int(found[1])


def _with_file(content: bytes, suffix: str, ask: Callable[[str], str]) -> str:
    with NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        return ask(file.name)


def _told(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / tool, *arguments],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    ).stdout
