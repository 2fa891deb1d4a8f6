"""Where sampling defaults and end tokens come from."""

import json
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from megainfer.commands.config_file import ConfigFile
from megainfer.commands.engine_options import EngineOptions
from megainfer.commands.options import takes_options
from megainfer.config import EngineConfig
from megainfer.errors import ConfigError, ModelError
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import make_plan
from megainfer.messages.requests import Submit
from megainfer.text.tokenizer import Tokenizer
from tests.support.checkpoints import VARIANTS, write_checkpoint
from tests.support.scripted_server import RunningServer, speaking, write_tokenizer


def write(folder: Path, **content: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def chosen(folder: Path, source: str = "auto", **overrides: object) -> GenerationDefaults:
    config = EngineConfig(
        generation_config=source, override_generation_config=dict(overrides) or None
    )
    return GenerationDefaults.chosen(config, folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(
        tmp_path / "model", eos_token_id=[5, 6], temperature=0.6, top_k=20, max_new_tokens=9
    )


def test_the_models_own(model: Path) -> None:
    own = GenerationDefaults((5, 6), temperature=0.6, top_k=20, max_new_tokens=9)
    assert chosen(model) == own == GenerationDefaults.load(model)
    assert chosen(model).sampling_params().max_tokens == 9


def test_neutral_sampling_keeps_the_end_tokens(model: Path) -> None:
    assert chosen(model, "vllm") == GenerationDefaults((5, 6))
    (model / "generation_config.json").unlink()
    (model / "config.json").write_text('{"eos_token_id": 3}')
    assert chosen(model, "vllm") == GenerationDefaults((3,))


def test_another_folders_end_tokens_and_sampling(model: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", eos_token_id=8, top_p=0.5)
    assert chosen(model, str(other)) == GenerationDefaults((8,), top_p=0.5)
    write(other, top_p=0.5)  # without end tokens: the model's config.json has them
    (model / "config.json").write_text('{"eos_token_id": 3}')
    assert chosen(model, str(other)) == GenerationDefaults((3,), top_p=0.5)


def test_end_tokens_of_a_model_with_several_parts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"eos_token_id": null, "text_config": {"eos_token_id": [5]}}'
    )
    assert GenerationDefaults.load(tmp_path).eos_token_ids == (5,)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("tokenizer_config.json", {"eos_token": "<|im_end|>"}),
        ("tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}}),
        ("special_tokens_map.json", {"eos_token": "<|im_end|>"}),
    ],
)
def test_what_the_tokenizer_ends_texts_with_is_an_end_token(
    model: Path, name: str, config: dict
) -> None:
    write_tokenizer(model, eos_token=None)
    assert GenerationDefaults.load(model).eos_token_ids == (5, 6)
    (model / name).write_text(json.dumps(config))
    own = Tokenizer.load(model).token_id("<|im_end|>")
    assert GenerationDefaults.load(model).eos_token_ids == (5, 6, own)
    write(model, eos_token_id=own)
    assert GenerationDefaults.load(model).eos_token_ids == (own,)


