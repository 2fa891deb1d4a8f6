"""What a user may ask of an instance: the one place where `serve` and `LLM` agree on names."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from megainfer.errors import ConfigError

MAX_MICRO_BATCHES = 8
MAX_TUNED_MICRO_BATCHES = 4
"""Of an attention node that tries them while it serves: slots for all of them are kept."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
FOUR_BITS = ("mxfp4", "int4", "int4_128")
"""int4_128: groups of 128 inputs; the others: of 32."""
ON_CPU_ALONE = ("int8_32",)
"""The kernels of GPUs have no such format."""
WEIGHT_DTYPES = (*DTYPE_BYTES, "int8", *ON_CPU_ALONE, *FOUR_BITS, "fp8", "fp8_channel")
"""int8: groups of 128 inputs; int8_32: of 32, as GGUF's. fp8: blocks of 128 outputs and inputs, on
the CPU an output and 128 inputs, whichever it is."""
KV_CACHE_DTYPES = (*DTYPE_BYTES, "int8", "fp8")
CPU_KERNELS = ("reference", "cpu")
KERNELS = (*CPU_KERNELS, "gpu")
DEVICES = ("cpu", "cuda")
CORES = ("split", "shared")
NUMA = ("off",)
M2N = ("shm", "dist")
MIN_REBALANCE_SECONDS = 2.0
SCALING_LIMIT = 16
"""Nodes of either role that there may be once an instance serves, unless told; room for one that
isn't there is address space."""
BLOCK_SIZE = 16
"""Tokens in a block of the KV cache."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """A wish, checked field by field; `launch.plan` checks it against a model and a machine.

    model: folder, hub id, or None for the demo model. attn_gpus, ffn_gpus: attention and expert
    nodes: each has a GPU, or is a CPU process. attn_tp: ranks of each attention node, processes
    with a part of its heads, channels and vocabulary; ffn_tp: of each expert node, with a part of
    each of its experts; on GPUs each rank has one. device: what they compute on, auto for GPUs
    where there are some; attn_device, ffn_device: the same of one role, None: as `device`. gpus:
    which GPUs, by their numbers among those that CUDA_VISIBLE_DEVICES leaves, attention nodes
    first; one may be named several times; None: from the first on. batch_invariant: on GPUs, what a
    token computes doesn't depend on what shares its step. enforce_eager: no CUDA graphs are
    recorded.
    max_attn_gpus, max_ffn_gpus: how many there may be once it serves (`megainfer scale`); None:
    SCALING_LIMIT, on GPUs those to begin with. expert_replicas: how
    many experts of each layer an expert node holds beyond its share; they are there if another node
    goes, and for balancing. rebalance: seconds between two looks at whether other places for
    experts would be worth it; None: they stay. micro_batches: 1..8, or None to choose from measured
    stage times. max_model_len: tokens of prompt and answer together, None for
    the model's own limit. kv_cache_memory: bytes an attention node, None to choose. max_num_seqs:
    requests running on an attention node, over all its micro-batches. grammar_memory: bytes of
    compiled grammars that an attention node keeps. max_num_batched_tokens: rows
    of one micro-batch's step, which is also the capacity of an M2N slot. colocated: one process has
    both roles, on all cores, without messages. m2n: what carries messages between nodes: shm,
    memory that they share; dist, torch.distributed point to point (NCCL where both roles are on
    GPUs, else gloo); auto: what is fastest on one host, and dist between hosts. m2n_host: with
    dist, the IP address at which nodes listen for each other. kernels: which implementation
    computes, auto for the fastest that was built. expert_dtype: how experts' weights are kept, auto
    for dtype's own, or as the checkpoint stores them where the CPU kernels multiply that;
    attention_dtype: how the weights
    of attention nodes are, auto for dtype's own. kv_cache_dtype: of keys and values, auto for
    dtype's own. cores: whether each process has CPU cores of its own (split) or all of them
    together (shared), auto for what is faster. numa: whether cores of one socket and its memory are
    kept together where there are several (auto), or all is left to the system (off). trace: how
    many of its latest spans of work each node keeps, for `LLM.take_spans`. generation_config: where
    sampling defaults come from, `auto` (the model's folder), `vllm` (neutral ones) or a folder;
    override_generation_config: fields that replace them (see `frontend.generation_config`).
    revision: branch, tag or commit of a hub id. hf_overrides: fields that replace config.json's.
    chat_template: a file, or Jinja itself, in place of the model's own. pin_weights: whether the
    checkpoint's files are held in memory, for nodes that are started again.
    enable_return_routed_experts: whether attention nodes keep what each token's gates chose, for
    requests that ask for it.

    Raises ConfigError.
    """

    model: str | None = None
    attn_gpus: int = 1
    ffn_gpus: int = 1
    attn_tp: int = 1
    ffn_tp: int = 1
    device: str = "auto"
    attn_device: str | None = None
    ffn_device: str | None = None
    gpus: tuple[int, ...] | None = None
    batch_invariant: bool = False
    enforce_eager: bool = False
    max_attn_gpus: int | None = None
    max_ffn_gpus: int | None = None
    expert_replicas: int = 0
    rebalance: float | None = None
    micro_batches: int | None = None
    max_model_len: int | None = None
    kv_cache_memory: int | None = None
    dtype: str = "auto"
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    colocated: bool = False
    m2n: str = "auto"
    m2n_host: str = "127.0.0.1"
    prefix_cache: bool = True
    pin_weights: bool = False
    grammar_memory: int = 256 * 2**20
    kernels: str = "auto"
    expert_dtype: str = "auto"
    attention_dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    cores: str = "auto"
    numa: str = "auto"
    trace: int = 0
    generation_config: str = "auto"
    override_generation_config: dict[str, Any] | None = None
    revision: str | None = None
    hf_overrides: dict[str, Any] | None = None
    chat_template: str | None = None
    enable_return_routed_experts: bool = False

    def __post_init__(self) -> None:
        for name in (
            "attn_gpus",
            "ffn_gpus",
            "attn_tp",
            "ffn_tp",
            "max_num_seqs",
            "max_num_batched_tokens",
            "grammar_memory",
        ):
            _check_positive(name, getattr(self, name))
        for name in ("max_model_len", "kv_cache_memory", "max_attn_gpus", "max_ffn_gpus"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        for name, least in (("max_attn_gpus", self.attn_gpus), ("max_ffn_gpus", self.ffn_gpus)):
            most = getattr(self, name)
            if most is not None and most < least:
                raise ConfigError(f"{_flag(name)} {most} is less than the {least} to begin with")
        if self.expert_replicas < 0:
            raise ConfigError(
                f"--expert-replicas must be at least 0 experts a layer and expert node, not "
                f"{self.expert_replicas}"
            )
        if self.rebalance is not None and not self.rebalance >= MIN_REBALANCE_SECONDS:
            raise ConfigError(
                f"--rebalance must be off or at least {MIN_REBALANCE_SECONDS:g} s, not "
                f"{self.rebalance:g}: in less too little is known of the load"
            )
        if self.trace < 0:
            raise ConfigError(f"trace must be a number of spans, at least 0, not {self.trace}")
        if self.micro_batches is not None and not 1 <= self.micro_batches <= MAX_MICRO_BATCHES:
            raise ConfigError(
                f"--micro-batches must be auto or 1 to {MAX_MICRO_BATCHES}, not "
                f"{self.micro_batches}"
            )
        if self.colocated and (self.attn_gpus, self.ffn_gpus) != (1, 1):
            raise ConfigError(
                "--colocated is one process with both roles; with it, --attn-gpus and --ffn-gpus "
                f"must be 1, not {self.attn_gpus} and {self.ffn_gpus}"
            )
        for name in ("attn_tp", "ffn_tp"):
            if self.colocated and (ranks := getattr(self, name)) > 1:
                raise ConfigError(
                    f"--colocated is one process with both roles; leave out {_flag(name)} {ranks}"
                )
        if self.colocated and self.m2n != "auto":
            raise ConfigError(
                f"--colocated is one process, which sends no messages; leave out --m2n {self.m2n}"
            )
        if self.gpus is not None:
            object.__setattr__(self, "gpus", _checked_gpus(self.gpus))
        _check_choice("device", self.device, DEVICES)
        for name in ("attn_device", "ffn_device"):
            _check_choice(name, getattr(self, name) or "auto", DEVICES)
        _check_choice("dtype", self.dtype, tuple(DTYPE_BYTES))
        _check_choice("kernels", self.kernels, KERNELS)
        _check_choice("cores", self.cores, CORES)
        _check_choice("numa", self.numa, NUMA)
        _check_choice("m2n", self.m2n, M2N)
        _check_address("m2n_host", self.m2n_host)
        _check_choice("expert_dtype", self.expert_dtype, WEIGHT_DTYPES)
        _check_choice("attention_dtype", self.attention_dtype, WEIGHT_DTYPES)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in ("auto", *choices):
        raise ConfigError(f"{_flag(name)} must be auto, {' or '.join(choices)}, not {value!r}")


def _check_address(name: str, value: str) -> None:
    try:
        address = ip_address(value)
    except ValueError:
        raise ConfigError(f"{_flag(name)} must be an IP address, not {value!r}") from None
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"{_flag(name)} must be the address of one interface, not {value!r}")


def _checked_gpus(numbers: Sequence[int]) -> tuple[int, ...]:
    if (
        isinstance(numbers, str | int)
        or not numbers
        or any(not isinstance(number, int) or number < 0 for number in numbers)
    ):
        raise ConfigError(f"--gpus must be numbers of GPUs such as 0,1, not {numbers!r}")
    return tuple(numbers)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{_flag(name)} must be a whole number of at least 1, not {value!r}")


def parse_json_object(text: str | Mapping[str, Any], flag: str) -> dict[str, Any]:
    """The object that a text spells. Raises ConfigError."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{flag} must be a JSON object, and {text!r:.80} isn't: {error}"
        ) from None
    if not isinstance(value, Mapping):
        raise ConfigError(f"{flag} must be a JSON object, not {text!r:.80}")
    return dict(value)


