from pathlib import Path

import pytest

from tests.support.checkpoints import Greedy, decisive, oracle, write_checkpoint
from tests.support.local_cluster import NEW_TOKENS, prompts_of


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory) -> tuple[Path, list[list[int]], list[Greedy]]:
    """A variant, prompts, and the oracle's answers."""
    family, variant = request.param
    folder = write_checkpoint(family, variant, tmp_path_factory.mktemp(f"{family}_{variant}"))
    return folder, *decisive(oracle(folder), prompts_of, NEW_TOKENS)
