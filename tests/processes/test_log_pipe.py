"""What a node writes is read line by line by whoever has forked it."""

import os
import select
import subprocess

from megainfer.agent.log_pipe import LogPipe

SECONDS = 10.0


def test_a_line_is_told_once_it_is_whole_or_its_writer_is_gone() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipe = LogPipe()
    with pipe:
        node = subprocess.Popen(
            ["sh", "-c", "echo one; printf t >&2; read word; echo wo; printf three"],
            stdin=subprocess.PIPE,
        )
    told: list[str] = []
    while told != ["one"]:
        assert select.select([pipe], [], [], SECONDS)[0], told
        told += pipe.lines()
    assert node.stdin is not None
    node.stdin.write(b"on\n")
    node.stdin.close()
    node.wait()
    assert pipe.lines() == ["two"]
    assert pipe.lines() == ["three"]
    pipe.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_line_without_end_is_cut() -> None:
    pipe = LogPipe()
    with pipe:
        node = subprocess.Popen(["sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x"])
    told: list[str] = []
    while sum(map(len, told)) < 200_000:
        assert select.select([pipe], [], [], SECONDS)[0], told
        told += pipe.lines()
    node.wait()
    assert max(map(len, told)) < 150_000
    pipe.close()
