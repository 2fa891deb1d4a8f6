"""`--config FILE`: options out of a YAML file, under their long names without the dashes.

    model: path/to/model
    attn-gpus: 2
    served-model-name: [small, tiny]

What the command line says wins over the file, as in vLLM.
"""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from megainfer.errors import ConfigError
from megainfer.small_file import read_small_text

MAX_FILE_BYTES = 2**20
JSON = "JSON"
"""The metavar of options whose value may be written as YAML here."""


def apply_file(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of the command's options. Raises ConfigError."""
    if path is not None:
        known = _known(context)
        defaults = {}
        for key, value in read_options(path).items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise ConfigError(_unknown(path, str(key), known))
            if known[name].metavar == JSON and isinstance(value, dict):
                value = _as_json(path, key, value)
            several = getattr(known[name], "multiple", False)
            defaults[name] = _as_given(path, key, value, several)
        context.default_map = {**(context.default_map or {}), **defaults}
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=apply_file,
        help="YAML with any of these options by its long name; the command line wins over it.",
    ),
]


def _known(context: typer.Context) -> dict[str, Any]:
    """The command's parameters by name."""
    return {
        parameter.name: parameter
        for parameter in context.command.params
        if parameter.name not in (None, "config", "plan", "help")
    }


def _unknown(path: Path, key: str, known: Iterable[str]) -> str:
    names = [name.replace("_", "-") for name in known]
    near = get_close_matches(key.replace("_", "-"), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names))}"
    return f"--config {path}: there is no option {key!r}{hint}"


def _as_given(path: Path, key: object, value: Any, several: bool) -> Any:
    """As if it stood on the command line: a text, a list of texts, or a flag's yes or no."""
    if isinstance(value, bool):
        return value if not several else [str(value)]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, str | int | float) for each in values):
        raise ConfigError(f"--config {path}: {key!r} needs a value, not {value!r:.80}")
    if several:
        return [str(each) for each in values]
    if len(values) != 1 or isinstance(value, list):
        raise ConfigError(f"--config {path}: {key!r} takes one value, not {value!r:.80}")
    return str(value)


def _as_json(path: Path, key: object, value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config {path}: {key!r} isn't JSON: {error}") from error


def read_options(path: Path, flag: str = "--config") -> dict[Any, Any]:
    """What is in the file. flag: how it was given. Raises ConfigError."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """Without aliases: a few lines of them stand for more than fits into memory."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                where = cast(Any, self).peek_event().start_mark
                raise yaml.YAMLError(f"aliases (*name) aren't taken\n{where}")
            return super().compose_node(parent, index)

    try:
        found = yaml.load(read_small_text(path, MAX_FILE_BYTES), Loader=PlainLoader)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{flag} {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {path} isn't YAML: {error}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{flag} {path}: needs `option: value` lines, not {found!r:.60}")
    return found
