"""Steps that are computed as a device has recorded them, and beside that without."""

from megainfer.attention_node.graphs import Bucket
from megainfer.compute.batch import ChunkInput
from megainfer.device import MemoryUse
from tests.support.fake_device import FakeDevice
from tests.support.node_pair import blocks_of

FAMILIES = [
    ("qwen2_moe", "dense_between"),  # dense layers, shared experts
    ("deepseek_v3", "groups"),  # latent attention
    ("gpt_oss", "alternating"),  # sinks, windows, biases
]
BUCKETS = (Bucket(2, 32), Bucket(2, 96), Bucket(4, 96))
PROMPTS = [list(range(3, 40)), [7, 7, 150, 9], [20], [60, 61, 62]]


class FullDevice(FakeDevice):
    """Of whose memory every look finds a KiB more taken."""

    held = 0

    def memory(self) -> MemoryUse:  # type: ignore[override]  # the host has no such thing
        self.held += 1024
        return MemoryUse(self.held, 0, 0)


def prompt(sequence: int) -> ChunkInput:
    return ChunkInput(PROMPTS[sequence], 0, blocks_of(sequence), True, sequence)


def token(sequence: int, number: int) -> ChunkInput:
    start = len(PROMPTS[sequence]) + number
    return ChunkInput([90 + 7 * sequence + number], start, blocks_of(sequence), True, sequence)


STEPS = [
    ([prompt(0), prompt(1)], [prompt(2), prompt(3)]),
    ([token(0, 0), token(1, 0)], [token(2, 0), token(3, 0)]),
    ([token(0, 1), token(1, 1), token(2, 1)], [token(3, 1)]),
    ([token(1, 2)], [token(0, 2), token(2, 2), token(3, 2)]),
    ([token(3, 3), token(2, 3)], [token(1, 3)], [token(0, 3)]),  # two in the same bucket
]
