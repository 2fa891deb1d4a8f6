"""A process that tries out grammars, and dies of one that costs too much.

    python -m megainfer.structured.worker FOLDER VOCAB_SIZE EOS_TOKEN_ID...

Frames on both pipes: the length in 4 bytes, little-endian, then msgpack. In: a Grammar. Out: a
Verdict. The first one out is of every grammar of this model.
"""

import resource
import signal
import sys
from pathlib import Path

import msgspec

from megainfer.errors import RequestError
from megainfer.structured.allocated import allocated_bytes
from megainfer.structured.compiler import GrammarCompiler
from megainfer.structured.grammar import MAX_COMPILED_BYTES, Grammar, Verdict

CPU_SECONDS = 2.0  # for one grammar
MEMORY_BYTES = 2**30  # of the process
LENGTH_BYTES = 4


def main() -> None:
    """Until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for those who can tell why they end
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    folder, vocab_size, *ends = sys.argv[1:]
    try:
        ids = [int(end) for end in ends]
        compiler = GrammarCompiler(Path(folder), int(vocab_size), ids, memory=0)
    except RequestError as error:
        _write(Verdict(str(error)))
        return
    _write(Verdict(None))
    while (frame := _read()) is not None:
        _write(_judge(compiler, msgspec.msgpack.decode(frame, type=Grammar)))


def _judge(compiler: GrammarCompiler, grammar: Grammar) -> Verdict:
    before = allocated_bytes()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
    try:
        matcher = compiler.build(grammar)
    except RequestError as error:
        return Verdict(str(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    cost = max(allocated_bytes() - before, len(grammar.text))
    del matcher
    if cost > MAX_COMPILED_BYTES:
        return Verdict(
            f"this {grammar.kind} takes {cost} bytes when it is compiled; at most "
            f"{MAX_COMPILED_BYTES} may be: simplify it"
        )
    return Verdict(None, cost)


def _read() -> bytes | None:
    length = sys.stdin.buffer.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    return sys.stdin.buffer.read(int.from_bytes(length, "little"))


def _write(verdict: Verdict) -> None:
    frame = msgspec.msgpack.encode(verdict)
    sys.stdout.buffer.write(len(frame).to_bytes(LENGTH_BYTES, "little") + frame)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
