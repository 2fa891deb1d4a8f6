"""What generation_config.json says: the tokens that end a sequence, and sampling defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError, ModelError, RequestError
from megainfer.sampling import SamplingParams, check_integer
from megainfer.text.end_token import read_end_token
from megainfer.text.json_file import read_json_object

AUTO, NEUTRAL = "auto", "vllm"
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
MAX_NEW_TOKENS = "max_new_tokens"
FILE = "generation_config.json"
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([],),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "dola_layers": (),
    "watermarking_config": (),
    "use_mtp": (False,),
}
"""What else transformers would do of this file, by the values with which it does nothing."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The model author's end tokens, and the sampling used where a request leaves it out.

    A sampling field is None where the author says nothing. max_new_tokens: no answer is longer.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    @classmethod
    def load(cls, folder: Path) -> "GenerationDefaults":
        """Read generation_config.json; end tokens that it lacks come from config.json. What the
        tokenizer ends a text with is one as well: finetuned models often say it only there.

        Raises ModelError when a file is no JSON object or a value is out of range.
        """
        return cls._read(folder, folder, {})

    @classmethod
    def chosen(cls, config: EngineConfig, folder: Path) -> "GenerationDefaults":
        """What `--generation-config` and `--override-generation-config` make of a model's.

        End tokens are read whatever the source is, as in vLLM: `vllm` makes sampling neutral, but
        a model whose answers don't end is of no use. Raises ModelError as `load`, ConfigError for
        what the options say.
        """
        overrides = config.override_generation_config or {}
        check_overrides(overrides)
        source = folder
        if config.generation_config not in (AUTO, NEUTRAL):
            source = Path(config.generation_config).expanduser()
            if not (source / FILE).is_file():
                raise ConfigError(
                    f"--generation-config must be {AUTO}, {NEUTRAL} or a folder with a {FILE}, not "
                    f"{config.generation_config!r}"
                )
        neutral = config.generation_config == NEUTRAL
        return cls._read(source, folder, overrides, neutral)

    @classmethod
    def _read(
        cls, source: Path, folder: Path, overrides: Mapping[str, Any], neutral: bool = False
    ) -> "GenerationDefaults":
        path = source / FILE
        content = read_json_object(path)
        eos = content.get("eos_token_id")
        if eos is None:
            eos = _end_tokens(read_json_object(folder / "config.json"))
        sampling = {} if neutral else _fields_of(content)
        if not neutral:
            _refuse_others(content, path)
        if problem := _problem(sampling):
            raise ModelError(f"{path}: {problem}")
        ends = _with_tokenizers(_token_ids(eos, source), folder)
        return cls(ends, **{**sampling, **_fields_of(overrides)})

    def sampling_params(self) -> SamplingParams:
        """Of a request that leaves everything out."""
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        given["max_tokens"] = self.max_new_tokens
        return SamplingParams(**{name: v for name, v in given.items() if v is not None})


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError for a field that isn't one of generation's, or a value out of range."""
    known = (*SAMPLING_FIELDS, MAX_NEW_TOKENS)
    for name in overrides:
        if name not in known:
            raise ConfigError(
                f"--override-generation-config: there is no field {name!r}; there are "
                f"{', '.join(known)}"
            )
    if problem := _problem(_fields_of(overrides)):
        raise ConfigError(f"--override-generation-config: {problem}")


def _end_tokens(config: Mapping[str, Any]) -> Any:
    """What config.json says; models with several parts may say it of the one for text."""
    text = config.get("text_config")
    if config.get("eos_token_id") is None and isinstance(text, dict):
        return text.get("eos_token_id")
    return config.get("eos_token_id")


def _with_tokenizers(ends: tuple[int, ...], folder: Path) -> tuple[int, ...]:
    own = read_end_token(folder)
    return ends if own is None or own in ends else (*ends, own)


def _fields_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say something."""
    names = (*SAMPLING_FIELDS, MAX_NEW_TOKENS)
    return {name: content[name] for name in names if content.get(name) is not None}


def _refuse_others(content: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError for what would change answers and isn't done."""
    for name, harmless in NEUTRAL_VALUES.items():
        value = content.get(name)
        if value is not None and value not in harmless:
            raise ModelError(
                f"{path}: {name} is {value!r:.80}, which isn't offered; take it out, or start with "
                f"--generation-config {NEUTRAL}, which leaves sampling to the requests"
            )


def _problem(fields: Mapping[str, Any]) -> str:
    """What is wrong with them; empty where nothing is."""
    try:
        SamplingParams(**{name: v for name, v in fields.items() if name != MAX_NEW_TOKENS})
        if MAX_NEW_TOKENS in fields:
            check_integer(MAX_NEW_TOKENS, fields[MAX_NEW_TOKENS], 1, None)
    except RequestError as error:
        return str(error)
    return ""


def _token_ids(value: Any, folder: Path) -> tuple[int, ...]:
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(not isinstance(token, int) or isinstance(token, bool) for token in ids):
        raise ModelError(
            f"eos_token_id in {folder} must be an integer or a list of them, but is {value!r:.80}"
        )
    return ids
