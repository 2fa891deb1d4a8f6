"""The options of `megainfer serve` that start a plan, and what of a plan can't be served yet."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megainfer.compute.selection import Precision
from megainfer.config import MAX_MICRO_BATCHES
from megainfer.planner.search.deployment import Deployment
from megainfer.planner.search.workload import Prefill, Workload
from megainfer.planner.shapes import named_shape

Option = str | int | bool


@dataclass(frozen=True, slots=True)
class Served:
    """options: of one instance, by their long names without the dashes. refusals: what is in the
    way, each a sentence; none: it can be started."""

    options: Mapping[str, Option]
    refusals: tuple[str, ...]

    @property
    def command(self) -> str:
        """The line for a shell."""
        words = ["megainfer", "serve"]
        for name, value in self.options.items():
            if name == "model":
                words.append(str(value))
            elif value is True:
                words.append(f"--{name}")
            elif value is not False:
                words += [f"--{name}", str(value)]
        return shlex.join(words)


def served(model: str, deployment: Deployment, precision: Precision, workload: Workload) -> Served:
    """How this deployment is started; of several replicas, one."""
    return Served(
        _options(model, deployment, precision, workload),
        tuple(_refusals(model, deployment, precision, workload)),
    )


def _options(
    model: str, deployment: Deployment, precision: Precision, workload: Workload
) -> dict[str, Option]:
    kinds = [{"gpu": "cuda", "cpu": "cpu"}[role.device.kind] for role in deployment.roles]
    options: dict[str, Option] = {"model": model}
    if deployment.together:
        options |= {"colocated": True, "device": kinds[0]}
    else:
        options |= {
            "attn-gpus": deployment.attention.count,
            **_tp("attn-tp", deployment.attention.tp),
            "ffn-gpus": deployment.experts.count,
            **_tp("ffn-tp", deployment.experts.tp),
            **_devices(*kinds),
            "micro-batches": deployment.micro_batches,
        }
        if deployment.experts.spares:
            options["expert-replicas"] = deployment.experts.spares
    sequences = deployment.rows * deployment.micro_batches
    return {
        **options,
        "max-num-seqs": sequences,
        "max-num-batched-tokens": workload.most_rows(deployment.rows),
        "dtype": precision.dtype,
        **_unless_same("expert-dtype", precision.expert_dtype, precision.dtype),
        **_unless_same("attention-dtype", precision.attention_dtype, precision.dtype),
        **_unless_same("kv-cache-dtype", precision.cache_dtype, precision.dtype),
    }


def _devices(attention: str, experts: str) -> dict[str, Option]:
    if attention == experts:
        return {"device": attention}
    return {"attn-device": attention, "ffn-device": experts}


def _tp(name: str, ranks: int) -> dict[str, Option]:
    return {name: ranks} if ranks > 1 else {}


def _unless_same(name: str, value: str, usual: str) -> dict[str, Option]:
    return {} if value == usual else {name: value}


def _refusals(
    model: str, deployment: Deployment, precision: Precision, workload: Workload
) -> Iterator[str]:
    attention = deployment.attention
    if named_shape(model) is not None:
        yield f"{model} is a shape without weights; plan with the model's folder or its hub id"
    if deployment.together:
        if deployment.devices > 1:
            yield (
                f"colocated over {deployment.devices} devices isn't served yet (tensor parallel "
                f"{attention.tp}, data parallel {attention.count}); one device is"
            )
    elif deployment.micro_batches > MAX_MICRO_BATCHES:
        yield f"{deployment.micro_batches} micro-batches: at most {MAX_MICRO_BATCHES} are served"
    if attention.device.kind == "gpu" and precision.cache_dtype != precision.dtype:
        yield (
            f"a KV cache in {precision.cache_dtype} isn't served on GPUs yet; plan with "
            f"--kv-cache-dtype {precision.dtype}"
        )
    if workload.prefill is Prefill.ELSEWHERE:
        yield (
            "a pool of its own for prompts isn't served yet; plan with --prefill beside, where the "
            "same nodes compute them"
        )
