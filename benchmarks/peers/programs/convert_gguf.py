"""llama.cpp's own converter, with its question about the tokenizer answered.

    python convert_gguf.py SOURCES MODEL --outtype bf16 --outfile FILE

It knows a pre-tokenizer by a hash of what it makes of a text, and refuses what it doesn't know;
this checkpoint's tokenizer is home-made.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    sources = Path(sys.argv.pop(1))
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"
    sys.argv[0] = str(sources / "convert_hf_to_gguf.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
