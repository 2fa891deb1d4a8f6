"""The options of an engine, for every command that starts one."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any

from typer import Argument, Option

from megainfer.commands.config_file import JSON
from megainfer.commands.gpu_numbers import GpuNumbers
from megainfer.commands.whole_number import whole_number
from megainfer.config import (
    MAX_MICRO_BATCHES,
    SCALING_LIMIT,
    EngineConfig,
    format_bytes,
    parse_bytes,
    parse_json_object,
    parse_micro_batches,
    parse_rebalance,
)

NODES, LIMITS, WEIGHTS = "Nodes and pipeline", "Limits", "Weights and kernels"
MODEL = "Model"
SAMPLING = "Sampling defaults"
DEFAULT = EngineConfig()

ModelArgument = Annotated[
    str | None,
    Argument(
        metavar="MODEL", help="Local folder or hub id (owner/name); the demo model if left out."
    ),
]
ModelOption = Annotated[
    str | None,
    Option("--model", help="Local folder or hub id (owner/name); the demo model if left out."),
]
_parse_cache = partial(parse_bytes, flag="--kv-cache-memory")
_parse_hf_overrides = partial(parse_json_object, flag="--hf-overrides")
_parse_overrides = partial(parse_json_object, flag="--override-generation-config")


@dataclass(frozen=True)
class EngineOptions:
    """Fields of `EngineConfig` as options; names and defaults are its own."""

    attn_gpus: Annotated[
        int,
        Option(rich_help_panel=NODES, help="Attention nodes: each has a GPU, or is a CPU process."),
    ] = DEFAULT.attn_gpus
    ffn_gpus: Annotated[
        int,
        Option(rich_help_panel=NODES, help="Expert nodes: each has a GPU, or is a CPU process."),
    ] = DEFAULT.ffn_gpus
    attn_tp: Annotated[
        int,
        Option(
            rich_help_panel=NODES,
            help="Tensor parallelism: ranks of each attention node, each a process, which has a "
            "GPU where nodes do, with a part of its heads, dense channels and vocabulary.",
        ),
    ] = DEFAULT.attn_tp
    ffn_tp: Annotated[
        int,
        Option(
            rich_help_panel=NODES,
            help="Tensor parallelism: ranks of each expert node, each a process, which has a GPU "
            "where nodes do, with a part of every expert of the node.",
        ),
    ] = DEFAULT.ffn_tp
    device: Annotated[
        str,
        Option(
            rich_help_panel=NODES,
            metavar="cpu|cuda|auto",
            help="What nodes compute on; auto: GPUs where there are some.",
        ),
    ] = DEFAULT.device
    attn_device: Annotated[
        str | None,
        Option(
            rich_help_panel=NODES,
            metavar="cpu|cuda|auto",
            show_default="as --device",
            help="The same of attention nodes.",
        ),
    ] = DEFAULT.attn_device
    ffn_device: Annotated[
        str | None,
        Option(
            rich_help_panel=NODES,
            metavar="cpu|cuda|auto",
            show_default="as --device",
            help="The same of expert nodes: cpu keeps experts in the host's memory beside a GPU.",
        ),
    ] = DEFAULT.ffn_device
    gpus: Annotated[
        GpuNumbers | None,
        Option(
            rich_help_panel=NODES,
            parser=GpuNumbers.parse,
            metavar="NUMBERS",
            show_default="from the first on",
            help="Which GPUs, such as 0,1: attention nodes' first. One may be named several times.",
        ),
    ] = None
    max_attn_gpus: Annotated[
        int | None,
        Option(
            rich_help_panel=NODES,
            show_default=f"{SCALING_LIMIT}; on GPUs those to begin with",
            help="Attention nodes that `megainfer scale` may ask for.",
        ),
    ] = DEFAULT.max_attn_gpus
    max_ffn_gpus: Annotated[
        int | None,
        Option(
            rich_help_panel=NODES,
            show_default=f"{SCALING_LIMIT}; on GPUs those to begin with",
            help="Expert nodes that `megainfer scale` may ask for.",
        ),
    ] = DEFAULT.max_ffn_gpus
    expert_replicas: Annotated[
        int,
        Option(
            rich_help_panel=NODES,
            parser=whole_number,
            metavar="NUMBER",
            help="Experts of each layer that an expert node holds beyond its share: for when "
            "another dies, and for balancing.",
        ),
    ] = DEFAULT.expert_replicas
    rebalance: Annotated[
        float | None,
        Option(
            rich_help_panel=NODES,
            parser=parse_rebalance,
            metavar="SECONDS|off",
            show_default="off",
            help="How often to look whether experts elsewhere would save time, and move them.",
        ),
    ] = DEFAULT.rebalance
    micro_batches: Annotated[
        int | None,
        Option(
            rich_help_panel=NODES,
            parser=parse_micro_batches,
            metavar="NUMBER|auto",
            show_default="auto",
            help=f"How many micro-batches take turns, 1 to {MAX_MICRO_BATCHES}; auto measures.",
        ),
    ] = DEFAULT.micro_batches
    colocated: Annotated[
        bool,
        Option(
            "--colocated", rich_help_panel=NODES, help="Both roles in one process: the baseline."
        ),
    ] = DEFAULT.colocated
    m2n: Annotated[
        str,
        Option(
            rich_help_panel=NODES,
            metavar="auto|shm|dist",
            help="What carries messages between nodes: shared memory, or torch.distributed (gloo, "
            "NCCL where all are on GPUs); auto: what is fastest on a host, and dist between hosts.",
        ),
    ] = DEFAULT.m2n
    m2n_host: Annotated[
        str,
        Option(
            rich_help_panel=NODES,
            metavar="ADDRESS",
            help="With --m2n dist: the IP address at which nodes listen for each other.",
        ),
    ] = DEFAULT.m2n_host
    cores: Annotated[
        str,
        Option(
            rich_help_panel=NODES,
            metavar="split|shared|auto",
            help="split: cores of its own for each process; shared: all for all; auto: shared "
            "where two processes take turns.",
        ),
    ] = DEFAULT.cores
    numa: Annotated[
        str,
        Option(
            rich_help_panel=NODES,
            metavar="auto|off",
            help="auto: where there are several sockets, each process has cores and memory of its "
            "own one; off: as the system likes.",
        ),
    ] = DEFAULT.numa
    max_model_len: Annotated[
        int | None,
        Option(
            rich_help_panel=LIMITS,
            parser=whole_number,
            metavar="TOKENS",
            show_default="the model's own limit",
            help="Tokens of prompt and answer together, such as 4096, 4k (4000) or 4K (4096).",
        ),
    ] = DEFAULT.max_model_len
    max_num_seqs: Annotated[
        int,
        Option(
            rich_help_panel=LIMITS,
            parser=whole_number,
            metavar="NUMBER",
            help="Requests running on an attention node, in all its micro-batches.",
        ),
    ] = DEFAULT.max_num_seqs
    max_num_batched_tokens: Annotated[
        int,
        Option(
            rich_help_panel=LIMITS,
            parser=whole_number,
            metavar="TOKENS",
            help="Tokens in one step of a micro-batch, which is also the capacity of an M2N slot.",
        ),
    ] = DEFAULT.max_num_batched_tokens
    kv_cache_memory: Annotated[
        int | None,
        Option(
            rich_help_panel=LIMITS,
            parser=_parse_cache,
            metavar="BYTES",
            show_default="what is needed or there",
            help="KV cache of an attention node, such as 512MiB or 4G.",
        ),
    ] = DEFAULT.kv_cache_memory
    grammar_memory: Annotated[
        int,
        Option(
            rich_help_panel=LIMITS,
            parser=partial(parse_bytes, flag="--grammar-memory"),
            metavar="BYTES",
            show_default=format_bytes(DEFAULT.grammar_memory),
            help="Compiled grammars that an attention node keeps, such as 256MiB.",
        ),
    ] = DEFAULT.grammar_memory
    dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16|auto",
            help="What is computed in; auto: the checkpoint's on GPUs, else what suits the CPU.",
        ),
    ] = DEFAULT.dtype
    expert_dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16|int8|int8_32|mxfp4|int4|int4_128|fp8|auto",
            help="How experts' weights are kept; auto: as --dtype, on the CPU as the checkpoint "
            "stores them if that is FP8 or four bits.",
        ),
    ] = DEFAULT.expert_dtype
    attention_dtype: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="float32|bfloat16|int8|int8_32|mxfp4|int4|int4_128|fp8|auto",
            help="How all other weights are kept; auto: as --dtype.",
        ),
    ] = DEFAULT.attention_dtype
    enable_return_routed_experts: Annotated[
        bool,
        Option(
            "--enable-return-routed-experts",
            rich_help_panel=LIMITS,
            help="Keep which experts each token chose beside its keys and values, for requests "
            "with return_routed_experts.",
        ),
    ] = DEFAULT.enable_return_routed_experts
    kv_cache_dtype: Annotated[
        str,
        Option(
            rich_help_panel=LIMITS,
            metavar="float32|bfloat16|int8|fp8|auto",
            help="What keys and values are cached in; auto: as --dtype. 8 bits: on CPUs.",
        ),
    ] = DEFAULT.kv_cache_dtype
    pin_weights: Annotated[
        bool,
        Option(
            "--pin-weights",
            rich_help_panel=WEIGHTS,
            help="Hold the checkpoint's files in memory: a node that is started again reads no "
            "disk.",
        ),
    ] = DEFAULT.pin_weights
    kernels: Annotated[
        str,
        Option(
            rich_help_panel=WEIGHTS,
            metavar="cpu|reference|gpu|auto",
            help="What computes; auto: gpu on GPUs, else cpu where it was built.",
        ),
    ] = DEFAULT.kernels
    batch_invariant: Annotated[
        bool,
        Option(
            "--batch-invariant",
            rich_help_panel=WEIGHTS,
            help="On GPUs, what a token computes doesn't depend on what shares its step: slower.",
        ),
    ] = DEFAULT.batch_invariant
    enforce_eager: Annotated[
        bool,
        Option(
            "--enforce-eager",
            rich_help_panel=WEIGHTS,
            help="Record no CUDA graphs: a faster start, slower tokens.",
        ),
    ] = DEFAULT.enforce_eager
    generation_config: Annotated[
        str,
        Option(
            rich_help_panel=SAMPLING,
            metavar="auto|vllm|FOLDER",
            help="Where sampling defaults come from: the model's generation_config.json, none "
            "(vllm), or another folder's. Its max_new_tokens bounds every answer.",
        ),
    ] = DEFAULT.generation_config
    override_generation_config: Annotated[
        dict[str, Any] | None,
        Option(
            rich_help_panel=SAMPLING,
            parser=_parse_overrides,
            metavar=JSON,
            help='Fields that replace those, such as {"temperature": 0.5}.',
        ),
    ] = DEFAULT.override_generation_config

    revision: Annotated[
        str | None,
        Option(
            rich_help_panel=MODEL,
            help="Branch, tag or commit of a hub id.",
            show_default="its main branch",
        ),
    ] = DEFAULT.revision
    hf_overrides: Annotated[
        dict[str, Any] | None,
        Option(
            rich_help_panel=MODEL,
            parser=_parse_hf_overrides,
            metavar=JSON,
            help="Fields that replace those of config.json.",
        ),
    ] = DEFAULT.hf_overrides
    chat_template: Annotated[
        str | None,
        Option(
            rich_help_panel=MODEL,
            metavar="FILE|JINJA",
            show_default="the model's own",
            help="The chat template.",
        ),
    ] = DEFAULT.chat_template

    def config(self, model: str | None) -> EngineConfig:
        """The wish as the engine takes it. Raises ConfigError."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return EngineConfig(model=model, **chosen)
