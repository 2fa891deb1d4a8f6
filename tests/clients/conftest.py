from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.documented import NAME
from tests.clients.environment import PythonEnvironment
from tests.clients.model import write_model
from tests.support.served import Served, serving


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def served(model_folder: Path) -> Iterator[Served]:
    roles = ("--attn-gpus", "1", "--ffn-gpus", "1")
    flags = ("--served-model-name", NAME, "--enable-tokenizer-info-endpoint")
    with serving(str(model_folder), *roles, *flags) as served:
        yield served


@pytest.fixture(scope="session")
def base_url(served: Served) -> str:
    return f"{served.url}/v1"


@pytest.fixture(scope="session")
def environments(pytestconfig: pytest.Config) -> Path:
    """Where environments of heavy clients are kept, from one run of the tests to the next."""
    return pytestconfig.cache.mkdir("clients")


@pytest.fixture
def python_environment(environments: Path, request: pytest.FixtureRequest) -> PythonEnvironment:
    """With what the test's module names in `REQUIREMENTS`; `SHARES` where it says so."""
    module = request.module
    return PythonEnvironment(environments, module.REQUIREMENTS, getattr(module, "SHARES", False))
