"""One shape of a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One shape of a family: settings over the family's base, and an edit of config.json."""

    settings: Mapping[str, Any]
    rewrite: Callable[[Json], Json] = lambda config: config


def old_rope(config: Json) -> Json:
    """config.json as transformers 4 wrote it: rope_theta beside rope_scaling, torch_dtype."""
    parameters = config.pop("rope_parameters")
    return {
        **config,
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": config.pop("dtype"),
    }
