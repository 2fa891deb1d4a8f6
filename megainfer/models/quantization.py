"""How config.json says that weights are quantised. Pure: no torch.

Weights are dequantised as they are read, to float32; where they are kept in a format that has the
same values, these are quantised to what they were (`QuantizationSpec.kept_as`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from megainfer.gguf.kinds import BLOCK_KINDS
from megainfer.models.config import Config, read_json
from megainfer.models.gguf.stored import Stored

BLOCK_OF_MXFP4 = 32
"""Weights that share an exponent, by the format's definition (OCP Microscaling Formats)."""

KEPT_GROUPS = {
    "mxfp4": 32,
    "int4": 32,
    "int4_128": 128,
    "int8_32": 32,
    "fp8": 128,
    "fp8_channel": 128,
}
"""Inputs that share a scale in what the CPU kernels keep, by `QuantizationSpec.kept_as`."""

GGUF_GROUP = 32
"""Inputs of which all of GGUF's blocks have whole numbers."""
EXACT: Mapping[str, tuple[str, ...]] = {
    "mxfp4": ("MXFP4",),
    "int4": ("Q4_0",),
    "int8_32": ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL"),
}
"""GGUF's types whose values CPU kernels keep bit for bit, by what they are then kept as."""

KEPT_MODULES = frozenset(
    ("lm_head", "embed_tokens", "wte", "gate", "router", "shared_expert_gate", "weights_proj")
)
"""Names within the names of modules that quantisers leave as they are without listing them: heads,
embeddings, routers, and the head weights of DeepSeek-V3.2's indexer."""


class Codes(StrEnum):
    """How the codes of one weight are stored, each with the values of `QuantizationSpec.bits`."""

    FP8 = "fp8"  # 8: float8_e4m3fn, one an element
    INT8 = "int8"  # 8: one an element
    PACKED = "packed"  # 4, 8: in words of 32 bits, along the inputs (compressed-tensors)
    AWQ = "awq"  # 4: in words of 32 bits, along the outputs
    GPTQ = "gptq"  # 4, 8: in words of 32 bits, along the inputs, transposed
    MXFP4 = "mxfp4"  # 4: float4_e2m1fn, two a byte
    GGUF = "gguf"  # 0: each tensor in a type of its own


@dataclass(frozen=True, slots=True)
class QuantizationSpec:
    """The formats of one checkpoint's quantised weights.

    method: quant_method of config.json. block: how many (outputs, inputs) share a scale; None: all.
    symmetric: there are no zero points. targets, kept: regular expressions for names of modules,
    from their beginning; those that match a target and nothing of `kept` are quantised. reordered:
    a table says which inputs share a scale. zero_offset: what stored zero points lack. kinds: of
    a GGUF file, which types its tensors have, in words; expert_kinds: those of its routed experts.
    """

    method: str
    codes: Codes
    bits: int
    block: tuple[int | None, int | None]
    symmetric: bool = True
    targets: tuple[str, ...] = ("",)
    kept: tuple[str, ...] = ()
    reordered: bool = False
    zero_offset: int = 0
    kinds: str = ""
    expert_kinds: tuple[str, ...] = ()

    def quantises(self, module: str) -> bool:
        """Whether the weights of this module have to be quantised."""
        if not KEPT_MODULES.isdisjoint(module.split(".")):
            return False
        wanted = any(re.match(target, module) for target in self.targets)
        return wanted and not any(re.match(kept, module) for kept in self.kept)

    @property
    def kept_as(self) -> str | None:
        """The one of `config.WEIGHT_DTYPES` by which CPU kernels keep a weight bit for bit; None
        without one. int4's scales must have no more than 16 bits of mantissa, as float16's and
        bfloat16's don't. Of a GGUF file: of its experts; where there is none but all are blocks of
        codes, the one that is nearest."""
        if self.codes is Codes.GGUF:
            return kept_blocks(self.expert_kinds)
        outputs, inputs = self.block
        if self.codes is Codes.MXFP4:
            return "mxfp4"
        if self.codes is Codes.FP8 and (inputs is None or inputs % 128 == 0):
            return "fp8_channel" if self.block == (1, None) else "fp8"
        if self.bits != 4 or outputs != 1 or self.reordered:
            return None
        if inputs is None or inputs % 128 == 0:
            return "int4_128"
        return "int4" if inputs % 32 == 0 else None

    def keeps_parts(self, inputs: int) -> bool:
        """Whether `kept_as` holds for parts of a weight that have so many of its inputs each: none
        of the groups that the kernels count from a part's first input has inputs of two scales."""
        kept = self.kept_as
        return kept is not None and (self.block[1] is None or inputs % KEPT_GROUPS[kept] == 0)

    @property
    def requantised(self) -> tuple[str, ...]:
        """Types of a GGUF file's experts whose values `kept_as` rounds."""
        exact = EXACT.get(self.kept_as or "", ())
        return tuple(kind for kind in self.expert_kinds if kind not in exact)

    def __str__(self) -> str:
        """As `fp8 (128 x 128 blocks)`."""
        if self.codes is Codes.GGUF:
            return f"{self.method}: {self.kinds}"
        kind = {Codes.FP8: "fp8", Codes.MXFP4: "mxfp4"}.get(self.codes, f"int{self.bits}")
        name = kind if kind == self.method else f"{self.method} {kind}"
        return f"{name} ({self._sharing()})"

    def _sharing(self) -> str:
        match self.block:
            case (None, None):
                return "a scale a tensor"
            case (1, None):
                return "a scale a channel"
            case (1, inputs):
                return f"groups of {inputs}"
            case (outputs, inputs):
                return f"{outputs} x {inputs} blocks"