def test_a_declared_end_token_of_tokenizers_without_that_file(model: Path) -> None:
    config = {"eos_token": "[EOS]", "added_tokens_decoder": {"93": {"content": "[EOS]"}}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert chosen(model, "vllm").eos_token_ids == (5, 6, 93)


def test_a_tokenizer_that_is_none_is_named(model: Path) -> None:
    write_tokenizer(model)
    (model / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer\.json isn't a tokenizer"):
        GenerationDefaults.load(model)


def test_overrides_replace_fields(model: Path) -> None:
    changed = chosen(model, temperature=0.1, min_p=0.2)
    assert changed == GenerationDefaults((5, 6), 0.1, None, 20, 0.2, max_new_tokens=9)
    assert chosen(model, "vllm", top_k=3) == GenerationDefaults((5, 6), top_k=3)


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("nowhere", {}, "auto, vllm or a folder with a generation_config.json, not 'nowhere'"),
        ("auto", {"temprature": 1}, "there is no field 'temprature'; there are temperature"),
        ("auto", {"temperature": 99}, "--override-generation-config: temperature must be"),
        ("auto", {"max_new_tokens": 0}, "max_new_tokens must be"),
        ("auto", {"top_k": "x"}, "top_k must be"),
    ],
)
def test_what_cannot_be_is_refused(model: Path, source: str, overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(model, source, **overrides)


def test_a_wrong_limit_in_the_file_is_named(model: Path) -> None:
    write(model, max_new_tokens=-1)
    with pytest.raises(ModelError, match=r"generation_config\.json: max_new_tokens"):
        chosen(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 4), ("no_repeat_ngram_size", 3), ("suppress_tokens", [5]), ("min_length", 2),
     ("forced_bos_token_id", 0), ("typical_p", 0.9), ("stop_strings", ["a"])],
)  # fmt: skip
def test_what_transformers_would_do_and_is_not_offered_is_refused(
    model: Path, tmp_path: Path, name: str, value: object
) -> None:
    other = write(tmp_path / "other", **{name: value})
    with pytest.raises(ModelError, match=f"{name} is .* isn't offered"):
        chosen(model, str(other))
    assert chosen(model, "vllm").eos_token_ids
    harmless = {"num_beams": 1, "suppress_tokens": [], "typical_p": 1.0, "min_length": None}
    neutral = write(tmp_path / "neutral", eos_token_id=8, **harmless)
    assert chosen(model, str(neutral)) == GenerationDefaults((8,))


def test_a_plan_has_them_before_anything_is_started(tmp_path: Path) -> None:
    folder = write_checkpoint(*VARIANTS[0], tmp_path)
    config = EngineConfig(override_generation_config={"top_p": 0.25})
    assert make_plan(config, folder, read_machine()).generation.top_p == 0.25
    with pytest.raises(ConfigError, match="no field 'top'"):
        make_plan(EngineConfig(override_generation_config={"top": 1}), folder, read_machine())


@pytest.mark.parametrize("in_file", [False, True])
def test_options_and_file(tmp_path: Path, in_file: bool) -> None:
    seen = []
    app = typer.Typer()

    @app.command()
    @takes_options
    def command(engine: EngineOptions, config: ConfigFile = None) -> None:
        seen.append(engine.config(None))

    arguments = ["--generation-config", "vllm", "--override-generation-config", '{"top_k": 4}']
    if in_file:
        path = tmp_path / "serve.yaml"
        path.write_text("generation-config: vllm\noverride-generation-config:\n  top_k: 4\n")
        arguments = ["--config", str(path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert (seen[0].generation_config, seen[0].override_generation_config) == ("vllm", {"top_k": 4})


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_overrides_must_be_an_object(text: str) -> None:
    from megainfer.config import parse_json_object

    with pytest.raises(ConfigError, match="--override-generation-config must be a JSON object"):
        parse_json_object(text, "--override-generation-config")


@pytest.mark.parametrize(
    ("limit", "path", "asked", "given"),
    [
        (3, "chat/completions", None, 3),
        (3, "chat/completions", 2, 2),
        (3, "chat/completions", 7, 3),
        (3, "completions", None, 3),
        (10**6, "completions", None, 16),
        (10**6, "chat/completions", None, "room"),
    ],
)
def test_no_answer_is_longer_than_the_limit(
    tmp_path: Path, limit: int, path: str, asked: int | None, given: int | str
) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    chat = path.startswith("chat")
    body = {"messages": [{"role": "user", "content": "Hi"}]} if chat else {"prompt": "Hi"}
    with RunningServer(tokenizer, GenerationDefaults(max_new_tokens=limit)) as server:
        server.node.script = speaking(*[5] * 300)
        answer = httpx.post(f"{server.url}/v1/{path}", json={**body, "max_tokens": asked})
        assert answer.status_code == 200
        submit = server.node.expect(Submit)
    room = 256 - len(submit.prompt)
    assert submit.max_tokens == (room if given == "room" else given)
