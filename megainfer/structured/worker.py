"""A process that tries out grammars, and dies of one that costs too much.

    python -m megainfer.structured.worker FOLDER VOCAB_SIZE EOS_TOKEN_ID...

Frames on both pipes: the length in 4 bytes, little-endian, then msgpack. In: a Grammar. Out: why
it can't be used, or nil. The first frame out says so of every grammar of this model.
"""

import resource
import signal
import sys
from pathlib import Path

import msgspec

from megainfer.errors import RequestError
from megainfer.structured.compiler import GrammarCompiler
from megainfer.structured.grammar import Grammar

CPU_SECONDS = 2.0  # for one grammar
MEMORY_BYTES = 4 * 2**30  # of the process
LENGTH_BYTES = 4


def main() -> None:
    """Until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for those who can tell why they end
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    folder, vocab_size, *ends = sys.argv[1:]
    try:
        compiler = GrammarCompiler(Path(folder), int(vocab_size), [int(end) for end in ends])
    except RequestError as error:
        _write(str(error))
        return
    _write(None)
    while (frame := _read()) is not None:
        _write(_judge(compiler, msgspec.msgpack.decode(frame, type=Grammar)))


def _judge(compiler: GrammarCompiler, grammar: Grammar) -> str | None:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
    try:
        compiler.compile(grammar)
    except RequestError as error:
        return str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def _read() -> bytes | None:
    length = sys.stdin.buffer.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    return sys.stdin.buffer.read(int.from_bytes(length, "little"))


def _write(reason: str | None) -> None:
    frame = msgspec.msgpack.encode(reason)
    sys.stdout.buffer.write(len(frame).to_bytes(LENGTH_BYTES, "little") + frame)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
