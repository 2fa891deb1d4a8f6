"""llama.cpp from the sources that llama-cpp-python carries: built for this machine's cores, with
the converter for its model files."""

import shutil
import tarfile
from pathlib import Path

from peers.environments import (
    TORCH,
    PreparationError,
    install,
    make_environment,
    python_of,
    run,
    venv_python,
)

SDIST = "llama-cpp-python==0.3.36"
TOOLS = "llama-batched-bench", "llama-server", "llama-quantize"
CONVERTER_NEEDS = TORCH, "transformers>=5,<6", "sentencepiece", "protobuf", "pyyaml", "requests"
BINDINGS_NEED = "diskcache", "jinja2"
RECIPE = "\n".join([SDIST, *TOOLS, *CONVERTER_NEEDS, *BINDINGS_NEED])
OUTTYPES = {"f32": ("f32",), "bf16": ("bf16",), "int8": ("q8_0",), "q4": ("q4_0", "q4_k_m")}
"""By precision."""
BY_CONVERTER = "f32", "bf16", "q8_0"
"""The others are made by llama.cpp's own quantiser."""
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
_PROGRAMS = Path(__file__).parent / "programs"
CONVERT = _PROGRAMS / "convert_gguf.py"
LOGITS = _PROGRAMS / "llamacpp_logits.py"


def prepare(folder: Path, jobs: int) -> None:
    for tool_name in ("cmake", "c++"):
        if shutil.which(tool_name) is None:
            raise PreparationError(f"llama.cpp is compiled with {tool_name}; install it")
    make_environment(folder, "llamacpp")
    install(folder, "llamacpp", *CONVERTER_NEEDS, *BINDINGS_NEED)
    _unpack(folder)
    _compile(folder, jobs)


def _unpack(folder: Path) -> None:
    if _sources(folder).exists():
        return
    home = folder / "llamacpp"
    pip = (venv_python(folder, "llamacpp"), "-m", "pip")
    run(*pip, "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", home, SDIST)
    (archive,) = home.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(home, filter="data")
    (unpacked,) = home.glob("llama_cpp_python-*/")
    unpacked.rename(home / "sdist")


def _sources(folder: Path) -> Path:
    return folder / "llamacpp" / "sdist" / "vendor" / "llama.cpp"


def _compile(folder: Path, jobs: int) -> None:
    options = [f"-D{name}={value}" for name, value in CMAKE_OPTIONS.items()]
    build = folder / "llamacpp" / "build"
    run("cmake", "-S", _sources(folder), "-B", build, *options)
    targets = [part for name in TOOLS for part in ("--target", name)]
    run("nice", "cmake", "--build", build, "--parallel", str(jobs), *targets)


def tool(folder: Path, name: str) -> Path:
    """Raises PreparationError where llama.cpp was not prepared."""
    python_of(folder, "llamacpp")
    return folder / "llamacpp" / "build" / "bin" / name


def converted(folder: Path, checkpoint: Path, outtype: str) -> Path:
    """The checkpoint, which has a tokenizer, as a GGUF file; made where there is none as new."""
    target = folder / "models" / f"{checkpoint.name}-{outtype}.gguf"
    if not target.exists() or _changed(target) < _changed(checkpoint / "config.json"):
        target.parent.mkdir(exist_ok=True)
        part = target.with_suffix(".part")
        if outtype in BY_CONVERTER:
            options = ("--outtype", outtype, "--outfile", part)
            python = python_of(folder, "llamacpp")
            run(python, CONVERT, _sources(folder), checkpoint, *options)
        else:
            wide = converted(folder, checkpoint, "bf16")
            run(tool(folder, "llama-quantize"), wide, part, outtype.upper())
        part.rename(target)
    return target


def write_logits(
    folder: Path, model: Path, tokens: Path, logits: Path, chunk: int, threads: int
) -> None:
    """What llama.cpp computes for a text: see `programs/llamacpp_logits.py`."""
    sdist, libraries = folder / "llamacpp" / "sdist", tool(folder, TOOLS[0]).parent
    files = (sdist, libraries, model, tokens, logits)
    run(python_of(folder, "llamacpp"), LOGITS, *files, str(chunk), str(threads))


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def serve_options(threads: int, sequences: int, tokens: int) -> list[str]:
    return [
        *("-t", str(threads), "-tb", str(threads)),
        *("-np", str(sequences), "-c", str(sequences * tokens)),
        "--no-webui",
    ]