def kept_blocks(kinds: Sequence[str]) -> str | None:
    """What weights of these types of GGUF's are kept as: what has all of their values, else what is
    nearest to them and no wider than eight bits and a scale; None where some are plain numbers.

    >>> kept_blocks(["Q4_0"]), kept_blocks(["Q4_K", "Q6_K"]), kept_blocks(["F16", "Q8_0"])
    ('int4', 'int8_32', None)
    """
    if not kinds or not BLOCK_KINDS.issuperset(kinds):
        return None
    return next((name for name, its in EXACT.items() if set(kinds) <= set(its)), "int8_32")


def quantization_of(folder: Path) -> QuantizationSpec | None:
    """As `read_quantization`; a folder without config.json says nothing."""
    path = folder / "config.json"
    return read_quantization(Config(path, read_json(path))) if path.exists() else None


def read_quantization(config: Config) -> QuantizationSpec | None:
    """What config.json's quantization_config says; None without one.

    Raises ModelError naming key and value for a method or a setting that is not supported.
    """
    if (stored := Stored.of(config)) is not None:
        return QuantizationSpec(
            "gguf",
            Codes.GGUF,
            0,
            (1, GGUF_GROUP),
            kinds=stored.kinds,
            expert_kinds=stored.expert_kinds,
        )
    for holder in (config, Config(config.path, config.mapping("text_config"))):
        for key in ("quantization_config", "compression_config"):
            if holder.mapping(key):
                return _read(Config(config.path, holder.mapping(key)))
    return None


def _read(settings: Config) -> QuantizationSpec:
    method = settings.values.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        raise settings.fail(
            "quant_method",
            f"which is not supported; supported: {', '.join(_METHODS)}, and no quantisation",
        )
    return _METHODS[method](settings)


def _read_fp8(settings: Config) -> QuantizationSpec:
    _expect(settings, "fmt", "e4m3", "float8_e4m3fn")
    return QuantizationSpec("fp8", Codes.FP8, 8, _fp8_block(settings), kept=_unconverted(settings))


def _fp8_block(settings: Config) -> tuple[int | None, int | None]:
    match settings.integers("weight_block_size"):
        case ():
            return (None, None)
        case (outputs, inputs) if outputs > 0 and inputs > 0:
            return (outputs, inputs)
        case _:
            raise settings.fail("weight_block_size", "but must be two positive integers")


