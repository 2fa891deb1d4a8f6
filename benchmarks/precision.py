"""What formats of experts' weights and of the KV cache cost: how far a model's logits move.

    python benchmarks/precision.py
    python benchmarks/precision.py --text FILE --tokens 4096 --experts int4 --cache fp8
    python benchmarks/precision.py --llamacpp q8_0 q4_0 q4_k_m mxfp4_moe

One text goes through the model in every combination, attention in bfloat16, and once in float32,
which the others are compared with at every position:

    perplexity  exp of the mean negative log-likelihood of the text's own next tokens
    KL          nats a position, from float32's distribution to this one
    greedy      positions at which the likeliest token is float32's
    error       RMS of the logits' difference over RMS of float32's, each position's mean taken out
    B/token     of the KV cache, all layers

--llamacpp: the same of llama.cpp's formats, with keys and values in float16, as it has them by
itself; nearly all matrices are in the format, attention's too. `prepare_peers.py` makes it.

Without --model it is the demo model, without --text this repository's documents, in the order of
their names.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from measures import hardware
from peers import llamacpp
from peers.environments import PreparationError
from prepare_peers import DEFAULT_FOLDER
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.colocated.model import ColocatedModel
from megainfer.compute.batch import ChunkInput, build_batch
from megainfer.compute.selection import Precision, open_backend
from megainfer.config import BLOCK_SIZE
from megainfer.expert_node.experts import ExpertModel
from megainfer.instruments.stage_clock import StageClock
from megainfer.memory import kv_block_bytes
from megainfer.model_folder.demo.model import ensure_demo_model
from megainfer.models.registry import load_spec
from megainfer.text.tokenizer import load_tokenizer
from megainfer.topology import contiguous_placement

DOCUMENTS = Path(__file__).parent.parent / "docs"
EXPERTS = ("bfloat16", "int8", "fp8", "mxfp4", "int4", "int4_128")
CACHES = ("bfloat16", "int8", "fp8")
CHUNK = 256
"""Tokens of a step."""


@dataclass(frozen=True)
class Result:
    """One combination; see this file's head."""

    experts: str
    cache: str
    perplexity: float
    kl: float
    greedy: float
    error: float
    cache_bytes: float


Chunks = Iterable[Tensor]
"""Logits of a text's positions, float32 [T, V], chunk after chunk."""


class Formats:
    """A checkpoint in every combination of formats; what was loaded last of each half stays."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self._threads = folder, threads
        self.spec = load_spec(folder)
        self._placement = contiguous_placement(self.spec.num_experts, 1, self.spec.moe_layers)
        self._attention = cache(self._load_attention)
        self._experts = cache(self._load_experts)

    def chunks(self, precision: Precision, tokens: Sequence[int]) -> Iterator[Tensor]:
        """See `Chunks`."""
        attention = self._attention(precision.dtype, precision.cache_dtype)
        blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
        kv, clock = attention.new_cache(len(blocks), 1), StageClock()
        experts = self._experts(precision.dtype, precision.expert_dtype)
        model = ColocatedModel(attention, experts, kv, clock)
        for first in range(0, len(tokens), CHUNK):
            part = list(tokens[first : first + CHUNK])
            batch = build_batch([ChunkInput(part, first, blocks, samples=False, state_slot=0)])
            x = model.embed(batch)
            model.advance(x, 0, batch, kv, clock.of(0))
            yield model.logits(x, torch.arange(len(x)))

    def _load_attention(self, dtype: str, cache_dtype: str) -> AttentionModel:
        backend = open_backend("auto", Precision(dtype, cache=cache_dtype), self._threads)
        with WeightReader(self.folder) as reader:
            return AttentionModel(self.spec, reader, self._placement, backend)

    def _load_experts(self, dtype: str, weights: str) -> ExpertModel:
        backend = open_backend("auto", Precision(dtype, weights), self._threads)
        with WeightReader(self.folder) as reader:
            return ExpertModel(self.spec, reader, self._placement, 0, backend)


@dataclass
class Sums:
    """Over positions, float64."""

    positions: int = 0
    likelihood: float = 0.0
    kl: float = 0.0
    same: int = 0
    difference: float = 0.0
    size: float = 0.0

    def add(self, logits: Tensor, exact: Tensor, following: Tensor) -> None:
        """logits, exact: float32 [T, V]. following: int64 [T], the text's own next tokens."""
        ours, wanted = logits.log_softmax(-1), exact.log_softmax(-1)
        self.positions += len(logits)
        self.likelihood += float(ours.gather(-1, following[:, None]).double().sum())
        self.kl += float((wanted.exp() * (wanted - ours)).double().sum())
        self.same += int((logits.argmax(-1) == exact.argmax(-1)).sum())
        centred = exact - exact.mean(-1, keepdim=True)
        moved = logits - logits.mean(-1, keepdim=True) - centred
        self.difference += float(moved.square().double().sum())
        self.size += float(centred.square().double().sum())


