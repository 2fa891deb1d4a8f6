"""A process that tries out grammars, and dies of one that costs too much.

    python -m megainfer.structured.worker FOLDER VOCAB_SIZE EOS_TOKEN_ID...

Frames on both pipes are msgpack. In: a Grammar. Out: a Verdict; the first one is of every grammar
of this model.
"""

import resource
import sys
from pathlib import Path

import msgspec

from megainfer.errors import RequestError
from megainfer.helper_frames import answer, frames, set_alarm, set_bounds
from megainfer.structured.allocated import allocated_bytes
from megainfer.structured.compiler import GrammarCompiler
from megainfer.structured.grammar import (
    MAX_COMPILED_BYTES,
    MAX_STACK_BYTES,
    Grammar,
    Verdict,
)

CPU_SECONDS = 2.0  # for one grammar
MEMORY_BYTES = 2**30  # of the process


def main() -> None:
    """Until the other side closes the pipe."""
    set_bounds(MEMORY_BYTES)
    _bound_stack()
    folder, vocab_size, *ends = sys.argv[1:]
    try:
        ids = [int(end) for end in ends]
        compiler = GrammarCompiler(Path(folder), int(vocab_size), ids, memory=0)
    except RequestError as error:
        _write(Verdict(str(error)))
        return
    _write(Verdict(None))
    for frame in frames():
        _write(_judge(compiler, msgspec.msgpack.decode(frame, type=Grammar)))


def _bound_stack() -> None:
    """A node's thread has a multiple of it; without bound, all would be admitted that kills one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft > MAX_STACK_BYTES:
        resource.setrlimit(resource.RLIMIT_STACK, (MAX_STACK_BYTES, hard))


def _judge(compiler: GrammarCompiler, grammar: Grammar) -> Verdict:
    before = allocated_bytes()
    set_alarm(CPU_SECONDS)
    try:
        matcher = compiler.build(grammar)
    except RequestError as error:
        return Verdict(str(error))
    finally:
        set_alarm(0)
    cost = max(allocated_bytes() - before, len(grammar.text))
    del matcher
    if cost > MAX_COMPILED_BYTES:
        return Verdict(
            f"this {grammar.kind} takes {cost} bytes when it is compiled; at most "
            f"{MAX_COMPILED_BYTES} may be: simplify it"
        )
    return Verdict(None, cost)


def _write(verdict: Verdict) -> None:
    answer(msgspec.msgpack.encode(verdict))


if __name__ == "__main__":
    main()