def _read_fbgemm(settings: Config) -> QuantizationSpec:
    return QuantizationSpec("fbgemm_fp8", Codes.FP8, 8, (1, None), kept=_unconverted(settings))


def _read_mxfp4(settings: Config) -> QuantizationSpec:
    return QuantizationSpec(
        "mxfp4",
        Codes.MXFP4,
        4,
        (1, BLOCK_OF_MXFP4),
        targets=(r".*\bexperts\b",),
        kept=_unconverted(settings),
    )


def _read_awq(settings: Config) -> QuantizationSpec:
    _expect(settings, "version", "gemm", "GEMM")
    _expect(settings, "bits", 4)
    _expect(settings, "zero_point", True)
    group = settings.values.get("group_size", 128)
    inputs = None if group == -1 else settings.positive("group_size", default=128)
    # AutoAWQ leaves out whatever contains one of these names.
    kept = tuple(f".*{re.escape(name)}" for name in _names(settings, "modules_to_not_convert"))
    return QuantizationSpec("awq", Codes.AWQ, 4, (1, inputs), symmetric=False, kept=kept)


def _read_gptq(settings: Config) -> QuantizationSpec:
    _expect(settings, "bits", 4, 8)
    _expect(settings, "pack_dtype", "int32")
    for key in ("checkpoint_format", "format"):  # the older name of GPTQModel's
        _expect(settings, key, *_GPTQ_ZEROS)
    _expect(settings, "is_marlin_format", False)
    group = settings.values.get("group_size", 128)
    form = settings.values.get("checkpoint_format") or settings.values.get("format") or "gptq"
    targets = tuple(rf"(?:.*\.)?{re.escape(name)}$" for name in _gptq_modules(settings))
    return QuantizationSpec(
        "gptq",
        Codes.GPTQ,
        settings.positive("bits", default=4),
        (1, None if group == -1 else settings.positive("group_size", default=128)),
        symmetric=False,  # zero points are stored in any case
        targets=targets or ("",),
        kept=(*_unconverted(settings), *_gptq_exceptions(settings)),
        reordered=settings.flag("desc_act", False),
        zero_offset=_GPTQ_ZEROS[form],
    )


_GPTQ_ZEROS: Mapping[object, int] = {"gptq": 1, "gptq_v2": 0}
"""GPTQ's formats, with what their stored zero points lack."""


def _gptq_modules(settings: Config) -> Sequence[str]:
    """transformers lists the names within a layer that were quantised, in the order of doing it."""
    key = "modules_in_block_to_quantize"
    steps = settings.values.get(key) or ()
    names = [name for step in steps for name in (step if isinstance(step, list) else [step])]
    if not all(isinstance(name, str) for name in names):
        raise settings.fail(key, "but must be lists of names")
    return names


def _gptq_exceptions(settings: Config) -> Sequence[str]:
    """GPTQModel says by expressions what is quantised otherwise, or (`-:`) not at all."""
    others = settings.mapping("dynamic")
    for name in others:
        if not name.startswith("-:"):
            raise settings.fail("dynamic", f"but {name!r} has a scheme of its own; only -: may be")
    return _names(Config(settings.path, {"dynamic": [name[2:] for name in others]}), "dynamic")


def _read_compressed(settings: Config) -> QuantizationSpec:
    """compressed-tensors: groups of modules, each with its scheme; all must be alike."""
    _expect(settings, "format", *_COMPRESSED)
    if settings.mapping("transform_config"):
        raise settings.fail("transform_config", "but transformed weights are not supported")
    if settings.mapping("sparsity_config").get("format", "dense") != "dense":
        raise settings.fail("sparsity_config", "but sparse weights are not supported")
    held = Config(settings.path, settings.mapping("config_groups"))
    groups = [Config(held.path, held.mapping(name)) for name in held.values]
    schemes = {_read_scheme(group, settings) for group in groups}
    if len(schemes) != 1:
        raise settings.fail("config_groups", "but must have one scheme for all weights")
    codes, bits, block, symmetric = schemes.pop()
    targets = tuple(_target(name) for group in groups for name in _names(group, "targets"))
    kept = tuple(_target(name) for name in _names(settings, "ignore"))
    method = "compressed-tensors"
    return QuantizationSpec(method, codes, bits, block, symmetric, targets or ("",), kept)


