"""What a KV cache of eight bits costs the demo model at a context of 4,096 tokens: how far its
logits are from those over a bfloat16 cache. `pytest -s` prints what was found. int8 may cost what
test_divergence_demo.py allows weights in int8; FP8 has 4 bits of a number where int8 has 7. `make
test` has the same bounds at a quarter of that context, in a quarter of the time.
"""

import pytest
from tokenizers import Tokenizer

from megainfer.compute.cpu.kernels import library
from megainfer.compute.selection import Precision
from megainfer.model_folder.demo.model import ensure_demo_model
from tests.support.demo_pairs import DemoModel, english
from tests.support.divergence import Divergence, divergence

pytestmark = pytest.mark.skipif(not library.is_built(), reason="the CPU kernels were not built")

CONTEXT, SHORTER, LAST = 4096, 1024, 256
BOUNDS = {
    "int8": Divergence(0.11, 2.2e-2, 0.89, 0.9),
    "fp8": Divergence(0.25, 0.1, 0.8, 2.0),
}


@pytest.fixture(scope="module")
def demo() -> DemoModel:
    return DemoModel(ensure_demo_model())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("context", [SHORTER, pytest.param(CONTEXT, marks=pytest.mark.slow)])
def test_divergence_is_bounded(demo, context):
    tokenizer = Tokenizer.from_file(str(demo.folder / "tokenizer.json"))
    tokens = tokenizer.encode(english()).ids[:context]
    assert len(tokens) == context
    wide = demo.pair(Precision("bfloat16")).last_logits(tokens, LAST)
    for kept, bound in BOUNDS.items():
        logits = demo.pair(Precision("bfloat16", cache=kept)).last_logits(tokens, LAST)
        found = divergence([logits], [wide])
        print(f"{kept}: {found}")
        assert found.is_within(bound), f"{kept}: {found}; allowed: {bound}"
