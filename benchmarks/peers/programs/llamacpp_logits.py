"""Logits of llama.cpp at every position of a text, by the bindings of llama-cpp-python's sources.

    python llamacpp_logits.py SOURCES LIBRARIES MODEL TOKENS LOGITS CHUNK THREADS

TOKENS: a .npy of int64 [T]. LOGITS: a .npy to write, float32 [T, V]. CHUNK: tokens of a batch.
"""

import os
import sys

import numpy as np


def main() -> None:
    sources, libraries, model, tokens, logits, chunk, threads = sys.argv[1:]
    os.environ["LLAMA_CPP_LIB_PATH"] = libraries
    sys.path.insert(0, sources)
    from llama_cpp import Llama

    text = np.load(tokens).tolist()
    batch = {"n_batch": int(chunk), "n_ubatch": int(chunk), "n_ctx": len(text)}
    cores = {"n_threads": int(threads), "n_threads_batch": int(threads)}
    engine = Llama(model, logits_all=True, verbose=False, **batch, **cores)
    engine.eval(text)
    np.save(logits, engine.scores[: len(text)])


if __name__ == "__main__":
    main()