_COMPRESSED: Mapping[object, tuple[Codes, str]] = {
    "pack-quantized": (Codes.PACKED, "int"),
    "int-quantized": (Codes.INT8, "int"),
    "float-quantized": (Codes.FP8, "float"),
    "naive-quantized": (Codes.FP8, "float"),
}
"""compressed-tensors' formats, with the type of number that they hold."""

_Scheme = tuple[Codes, int, tuple[int | None, int | None], bool]


def _read_scheme(group: Config, settings: Config) -> _Scheme:
    """What one of config_groups says of weights."""
    form = group.values.get("format") or settings.values.get("format")
    if form is None:
        raise settings.fail("format", f"but must be one of {', '.join(map(str, _COMPRESSED))}")
    own = Config(group.path, {**group.values, "format": form})
    _expect(own, "format", *_COMPRESSED)
    codes, kind = _COMPRESSED[form]
    weights = Config(group.path, group.mapping("weights"))
    if codes is Codes.FP8 and weights.values.get("type") == "int":  # "naive" takes both
        codes, kind = Codes.INT8, "int"
    _expect(weights, "type", kind)
    _expect(weights, "num_bits", *((4, 8) if codes in (Codes.PACKED, Codes.INT8) else (8,)))
    symmetric = weights.flag("symmetric", True)
    return codes, weights.positive("num_bits", default=8), _compressed_block(weights), symmetric


def _compressed_block(weights: Config) -> tuple[int | None, int | None]:
    match weights.values.get("strategy"):
        case "tensor":
            return (None, None)
        case "channel":
            return (1, None)
        case "group":
            return (1, weights.positive("group_size"))
        case "block":
            return _block_structure(weights)
    raise weights.fail(
        "strategy", "which is not supported; supported: tensor, channel, group, block"
    )


def _block_structure(weights: Config) -> tuple[int, int]:
    match weights.integers("block_structure"):
        case (outputs, inputs) if outputs > 0 and inputs > 0:
            return (outputs, inputs)
    raise weights.fail("block_structure", "but must be two positive integers")


def _target(name: str) -> str:
    """compressed-tensors names a module, gives an expression after `re:`, or names its class."""
    if name.startswith("re:"):
        return name.removeprefix("re:")
    return "" if name == "Linear" else f"{re.escape(name)}$"


def _unconverted(settings: Config) -> tuple[str, ...]:
    """transformers leaves out modules that a name or an expression begins, up to a dot, or ends."""
    key = "modules_to_not_convert"
    other = _names(settings, key) or _names(settings, "ignored_layers")
    return tuple(rf"(?:{name})(?:(?<=\.)|\.|$)|.*{re.escape(name)}$" for name in other)


def _names(settings: Config, key: str) -> Sequence[str]:
    names = settings.values.get(key) or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise settings.fail(key, "but must be a list of names")
    for name in names:
        try:
            re.compile(name.removeprefix("re:"))
        except re.error as error:
            raise settings.fail(key, f"where {name!r:.80} is no expression: {error}") from error
    return names


def _expect(settings: Config, key: str, *supported: object) -> None:
    """Absent is fine."""
    value = settings.values.get(key)
    if value is not None and value not in supported:
        shown = ", ".join(map(str, supported))
        raise settings.fail(key, f"which is not supported; supported: {shown}")


_METHODS: Mapping[str, Callable[[Config], QuantizationSpec]] = {
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fbgemm,
    "mxfp4": _read_mxfp4,
    "compressed-tensors": _read_compressed,
    "awq": _read_awq,
    "gptq": _read_gptq,
}
