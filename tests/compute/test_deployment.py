"""What is known of a wish before any process is started: a dry run and a start know the same."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megainfer.config import EngineConfig
from megainfer.errors import CheckpointError, ConfigError, ModelError
from megainfer.launch.machine import Machine
from megainfer.llm import LLM
from megainfer.model_folder import deployment
from megainfer.model_folder.deployment import Deployment, plan_deployment
from megainfer.model_folder.prepare import prepare
from megainfer.model_folder.resolve import ModelSource
from tests.support.checkpoints import write_checkpoint
from tests.support.scripted_server import write_tokenizer

MACHINE = Machine(cores=(0, 1), memory=2**34, available_memory=2**34, bfloat16_arithmetic=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In several files, with an index."""
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint("mixtral", "gqa", folder, max_shard_size="100KB", vocab_size=360)
    return write_tokenizer(folder)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def planned(folder: Path, **wish: object) -> Deployment:
    return plan_deployment(EngineConfig(model=str(folder), **wish), MACHINE)  # type: ignore[arg-type]


def change_tensor(folder: Path, change: Callable[[dict], object]) -> None:
    """In the file that holds it, without the index's knowing."""
    name = "model.layers.2.self_attn.q_proj.weight"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][name]
    tensors = load_file(path)
    tensors[name] = tensors.pop(name)
    change(tensors)
    save_file(tensors, path)


def lose_a_tensor(folder: Path) -> None:
    change_tensor(folder, lambda tensors: tensors.popitem())


def misshape_a_tensor(folder: Path) -> None:
    def shorten(tensors: dict) -> None:
        name, tensor = tensors.popitem()
        tensors[name] = tensor[1:].contiguous()

    change_tensor(folder, shorten)


def cut_a_file(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])


def lengthen_a_file(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes() + b"x")


