"""The host's own work, by serving models that were made for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from megainfer.calibration.measured import HostWork, LayerTime
from megainfer.calibration.toy import CONTEXT, TOY
from megainfer.llm import LLM
from megainfer.sampling import SamplingParams

ROWS = (1, 32)
"""Sequences that decode at once; what a step takes lies on a line between."""
TOKENS = 96
"""Of each sequence, for the toy; the bulky one takes as long for a third of them."""
BULKY_TOKENS = 32
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
    """folder: of the toy. nodes: where its two roles are, as options of an `LLM`."""
    with _engine(folder, nodes) as llm:
        _generate(llm, max(ROWS), TOKENS)  # warm
        few, many = (_undisturbed(llm, rows) for rows in ROWS)
    sequence = max(0.0, (many.step - few.step) / (ROWS[1] - ROWS[0]))
    return HostWork(
        few.attention_layer,
        few.expert_layer,
        few.transfer,
        max(0.0, few.step - ROWS[0] * sequence),
        sequence,
    )


def measure_layers(
    folder: Path, layers: int, nodes: Sequence[Mapping[str, Any]]
) -> list[tuple[LayerTime, LayerTime]]:
    """What layers take with few rows and with many, for each of several ways to place roles.

    folder: of the bulky model, which has so many layers. All are loaded at once and asked in turn,
    since their differences are what matters.
    """
    with ExitStack() as stack:
        engines = [stack.enter_context(_engine(folder, each)) for each in nodes]
        for llm in engines:
            _generate(llm, max(ROWS), BULKY_TOKENS)  # warm
        rounds = [[_layers(llm, layers) for llm in engines] for _ in range(ROUNDS)]
    return [(_quickest(few), _quickest(many)) for few, many in _by_engine(rounds)]


def _by_engine(
    rounds: Sequence[Sequence[tuple[LayerTime, LayerTime]]],
) -> Iterator[tuple[tuple[LayerTime, ...], tuple[LayerTime, ...]]]:
    for own in zip(*rounds, strict=True):
        few, many = zip(*own, strict=True)
        yield few, many


def _quickest(times: Sequence[LayerTime]) -> LayerTime:
    return min(times, key=lambda time: time.step)


@contextmanager
def _engine(folder: Path, nodes: Mapping[str, Any]) -> Iterator[LLM]:
    with LLM(
        str(folder),
        micro_batches=1,
        max_model_len=CONTEXT,
        max_num_seqs=max(ROWS),
        dtype="bfloat16",
        prefix_cache=False,
        progress=False,
        **nodes,
    ) as llm:
        yield llm


def _layers(llm: LLM, layers: int) -> tuple[LayerTime, LayerTime]:
    few, many = (_measure(llm, rows, BULKY_TOKENS, layers) for rows in ROWS)
    return few, many


def _undisturbed(llm: LLM, rows: int) -> HostWork:
    """The quickest of several rounds; in `step` there is all of a step but its layers."""
    time = _quickest([_measure(llm, rows, TOKENS, TOY.layers) for _ in range(ROUNDS)])
    messages = time.dispatch + time.reply
    outside = time.step - TOY.layers * (time.attention + time.experts + messages)
    return HostWork(time.attention, time.experts, messages / 2, outside, 0.0)


def _measure(llm: LLM, rows: int, tokens: int, layers: int) -> LayerTime:
    before = llm.stats()
    seconds = _generate(llm, rows, tokens)
    after = llm.stats()
    attention, experts = (_growth(before, after, role) for role in ("attention", "expert"))
    steps = attention["steps"]
    t_a = _seconds(attention, ATTENTION_KINDS) / steps / layers
    t_e = _seconds(experts, EXPERT_KINDS) / steps / layers
    dispatch, reply = _transfer(experts), _transfer(attention)
    return LayerTime(rows, tokens / 2, t_a, t_e, seconds / steps, dispatch, reply)


def _transfer(grown: Mapping[str, float]) -> float:
    """The mean of messages that their receiver waited for."""
    waited = grown.get("transfers", 0.0)
    return grown.get("transfer_ns", 0.0) / 1e9 / waited if waited else 0.0


def _generate(llm: LLM, rows: int, tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
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
