"""Shapes of models under names of their own, so that one can be planned for without its folder.

They are those of MegaScale-Infer's evaluation (arXiv 2504.02263). Of `scaled-moe` the paper gives
48 layers, a hidden size of 8192, 32 experts and top-4, 317 billion parameters in all; experts of
8192, 64 heads of 128 and 8 heads for keys are ours: they add up to 317 billion.
"""

from pathlib import Path

_HERE = Path(__file__).parent
SHAPES = tuple(sorted(path.parent.name for path in _HERE.glob("*/config.json")))


def named_shape(name: str) -> Path | None:
    """The folder with this shape's config.json; None for a name that is no shape's.

    >>> named_shape("owner/model") is None, SHAPES
    (True, ('dbrx', 'mixtral-8x22b', 'scaled-moe'))
    """
    return _HERE / name if name in SHAPES else None