def parse_micro_batches(value: str | int) -> int | None:
    """`auto` (None) or a number."""
    if value == "auto":
        return None
    try:
        return int(value)
    except ValueError:
        raise ConfigError(
            f"--micro-batches must be auto or 1 to {MAX_MICRO_BATCHES}, not {value!r}"
        ) from None


def parse_rebalance(value: str | float) -> float | None:
    """`off` (None) or seconds."""
    if value == "off":
        return None
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"--rebalance must be off or seconds, not {value!r}") from None


def parse_gpus(value: str | Sequence[int]) -> tuple[int, ...]:
    """
    >>> parse_gpus("0,1,1")
    (0, 1, 1)
    """
    words = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise ConfigError(f"--gpus must be numbers of GPUs such as 0,1, not {value!r}") from None


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str, flag: str) -> int:
    """Bytes of `512MiB`, `4G`, `1_000_000`; units are those of SI and IEC, in either case.

    >>> parse_bytes("4GiB", "--kv-cache-memory")
    4294967296
    """
    match = re.fullmatch(
        r"([0-9][0-9_]{0,17}(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", str(text).strip().lower()
    )
    units = _UNITS | _BINARY_UNITS
    if match is None or match[2] not in units:
        raise ConfigError(f"{flag} must be a size such as 512MiB or 4G, not {text!r}")
    return int(float(match[1].replace("_", "")) * units[match[2]])


def format_bytes(count: int) -> str:
    """
    >>> format_bytes(1536 * 2**20)
    '1.5 GiB'
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
