"""The prompts that are asked for by options, as text or as token ids."""

from dataclasses import replace
from pathlib import Path

from numpy.random import Generator

from megainfer.bench import datasets
from megainfer.bench.sample import Sample
from megainfer.bench.text_codec import OwnCodec, TextCodec
from megainfer.commands.bench.serve_options import PromptOptions
from megainfer.errors import ConfigError

VOCABULARY = 1000
"""Where nobody says how many tokens the model has: every model has these."""


def make_samples(
    prompts: PromptOptions,
    count: int,
    random: Generator,
    codec: TextCodec | None,
    vocabulary: int | None,
    as_text: bool,
) -> list[Sample]:
    """as_text: of random prompts; all others are text anyway. codec: None where only random token
    ids are wanted. Raises ConfigError."""
    _check_lengths(prompts)
    if prompts.dataset_name == "random":
        wanted = _random(prompts, vocabulary or VOCABULARY)
        return wanted.samples(count, random, codec if as_text else None)
    if prompts.dataset_name == "custom":
        own = codec if isinstance(codec, OwnCodec) else None
        samples = datasets.custom(_path(prompts), count, prompts.custom_output_len, own)
        if (tokens := prompts.output_len) is not None:  # whatever a line says
            samples = [replace(sample, output_tokens=tokens) for sample in samples]
        return samples
    if prompts.dataset_name == "sharegpt":
        assert codec is not None
        tokens_or_own = prompts.output_len or prompts.sharegpt_output_len
        return datasets.sharegpt(_path(prompts), count, random, codec, tokens_or_own)
    raise ConfigError(
        f"--dataset-name must be {' or '.join(datasets.DATASETS)}, not {prompts.dataset_name!r}"
    )


def _check_lengths(prompts: PromptOptions) -> None:
    for flag, length in (("--input-len", prompts.input_len), ("--output-len", prompts.output_len)):
        if length is not None and length < 1:
            raise ConfigError(f"{flag} must be at least 1, not {length}")


def _random(prompts: PromptOptions, vocabulary: int) -> datasets.RandomPrompts:
    return datasets.RandomPrompts(
        vocab_size=vocabulary,
        input_tokens=prompts.input_len or prompts.random_input_len,
        output_tokens=prompts.output_len or prompts.random_output_len,
        range_ratio=prompts.random_range_ratio,
        prefix=prompts.random_prefix_len,
    )


def _path(prompts: PromptOptions) -> Path:
    if prompts.dataset_path is None:
        raise ConfigError(f"--dataset-name {prompts.dataset_name} needs --dataset-path")
    return prompts.dataset_path.expanduser()
