"""The command line: help that is quick, options declared once, config files, whole numbers."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from megainfer import __version__
from megainfer.cli import app
from megainfer.commands.config_file import ConfigFile
from megainfer.commands.engine_options import EngineOptions
from megainfer.commands.options import takes_options
from megainfer.commands.whole_number import whole_number
from megainfer.config import EngineConfig
from megainfer.errors import ConfigError, MegaInferError, ModelError
from megainfer.frontend.syntax_options import CALLS, REASONING
from tests.support.checkpoints import write_checkpoint

COMMANDS = [
    "serve",
    "chat",
    "complete",
    "generate",
    "bench serve",
    "bench latency",
    "bench throughput",
    "rl",
    "rl train",
    "rl simulate",
    "trace",
    "models",
    "calibrate",
    "collect-env",
    "version",
]
RUNNER = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*args: str) -> Any:
    result = RUNNER.invoke(app, args)
    if isinstance(result.exception, MegaInferError):
        raise result.exception
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    for line in result.output.splitlines():
        assert "[cyan]" not in line, "markup is shown as it was written"


def test_commands_that_are_loaded_late_are_listed() -> None:
    text = run("rl", "--help").output
    assert "Train a model by reinforcement learning" in text
    assert "Find how long a step of T-PPO and of PPO takes" in text
    assert run("rl", "trian").exit_code == 2


def test_models_lists_families_and_tells_what_a_model_is_made_of(tmp_path: Path) -> None:
    text = run("models").output
    assert "Qwen3-MoE" in text
    assert "Mixtral 8x7B" in text
    text = run("models", str(write_checkpoint("qwen2_moe", "dense_between", tmp_path))).output
    for words in (
        "Qwen2MoeForCausalLM",
        "8 experts of 24, top-2, swiglu, a gated shared expert of 32 (layers 1, 3)",
        "dense of 40, swiglu (layers 0, 2)",
        "softmax (layers 1, 3)",
    ):
        assert words in text
    with pytest.raises(ModelError, match=r"config\.json"):
        run("models", str(tmp_path / ".."))


def test_help_has_panels_and_examples() -> None:
    text = run("bench", "serve", "--help").output
    for word in ("Server", "Load", "Prompts", "Sampling", "Report", "Examples", "megainfer[bench]"):
        assert word in text
    text = run("serve", "--help").output
    for word in ("Nodes and pipeline", "Limits", "Weights and kernels", "--config", "Examples"):
        assert word in text


@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_is_cut_and_no_bracket_swallowed_at_80_columns(name: str) -> None:
    command: Any = get_command(app)
    for part in name.split():
        command = command.get_command(None, part)
    text = RUNNER.invoke(app, [*name.split(), "-h"], env={"COLUMNS": "80"}).output
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    flowing = " ".join(text.split())
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert name in text or parameter.param_type_name == "argument"
        assert " ".join((parameter.help or "").split()) in flowing


def test_the_version_is_told_by_an_option_too() -> None:
    assert run("--version").output == run("version").output == f"{__version__}\n"


def test_the_shell_can_complete_commands_and_options() -> None:
    for typed, completed in (("megainfer ser", "serve"), ("megainfer serve --attn", "--attn-gpus")):
        asked = {
            "_MEGAINFER_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(typed.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-c", "from megainfer.cli import app; app(prog_name='megainfer')"],
            capture_output=True,
            text=True,
            env={**os.environ, **asked},
            timeout=60,
        )
        assert completed in done.stdout.split()


def test_help_names_every_parser() -> None:
    text = run("serve", "--help").output
    assert [name for name in (*CALLS, *REASONING) if name not in text] == []


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from megainfer.cli import app\n"
        "try: app(['bench', 'serve', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'aiohttp', 'matplotlib', 'tokenizers', 'fastapi', 'yaml'}\n"
        "heavy.add('megainfer.rl')  # whose configuration is a flag for each key\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_bench_without_its_client_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "sys.argv = ['megainfer', 'bench', 'serve']; from megainfer.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "bench serve needs aiohttp: install megainfer[bench]" in done.stderr


def test_collect_env_tells_versions_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = run("collect-env").output
    assert run("version").output.strip() in text
    for subject in ("Python", "CPU", "cores", "memory", "GPU", "kernels", "package    torch "):
        assert subject in text
    assert "secret" not in text
    assert str(Path.home()) not in text


# --- options ------------------------------------------------------------------------------------


def test_the_engine_has_every_field_of_its_config_as_an_option() -> None:
    named = {field.name for field in fields(EngineOptions)}
    # The model is an argument; the other two are for Python's users.
    assert {field.name for field in fields(EngineConfig)} - named == {
        "model",
        "prefix_cache",
        "trace",
    }
    assert EngineOptions().config(None) == EngineConfig()


def test_a_command_takes_its_options_from_dataclasses() -> None:
    @dataclass(frozen=True)
    class Group:
        count: Annotated[int, typer.Option(parser=whole_number)] = 3
        names: Annotated[list[str] | None, typer.Option("--name")] = None

    seen: list[Any] = []
    small = typer.Typer()

    @small.command()
    @takes_options
    def command(word: str, group: Group, loud: Annotated[bool, typer.Option()] = False) -> None:
        """Says it."""
        seen.append((word, group, loud))

    for args in (["hi"], ["hi", "--count", "4k", "--name", "a", "--name", "b", "--loud"]):
        assert RUNNER.invoke(small, args).exit_code == 0
    assert seen == [("hi", Group(), False), ("hi", Group(4000, ["a", "b"]), True)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12),
        ("1_000", 1000),
        ("4k", 4000),
        ("4K", 4096),
        ("1M", 2**20),
        ("2g", 2 * 10**9),
        ("1T", 2**40),
        ("25.6k", 25_600),
        ("-1", -1),
    ],
)
def test_whole_numbers(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "1.5K", "1.2345k", "4KiB", "1e3", "ten", "4 k"])
def test_what_is_no_whole_number_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="whole number") as error:
        whole_number(text)
    assert repr(text) in str(error.value)


# --- trace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["nan", "inf", "-100", "0", "1e12"])
def test_a_trace_of_impossible_length_is_refused(seconds: str) -> None:
    with pytest.raises(ConfigError, match=r"--seconds must be from 0\.01 to 60, not "):
        run("trace", "--url", "http://127.0.0.1:1", "--seconds", seconds)


def test_a_trace_from_a_host_that_cannot_be_names_it() -> None:
    with pytest.raises(MegaInferError, match=r"http://a\.\.b can't be asked for"):
        run("trace", "--url", "http://a..b")


def test_a_trace_with_a_key_that_no_header_can_hold_names_the_option() -> None:
    with pytest.raises(ConfigError, match="--admin-key: a key must be visible ASCII"):
        run("trace", "--url", "http://127.0.0.1:1", "--admin-key", "kéy")


# --- bench --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [("--api-key", "kéy"), ("--header", "x=é")])
def test_a_header_that_cannot_be_sent_names_its_option(given: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=given[0]):
        run("bench", "serve", "--port", "1", *given)


# --- config files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("mixtral", "gqa", tmp_path_factory.mktemp("model"))


def write(folder: Path, text: str) -> str:
    path = folder / "serve.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_gives_options_and_the_command_line_wins(tmp_path: Path, model: Path) -> None:
    config = write(
        tmp_path,
        f"model: {model}\nmax-model-len: 64\nattn-gpus: 2\nmicro_batches: 3\n"
        "kv-cache-memory: 1MiB\ndry-run: true\n",
    )
    text = run("serve", "--config", config, "--attn-gpus", "1").output
    assert "context    64 tokens" in text
    assert "3 micro-batches" in text
    assert "attention 0" in text
    assert "attention 1" not in text


def test_that_a_server_is_open_is_told_in_one_line(model: Path) -> None:
    args = ["serve", str(model), "--host", "0.0.0.0", "--port", "0", "--dry-run"]
    result = RUNNER.invoke(app, args, env={"COLUMNS": "40"})
    line = "open       to whoever reaches 0.0.0.0: no key is asked for; --api-key sets one"
    assert line in result.output.splitlines()


def test_a_file_gives_several_values_which_the_command_line_replaces(tmp_path: Path) -> None:
    seen: list[Any] = []
    small = typer.Typer()

    @small.command()
    def command(
        name: Annotated[list[str] | None, typer.Option()] = None,
        config: ConfigFile = None,
    ) -> None:
        seen.append(name)

    file = write(tmp_path, "name: [a, b]\n")
    for args in ([], ["--name", "c"]):
        assert RUNNER.invoke(small, ["--config", file, *args]).exit_code == 0
    assert seen == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-model-length: 4\n", r"no option 'max-model-length'; did you mean 'max-model-len'\?"),
        ("zzz: 4\n", "no option 'zzz'; there are .*attention-dtype, attn-device, attn-gpus"),
        ("config: other.yaml\n", "no option 'config'"),
        ("port:\n", "'port' needs a value, not None"),
        ("port: [1, 2]\n", "'port' takes one value"),
        ("port: {a: 1}\n", "'port' needs a value"),
        ("- port\n", "needs `option: value` lines"),
        ("a: [\n", "isn't YAML"),
        ("max-model-len: many\n", "not 'many'"),
        ("host: !!python/object/apply:os.getcwd []\n", "isn't YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("serve", "--dry-run", "--config", write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*none\.yaml can't be read"):
        run("serve", "--config", str(tmp_path / "none.yaml"))
