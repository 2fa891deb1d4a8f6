"""What generation_config.json says: the tokens that end a sequence, and sampling defaults."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megainfer.errors import ModelError, RequestError
from megainfer.sampling import SamplingParams

SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The model author's end tokens, and the sampling used where a request leaves it out.

    A sampling field is None where the author says nothing.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def load(cls, folder: Path) -> "GenerationDefaults":
        """Read generation_config.json; end tokens that it lacks come from config.json.

        Raises ModelError when a file is no JSON object or a value is out of range.
        """
        generation = read_json_object(folder / "generation_config.json")
        eos = generation.get("eos_token_id")
        if eos is None:
            eos = read_json_object(folder / "config.json").get("eos_token_id")
        sampling = {name: generation.get(name) for name in SAMPLING_FIELDS}
        _check(sampling, folder)
        return cls(_token_ids(eos, folder), **sampling)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _check(sampling: dict[str, Any], folder: Path) -> None:
    given = {name: value for name, value in sampling.items() if value is not None}
    try:
        SamplingParams(**given)
    except RequestError as error:
        raise ModelError(f"{folder / 'generation_config.json'}: {error}") from error


def _token_ids(value: Any, folder: Path) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(not isinstance(token, int) or isinstance(token, bool) for token in ids):
        raise ModelError(
            f"eos_token_id in {folder} must be an integer or a list of them, but is {value!r}"
        )
    return ids