def lose_a_file(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def pickle_the_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def garble_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_a_tensor, r"holds no tensor model\.layers\.2\.self_attn\.q_proj\.weight"),
        (misshape_a_tensor, r"q_proj\.weight has shape \[47, 48\].*calls for \[48, 48\]"),
        (cut_a_file, "is corrupt or truncated: .*its tensors end at byte"),
        (lengthen_a_file, "is corrupt or truncated: its tensors end at byte"),
        (lose_a_file, "which is not there"),
        (pickle_the_weights, r"pytorch_model\.bin, a pickle.*convert it once"),
        (garble_the_tokenizer, r"tokenizer\.json"),
    ],
)
def test_harm_is_named_before_anything_is_started(
    folder: Path, harm: Callable[[Path], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(folder)
    with pytest.raises(ModelError, match=message):
        planned(folder)
    monkeypatch.setattr("megainfer.llm.LocalEngine", None)  # it isn't asked for
    with pytest.raises(ModelError, match=message):
        LLM(str(folder))


def test_a_whole_model_says_what_was_looked_at(whole: Path) -> None:
    told = planned(whole).describe()
    size = sum(path.stat().st_size for path in whole.glob("*.safetensors"))
    (weights,) = [line for line in told if line.startswith("weights")]
    assert float(weights.split()[1]) == pytest.approx(size / 1024, rel=0.05)
    assert "every tensor there" in weights
    assert not any(line.startswith(("warning", "tokenizer", "chats")) for line in told)


def test_what_is_missing_for_chats_is_told(folder: Path) -> None:
    write_tokenizer(folder, chat_template=None)
    assert any("--chat-template gives one" in line for line in planned(folder).describe())
    (folder / "tokenizer.json").unlink()
    assert any("prompts are token ids" in line for line in planned(folder).describe())


@pytest.mark.parametrize(
    ("nodes", "cores", "told"),
    [
        ((16, 8), (0, 1), "24 processes share 2 cores.*--attn-gpus 1 --ffn-gpus 1 is better"),
        ((2, 6), (0, 1, 2, 3), "8 processes share 4 cores.*--attn-gpus 1 --ffn-gpus 3 is better"),
        ((6, 1), (0, 1, 2, 3), "--attn-gpus 3 --ffn-gpus 1 is better"),
        ((1, 1), (0,), "2 processes share 1 core, .*--colocated, one process"),
        ((1, 1), (0, 1), None),
        ((2, 2), (0, 1, 2, 3), None),
    ],
)
def test_more_processes_than_cores_are_warned_of(
    whole: Path, nodes: tuple[int, int], cores: tuple[int, ...], told: str | None
) -> None:
    config = EngineConfig(model=str(whole), attn_gpus=nodes[0], ffn_gpus=nodes[1])
    machine = Machine(cores, 2**34, 2**34, bfloat16_arithmetic=False)
    warned = [line for line in plan_deployment(config, machine).describe() if "warning" in line]
    assert len(warned) == (told is not None)
    if told is not None:
        assert re.search(told, warned[0])


# --- a hub's model -------------------------------------------------------------------------------


@pytest.fixture
def hub(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub that can't be reached, with one model's small files in it; its folder."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for branch in ("main", "other"):
        refs = tmp_path / "models--owner--name" / "refs" / branch
        refs.parent.mkdir(exist_ok=True)
        refs.write_text("a" * 40)
    for path in whole.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return snapshot


def dry(**wish: object) -> Deployment:
    config = EngineConfig(model="owner/name", **wish)  # type: ignore[arg-type]
    return plan_deployment(config, MACHINE, fetch=False)


def test_a_dry_run_fetches_no_weights_and_says_what_it_did_not_check(hub: Path) -> None:
    told = "\n".join(dry().describe())
    assert "not fetched yet" in told
    assert "only their names were checked" in told
    index = hub / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"names no tensor lm_head\.weight"):
        dry()
    index.unlink()
    assert "not fetched yet, and not checked" in "\n".join(dry().describe())


def test_weights_that_are_here_are_checked_by_a_dry_run_too(hub: Path, whole: Path) -> None:
    for path in whole.glob("*.safetensors"):
        shutil.copy(path, hub)
    assert "every tensor there" in "\n".join(dry().describe())


def test_what_does_not_fit_is_said_before_weights_are_fetched(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ModelSource] = []

    def prepared(source: ModelSource) -> Path:
        asked.append(source)
        return prepare(source)

    monkeypatch.setattr(deployment, "prepare", prepared)
    with pytest.raises(ConfigError, match="9 expert nodes were asked for"):
        plan_deployment(EngineConfig(model="owner/name", ffn_gpus=9), MACHINE)
    assert [source.weights for source in asked] == [False]
    asked.clear()
    with pytest.raises(CheckpointError, match="which is not there"):
        plan_deployment(EngineConfig(model="owner/name", revision="other"), MACHINE)
    assert [(source.weights, source.revision) for source in asked] == [
        (False, "other"),
        (True, "other"),
    ]


def test_a_revision_is_of_a_hub_id(hub: Path, whole: Path) -> None:
    assert dry(revision="other").plan.folder == hub
    with pytest.raises(ModelError, match="fetching it from the hub failed"):
        dry(revision="no-such")
    with pytest.raises(ModelError, match="--revision is for a hub id"):
        planned(whole, revision="main")


# --- what replaces the model's own ---------------------------------------------------------------


def test_overrides_of_the_configuration_reach_the_plan(whole: Path) -> None:
    assert planned(whole, hf_overrides={"num_experts_per_tok": 1}).plan.spec.top_k == 1


def test_a_chat_template_is_a_file_or_jinja(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("FILE {{ messages[0].content }}")
    messages = [{"role": "user", "content": "Hi"}]
    for given, shown in ((str(path), "FILE Hi"), ("IT {{ messages[0].content }}", "IT Hi")):
        tokenizer = planned(whole, chat_template=given).tokenizer
        assert tokenizer is not None
        assert tokenizer.chat_templates["default"].render(messages) == shown
        assert tokenizer.encode("Hello") == planned(whole).tokenizer.encode("Hello")
    for given, message in (
        ("/no/such/file", "can't be read"),
        ("{% if %}", "isn't a Jinja template"),
    ):
        with pytest.raises(ConfigError, match=f"--chat-template .*{message}"):
            planned(whole, chat_template=given)
    bare = Path(shutil.copytree(whole, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        planned(bare, chat_template="{{ messages }}")
