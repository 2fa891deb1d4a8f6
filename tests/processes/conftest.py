from collections.abc import Iterator

import pytest

from megainfer.supervise import engine_process
from tests.support.forked import withheld
from tests.support.forked_engine import STARTED_SO


@pytest.fixture(scope="module", autouse=True)
def _programs_are_forked_unless_fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """And so are the processes of each `LLM`."""
    is_fresh = _is_fresh(request)
    with withheld(is_fresh), pytest.MonkeyPatch.context() as patch:
        if not is_fresh:
            patch.setattr(engine_process, "subprocess", STARTED_SO)
        yield


@pytest.fixture(autouse=True)
def _a_fresh_test_forks_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    with withheld(_is_fresh(request)):
        yield


def _is_fresh(request: pytest.FixtureRequest) -> bool:
    """Whether a module or a test is marked so."""
    return request.node.get_closest_marker("fresh") is not None
