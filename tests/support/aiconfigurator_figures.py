"""What NVIDIA's aiconfigurator says of decoding on colocated GPUs, and what our costs say.

Its release 0.12.0, of the package index, from kernels of SGLang 0.5.14 that it has measured:

    aiconfigurator cli estimate --estimate-mode static_gen --backend sglang --isl 4096 --osl 512 \\
        --kvcache-quant-mode bfloat16 --fmha-quant-mode bfloat16 --detail time --system h200_sxm \\
        --model-path MODEL --tp-size TP --attention-dp-size DP --moe-ep-size EP --moe-tp-size ... \\
        --batch-size BATCH

Mixtral is bfloat16, the others have fp8 weights with scales by blocks. Of the three backends that
it knows, SGLang is the one whose measurements of all of these are sound: with TensorRT-LLM, Mixtral
takes 64 ms where SGLang and vLLM take 15, since its experts are measured at an eighth of the rate.
"""

from dataclasses import dataclass, field
from pathlib import Path

from megainfer.compute.selection import Precision
from megainfer.planner.costs import ColocatedStage, Contexts, ModelCosts, Step
from megainfer.planner.hardware import Device, load_devices
from tests.support.public_models import public_spec

CONTEXTS = Contexts(4096 + 1, 4096 + 511)
"""That the 511 tokens after the first see."""


@dataclass(frozen=True)
class Figure:
    """dp groups of tp GPUs with `batch` sequences each; experts whole on ep GPUs, or with ep 1 each
    split over all. milliseconds: between tokens; of these, what experts take, and what is
    exchanged between GPUs (for DeepSeek it says one figure of both, which stands in `experts`)."""

    model: str
    device: str
    tp: int
    dp: int
    ep: int
    batch: int
    milliseconds: float
    experts: float
    exchange: float

    @property
    def attention(self) -> float:
        """All else."""
        return self.milliseconds - self.experts - self.exchange

    @property
    def layout(self) -> str:
        return f"TP {self.tp}, DP {self.dp}, EP {self.ep}"

    @property
    def balanced(self) -> bool:
        """Whether each GPU's experts have as much to do: one group of attention, whose few rows
        read all of them, or all experts on all GPUs. Elsewhere it takes the busiest GPU of experts
        that are chosen by a power law and aren't packed by load; ours are."""
        return self.dp == 1


FIGURES = (
    Figure("qwen3-235b-a22b", "H100", 8, 1, 8, 32, 20.146, 12.4, 1.8),
    Figure("qwen3-235b-a22b", "H200", 8, 1, 8, 8, 10.749, 6.1, 0.9),
    Figure("qwen3-235b-a22b", "H200", 8, 1, 8, 32, 17.684, 10.8, 1.5),
    Figure("qwen3-235b-a22b", "H200", 8, 1, 8, 128, 23.796, 11.5, 2.5),
    Figure("qwen3-235b-a22b", "H200", 1, 8, 8, 8, 20.413, 10.9, 2.4),
    Figure("qwen3-235b-a22b", "H200", 1, 8, 8, 32, 28.824, 12.9, 4.3),
    Figure("qwen3-235b-a22b", "H200", 1, 8, 8, 128, 62.984, 23.6, 8.4),
    Figure("mixtral-8x22b", "H100", 8, 1, 1, 32, 18.18, 13.5, 1.1),
    Figure("mixtral-8x22b", "H100", 8, 1, 1, 128, 24.061, 14.4, 1.9),
    Figure("mixtral-8x22b", "H200", 8, 1, 1, 32, 14.492, 10.2, 1.3),
    Figure("mixtral-8x22b", "H200", 8, 1, 1, 128, 18.497, 10.6, 1.8),
    Figure("deepseek-v3", "H200", 8, 1, 8, 32, 24.355, 17.7, 0),
    Figure("deepseek-v3", "H200", 8, 1, 8, 128, 38.763, 24.8, 0),
    Figure("deepseek-v3", "H200", 1, 8, 8, 32, 40.036, 27.7, 0),
    Figure("deepseek-v3", "H200", 1, 8, 8, 64, 50.87, 34.7, 0),
)


@dataclass
class Estimator:
    """What our costs say of the same. folder: for config.json of the models."""

    folder: Path
    devices: dict[str, Device] = field(default_factory=load_devices)
    _costs: dict[str, ModelCosts] = field(default_factory=dict)

    def estimate(self, figure: Figure) -> Figure:
        """Without what the host does, which theirs hasn't either."""
        costs, device = self._of(figure.model), self.devices[figure.device]
        stage = ColocatedStage(costs, device, figure.tp, figure.dp, figure.ep)
        step, layers = Step(figure.batch, CONTEXTS), costs.moe_layers
        host = device.efficiency.step_seconds + device.efficiency.sequence_seconds * figure.batch
        seconds = layers * stage.layer(step).total + stage.outside(step).total - host
        return Figure(
            figure.model,
            figure.device,
            figure.tp,
            figure.dp,
            figure.ep,
            figure.batch,
            1e3 * seconds,
            1e3 * layers * stage.experts(step).total,
            1e3 * layers * stage.exchange(step).total,
        )

    def _of(self, model: str) -> ModelCosts:
        if model not in self._costs:
            weights = "bfloat16" if model == "mixtral-8x22b" else "fp8"
            spec = public_spec(model, self.folder)
            precision = Precision("bfloat16", weights, weights)
            self._costs[model] = ModelCosts.of(spec, precision, own_arithmetic=True)
        return self._costs[model]
