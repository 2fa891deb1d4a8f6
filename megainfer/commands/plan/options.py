"""The options of `megainfer plan`, by topic."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from typer import Option

from megainfer.commands.config_file import JSON
from megainfer.commands.plan.values import parse_seconds
from megainfer.commands.whole_number import whole_number
from megainfer.compute.selection import Precision
from megainfer.config import KV_CACHE_DTYPES, WEIGHT_DTYPES, parse_json_object
from megainfer.errors import ConfigError
from megainfer.planner.rehearsal import Traffic
from megainfer.planner.search.workload import Objective, Prefill, Target, Workload

MACHINES, LOAD, WEIGHTS = "Machines", "What is asked", "Model and weights"
TRYING, REPORT, LIVE = "Simulation", "Report", "A running server"
USUAL = Traffic()
E = TypeVar("E", Objective, Prefill)


@dataclass(frozen=True)
class MachineOptions:
    """Which devices there are."""

    gpus: Annotated[
        str | None,
        Option(
            rich_help_panel=MACHINES,
            metavar="NAME:COUNT,...",
            help="Devices and how many of each, such as H20:64,L40S:64; CPU servers too.",
        ),
    ] = None
    hardware: Annotated[
        Path | None,
        Option(
            rich_help_panel=MACHINES,
            metavar="FILE",
            help="TOML with devices of your own, as `megainfer calibrate` writes it.",
        ),
    ] = None
    tp: Annotated[
        str,
        Option(
            "--tp",
            rich_help_panel=MACHINES,
            metavar="NUMBERS",
            help="How many devices a node may have. Colocated ones of several are not served yet.",
        ),
    ] = "1,2,4,8,16"


@dataclass(frozen=True)
class LoadOptions:
    """Requests, and how fast answers must be."""

    tpot: Annotated[
        float,
        Option(
            rich_help_panel=LOAD,
            parser=partial(parse_seconds, flag="--tpot"),
            metavar="TIME",
            show_default="150ms",
            help="Mean time between two tokens of an answer, at most.",
        ),
    ] = 0.15
    ttft: Annotated[
        float | None,
        Option(
            rich_help_panel=LOAD,
            parser=partial(parse_seconds, flag="--ttft"),
            metavar="TIME",
            show_default="no limit",
            help="Time to the first token, at most.",
        ),
    ] = None
    input_tokens: Annotated[
        int,
        Option(
            "--input",
            rich_help_panel=LOAD,
            parser=whole_number,
            metavar="TOKENS",
            help="Of a prompt, in the mean.",
        ),
    ] = 571
    output_tokens: Annotated[
        int,
        Option(
            "--output",
            rich_help_panel=LOAD,
            parser=whole_number,
            metavar="TOKENS",
            help="Of an answer, in the mean.",
        ),
    ] = 159
    prefill: Annotated[
        str,
        Option(
            rich_help_panel=LOAD,
            metavar="beside|elsewhere",
            help="Where prompts are computed: in chunks on the same nodes, or by a pool of its "
            "own, which isn't planned.",
        ),
    ] = Prefill.BESIDE.value
    objective: Annotated[
        str,
        Option(
            rich_help_panel=LOAD,
            metavar="gpu|cost|watt|latency",
            help="What is best: most tokens a second by GPU, price or watt; or least time between "
            "tokens.",
        ),
    ] = Objective.GPU.value

    def workload(self) -> Workload:
        """Raises ConfigError."""
        prefill = _choice(self.prefill, Prefill, "--prefill")
        return Workload(self.input_tokens, self.output_tokens, prefill)

    def target(self) -> Target:
        """Raises ConfigError."""
        return Target(self.tpot, self.ttft)

    def chosen_objective(self) -> Objective:
        """Raises ConfigError."""
        return _choice(self.objective, Objective, "--objective")


@dataclass(frozen=True)
class WeightOptions:
    """How the model is kept."""

    dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16",
            help="Of what is computed in, and of messages.",
        ),
    ] = "bfloat16"
    expert_dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16|int8|int8_32|mxfp4|int4|int4_128|fp8|auto",
            help="Of experts' weights; auto: as --dtype.",
        ),
    ] = "auto"
    attention_dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16|int8|int8_32|mxfp4|int4|int4_128|fp8|auto",
            help="Of all other weights; auto: as --dtype.",
        ),
    ] = "auto"
    kv_cache_dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16|int8|fp8|auto",
            help="Of keys and values; auto: as --dtype.",
        ),
    ] = "auto"
    skew: Annotated[
        float,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="EXPONENT",
            help="How unevenly experts are popular: the exponent of Zipf's law; 0: all alike. With "
            "it spare experts are searched, too.",
        ),
    ] = 0.0
    hf_overrides: Annotated[
        dict[str, Any] | None,
        Option(
            rich_help_panel=WEIGHTS,
            parser=partial(parse_json_object, flag="--hf-overrides"),
            metavar=JSON,
            help="Fields that replace those of config.json.",
        ),
    ] = None

    def precision(self) -> Precision:
        """Raises ConfigError."""
        _known(self.dtype, ("float32", "bfloat16"), "--dtype")
        _known(self.expert_dtype, (*WEIGHT_DTYPES, "auto"), "--expert-dtype")
        _known(self.attention_dtype, (*WEIGHT_DTYPES, "auto"), "--attention-dtype")
        _known(self.kv_cache_dtype, (*KV_CACHE_DTYPES, "auto"), "--kv-cache-dtype")
        if not 0 <= self.skew <= 3:
            raise ConfigError(f"--skew must be 0 to 3, not {self.skew:g}")
        return Precision(self.dtype, self.expert_dtype, self.attention_dtype, self.kv_cache_dtype)


@dataclass(frozen=True)
class TryingOptions:
    """How plans are tried in the simulator."""

    simulate: Annotated[
        int,
        Option(
            rich_help_panel=TRYING,
            metavar="NUMBER",
            help="How many of the best plans go through the simulator; 0: none.",
        ),
    ] = 3
    arrivals: Annotated[
        str,
        Option(
            rich_help_panel=TRYING,
            metavar="poisson|bursts[:FACTOR]|FILE",
            help="When requests come; FILE: a public trace (Azure, BurstGPT, Mooncake).",
        ),
    ] = "poisson"
    lengths: Annotated[
        str,
        Option(
            rich_help_panel=TRYING,
            metavar="fixed|lognormal[:SIGMA]|FILE",
            help="How long they are, with --input and --output as means; FILE: as that trace's. "
            "Plans are made for these.",
        ),
    ] = "fixed"
    share: Annotated[
        float,
        Option(
            "--load",
            rich_help_panel=TRYING,
            metavar="SHARE",
            help="Of the throughput with all places taken, what is asked for.",
        ),
    ] = USUAL.share
    straggler: Annotated[
        float,
        Option(
            rich_help_panel=TRYING,
            metavar="FACTOR",
            help="One attention node takes so many times as long.",
        ),
    ] = USUAL.straggler
    jitter: Annotated[
        float,
        Option(
            rich_help_panel=TRYING,
            metavar="SHARE",
            help="Standard deviation of each stage's time.",
        ),
    ] = USUAL.jitter


@dataclass(frozen=True)
class ReportOptions:
    """What is searched how, printed and written."""

    paper: Annotated[
        bool,
        Option(
            "--paper",
            rich_help_panel=REPORT,
            help="Search as MegaScale-Infer publishes it, with its figures of GPUs; --gpus: of "
            "these, whatever their counts.",
        ),
    ] = False

    top: Annotated[
        int, Option(rich_help_panel=REPORT, metavar="NUMBER", help="How many plans of each kind.")
    ] = 5
    json: Annotated[
        bool,
        Option("--json", rich_help_panel=REPORT, help="JSON in place of tables, for serve --plan."),
    ] = False
    plot: Annotated[
        Path | None,
        Option(
            rich_help_panel=REPORT,
            metavar="FILE.svg",
            help="Draw tokens/s a GPU over tokens/s a user, both architectures.",
        ),
    ] = None
    timeline: Annotated[
        Path | None,
        Option(
            rich_help_panel=REPORT,
            metavar="FILE.json",
            help="A simulated step of the best plan, for ui.perfetto.dev.",
        ),
    ] = None


@dataclass(frozen=True)
class LiveOptions:
    """Of a server that runs."""

    url: Annotated[
        str | None,
        Option(
            "--from",
            rich_help_panel=LIVE,
            metavar="URL",
            help="What that server measures, and what other nodes would give it.",
        ),
    ] = None
    api_key: Annotated[
        str | None, Option(rich_help_panel=LIVE, help="One that opens its /metrics.")
    ] = None
    seconds: Annotated[
        float, Option(rich_help_panel=LIVE, help="How long to look at it, 1 or more.")
    ] = 5.0


def _known(value: str, known: tuple[str, ...], flag: str) -> None:
    if value not in known:
        raise ConfigError(f"{flag} must be one of {', '.join(known)}, not {value!r}")


def _choice(value: str, kind: type[E], flag: str) -> E:
    _known(value, tuple(member.value for member in kind), flag)
    return kind(value)