@dataclass(frozen=True)
class Text:
    """One, and float32's logits of it. tokens: one more than have logits."""

    tokens: list[int]
    exact: list[Tensor]

    def compared(self, chunks: Chunks) -> Sums:
        sums, following, first = Sums(), torch.tensor(self.tokens[1:]), 0
        for logits, exact in zip(chunks, self.exact, strict=True):
            sums.add(logits, exact, following[first : first + len(logits)])
            first += len(logits)
        return sums


def result_of(sums: Sums, experts: str, cache: str, cache_bytes: float) -> Result:
    return Result(
        experts=experts,
        cache=cache,
        perplexity=math.exp(-sums.likelihood / sums.positions),
        kl=sums.kl / sums.positions,
        greedy=sums.same / sums.positions,
        error=math.sqrt(sums.difference / sums.size),
        cache_bytes=cache_bytes,
    )


def measure(formats: Formats, precision: Precision, text: Text) -> Result:
    sums = text.compared(formats.chunks(precision, text.tokens[:-1]))
    block = kv_block_bytes(formats.spec, precision)
    return result_of(sums, precision.expert_dtype, precision.cache_dtype, block / BLOCK_SIZE)


def measure_llamacpp(
    formats: Formats, outtype: str, text: Text, peers: Path, threads: int
) -> Result:
    """Raises PreparationError where llama.cpp isn't there or doesn't know the model."""
    model = llamacpp.converted(peers, formats.folder, outtype)
    with tempfile.TemporaryDirectory() as folder:
        tokens, logits = Path(folder, "tokens.npy"), Path(folder, "logits.npy")
        np.save(tokens, np.array(text.tokens[:-1], np.int64))
        llamacpp.write_logits(peers, model, tokens, logits, CHUNK, threads)
        whole = torch.from_numpy(np.load(logits))
    halves = kv_block_bytes(formats.spec, Precision("bfloat16")) / BLOCK_SIZE
    name = f"llama.cpp {outtype.upper()}"
    return result_of(text.compared(torch.split(whole, CHUNK)), name, "float16", halves)


def read_tokens(folder: Path, text: Path | None, count: int) -> list[int]:
    """The first tokens of the text, one more than are computed."""
    files = [text] if text else sorted(DOCUMENTS.glob("*.md"))
    whole = "\n".join(file.read_text() for file in files)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise SystemExit(f"{folder} has no tokenizer; use another --model")
    tokens = tokenizer.encode(whole)
    if len(tokens) <= count:
        raise SystemExit(f"the text has {len(tokens)} tokens; use --tokens {len(tokens) - 1}")
    return tokens[: count + 1]


def table_of(results: Sequence[Result], title: str) -> Table:
    table = Table(title=title)
    for heading in ("experts", "KV cache"):
        table.add_column(heading)
    for heading in ("perplexity", "KL", "greedy", "error", "B/token"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.experts,
            r.cache,
            f"{r.perplexity:.3f}",
            f"{r.kl:.2e}",
            f"{r.greedy:.1%}",
            f"{r.error:.1e}",
            f"{r.cache_bytes:.0f}",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder; the demo model if left out")
    parser.add_argument("--text", type=Path, help="a file; this repository's documents if left out")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--experts", nargs="*", default=EXPERTS)
    parser.add_argument("--cache", nargs="*", default=CACHES)
    parser.add_argument("--llamacpp", nargs="+", default=(), metavar="FORMAT", help="and these")
    parser.add_argument("--peers", type=Path, default=DEFAULT_FOLDER, help="where it is")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    folder = options.model or ensure_demo_model()
    formats = Formats(folder, options.threads)
    tokens = read_tokens(folder, options.text, options.tokens)
    text = Text(tokens, list(formats.chunks(Precision(), tokens[:-1])))
    precisions = [Precision()] + [
        Precision("bfloat16", experts, cache=kept)
        for experts in options.experts
        for kept in options.cache
    ]
    results = [measure(formats, precision, text) for precision in precisions]
    try:
        results += [
            measure_llamacpp(formats, outtype, text, options.peers, options.threads)
            for outtype in options.llamacpp
        ]
    except PreparationError as error:
        raise SystemExit(str(error)) from None
    console = Console(width=110)
    console.print(hardware())
    console.print(table_of(results, f"{folder.name}, {options.tokens} tokens, beside float32"))
    if options.json:
        document = {"hardware": hardware(), "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
