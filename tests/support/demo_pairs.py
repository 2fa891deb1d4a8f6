"""The demo's checkpoint in several precisions, in the test's own process."""

from functools import cache
from pathlib import Path

from megainfer.attention_node.model import AttentionModel
from megainfer.checkpoint.reader import WeightReader
from megainfer.compute.selection import Precision, open_backend
from megainfer.expert_node.experts import ExpertModel
from megainfer.models.registry import load_spec
from megainfer.topology import contiguous_placement
from tests.support.node_pair import Pair

DOCUMENTS = Path(__file__).parents[2] / "docs"


class DemoModel:
    """The demo's checkpoint in several precisions; int8 experts serve instances of any dtype."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spec = load_spec(folder)
        self._placement = contiguous_placement(self._spec.num_experts, 1, self._spec.moe_layers)
        self.experts = cache(self._load_experts)

    def pair(self, precision: Precision) -> Pair:
        backend = open_backend("auto", precision, threads=2)
        with WeightReader(self.folder) as reader:
            attention = AttentionModel(self._spec, reader, self._placement, backend)
        return Pair(attention, [self.experts(precision.expert_dtype)])

    def _load_experts(self, weights: str) -> ExpertModel:
        backend = open_backend("auto", Precision(experts=weights), threads=2)
        with WeightReader(self.folder) as reader:
            return ExpertModel(self._spec, reader, self._placement, 0, backend)


def english() -> str:
    """Much text: this project's documents."""
    return "\n".join(file.read_text() for file in sorted(DOCUMENTS.glob("*.md")))
