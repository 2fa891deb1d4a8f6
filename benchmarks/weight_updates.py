"""How long an instance takes to change over to other weights, from a process of the same host.

    python benchmarks/weight_updates.py
    python benchmarks/weight_updates.py --model 1B --nodes 1x1 2x2 --streams 0 8 --rounds 5

A checkpoint of random bfloat16 weights is served; another of the same shape lies in memory that
processes share (`megainfer.checkpoint.shared.shared_weights`), as a trainer gives it. A round is
one `LLM.update_weights`, from the call to its return: every node has loaded its part and computes
with it. streams: answers that are being generated meanwhile, endlessly; pauses: whether they stand
still for a round, by `LLM.pause`'s mode, which isn't counted (`none`: they go on). Columns: the
median of the rounds, the least and the most, in seconds; and the file's gigabytes a second, by the
median.
"""

import argparse
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from checkpoints import SHAPES, ensure_checkpoint
from measures import hardware
from rich.console import Console
from safetensors.torch import load_file

from megainfer import LLM, SamplingParams
from megainfer.checkpoint.shared import shared_weights

GB = 1e9
PROMPT_TOKENS = 16
ANSWER_TOKENS = 64
"""A pause that waits for answers waits for so many of each."""
COLUMNS = ("nodes", "streams", "pause", "median s", "least", "most", "GB/s")
PAUSES = ("none", "keep", "wait", "abort")


def main() -> None:
    options = _options()
    console = Console(highlight=False)
    console.print(hardware())
    folder = ensure_checkpoint(options.model, options.folder)
    tensors = {name: -tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    console.print(f"{options.model}, {size / GB:.2f} GB of bfloat16, {options.rounds} rounds")
    console.print(*(f"{name:>8}" for name in COLUMNS))
    for nodes, streams, pause in product(options.nodes, options.streams, options.pauses):
        seconds = _seconds(folder, nodes, streams, pause, tensors, options.rounds)
        told = [median(seconds), min(seconds), max(seconds), size / GB / median(seconds)]
        row = (nodes, str(streams), pause, *(f"{number:.2f}" for number in told))
        console.print(*(f"{cell:>8}" for cell in row))


def _seconds(
    folder: Path,
    nodes: str,
    streams: int,
    pause: str,
    tensors: Mapping[str, torch.Tensor],
    rounds: int,
) -> list[float]:
    attention, experts = map(int, nodes.split("x"))
    found = []
    with (
        LLM(str(folder), attn_gpus=attention, ffn_gpus=experts, dtype="bfloat16") as llm,
        _answering(llm, streams),
        shared_weights(tensors) as path,
    ):
        for _ in range(rounds + 1):
            if pause != "none":
                llm.pause(pause)
            start = perf_counter()
            llm.update_weights(path)
            found.append(perf_counter() - start)
            if pause != "none":
                llm.resume()
    return found[1:]  # the first finds pages that nobody has touched


@contextmanager
def _answering(llm: LLM, streams: int) -> Iterator[None]:
    """So many answers are on their way for as long as this lasts."""
    ended = threading.Event()

    def answer() -> None:
        params = SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True)
        while not ended.is_set():
            llm.generate([[1] * PROMPT_TOKENS] * streams, params, progress=False)

    thread = threading.Thread(target=answer)
    if streams:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if streams:
            thread.join()


def _options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(SHAPES), default="1B")
    parser.add_argument("--nodes", nargs="+", default=["1x1"], metavar="MxN")
    parser.add_argument("--streams", nargs="+", type=int, default=[0, 8])
    parser.add_argument("--pauses", nargs="+", default=["none"], choices=PAUSES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
