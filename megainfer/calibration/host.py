"""The host's own work, by serving a model that leaves nothing else to do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from megainfer.calibration import toy
from megainfer.calibration.measured import HostWork
from megainfer.llm import LLM
from megainfer.sampling import SamplingParams

ROWS = (1, 32)
"""Sequences that decode at once; what a step takes lies on a line between."""
TOKENS = 96
ROUNDS = 3
ATTENTION_KINDS = ("combine", "attention", "dispatch", "shared")
EXPERT_KINDS = ("expert", "reply")


SHARED: Mapping[str, Any] = {"cores": "shared"}
"""Both roles have all cores, and take turns."""
SPLIT: Mapping[str, Any] = {"cores": "split"}
"""Each has cores of its own."""
COLOCATED: Mapping[str, Any] = {"colocated": True}
"""Both in one process."""


def measure_host(folder: Path, nodes: Mapping[str, Any]) -> HostWork:
    """folder: of the toy model. nodes: where its two roles are, as options of an `LLM`."""
    with LLM(
        str(folder),
        micro_batches=1,
        max_model_len=toy.CONTEXT,
        max_num_seqs=max(ROWS),
        dtype="bfloat16",
        prefix_cache=False,
        progress=False,
        **nodes,
    ) as llm:
        _generate(llm, max(ROWS))  # warm
        few, many = (_undisturbed(llm, rows) for rows in ROWS)
    sequence = max(0.0, (many.step - few.step) / (ROWS[1] - ROWS[0]))
    return HostWork(
        few.attention_layer,
        few.expert_layer,
        few.transfer,
        max(0.0, few.step - ROWS[0] * sequence),
        sequence,
    )


def _undisturbed(llm: LLM, rows: int) -> HostWork:
    """The quickest of several rounds; in `step` there is all of a step but its layers."""
    rounds = (_measure(llm, rows) for _ in range(ROUNDS))
    return min(rounds, key=lambda own: own[0])[1]


def _measure(llm: LLM, rows: int) -> tuple[float, HostWork]:
    """Seconds of a step, and what they are made of."""
    before = llm.stats()
    seconds = _generate(llm, rows)
    after = llm.stats()
    attention, experts = (_growth(before, after, role) for role in ("attention", "expert"))
    steps = attention["steps"]
    layers = steps * toy.LAYERS
    t_a = _seconds(attention, ATTENTION_KINDS) / layers
    t_e = _seconds(experts, EXPERT_KINDS) / layers
    noticed = attention.get("transfers", 0.0) + experts.get("transfers", 0.0)
    waited = attention.get("transfer_ns", 0.0) + experts.get("transfer_ns", 0.0)
    transfer = waited / 1e9 / noticed if noticed else 0.0
    layer = t_a + t_e + 2 * transfer
    step = seconds / steps
    return step, HostWork(t_a, t_e, transfer, step - toy.LAYERS * layer, 0.0)


def _generate(llm: LLM, rows: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    prompts = [[1 + row % 200] for row in range(rows)]
    started = monotonic()
    llm.generate(prompts, params, progress=False)
    return monotonic() - started


def _growth(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], role: str
) -> dict[str, float]:
    """Of each counter that is a number, over the nodes of a role."""
    grown: dict[str, float] = {}
    for name, own in after.items():
        if name.startswith(role):
            for counter, value in own.items():
                if isinstance(value, int | float):
                    more = value - before[name].get(counter, 0)
                    grown[counter] = grown.get(counter, 0.0) + more
    return grown


def _seconds(grown: Mapping[str, float], kinds: Sequence[str]) -> float:
    return sum(grown.get(f"{kind}_seconds", 0.0) for kind in kinds)
