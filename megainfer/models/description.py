"""A model in words: its axes, as `megainfer models FOLDER` prints them. Pure: no torch."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import prod

from megainfer.config import format_bytes
from megainfer.models.quantization import Codes, QuantizationSpec
from megainfer.models.sources import attention_sources, expert_sources
from megainfer.models.spec import (
    Activation,
    ActivationSpec,
    AttentionSpec,
    DeltaNetSpec,
    DenseSpec,
    GroupScore,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlaSpec,
    ModelSpec,
    MoESpec,
    NormKind,
    NtkScaling,
    QkNorm,
    RopeSpec,
    RouterScore,
    RouterSpec,
    YarnScaling,
)
from megainfer.models.stored import Source

Line = tuple[str, str]
"""A label and what is said under it."""


def describe_model(spec: ModelSpec, quantization: QuantizationSpec | None) -> list[Line]:
    """Everything that tells this model from another, a line or more an axis.

    quantization: of its weights on disk.
    """
    return [
        ("architecture", spec.architecture),
        ("parameters", _parameters(spec)),
        ("hidden size", f"{spec.hidden_size}, vocabulary {spec.vocab_size}"),
        ("context", f"{spec.max_position} tokens"),
        *_by_kind("attention", [_attention(layer) for layer in spec.layers]),
        *_by_kind("feed-forward", [_ffn(layer) for layer in spec.layers]),
        *_by_kind("router", [_router_of(layer) for layer in spec.layers]),
        ("norm", _norm(spec)),
        *_multipliers(spec),
        ("KV cache", f"{spec.kv_bytes_per_token(1)} values a token"),
        *_states(spec),
        ("stored as", _stored(spec, quantization)),
        ("end tokens", ", ".join(map(str, spec.eos_token_ids)) or "none"),
    ]


def _stored(spec: ModelSpec, quantization: QuantizationSpec | None) -> str:
    if quantization is None:
        return spec.dtype
    own = quantization.codes is Codes.GGUF
    return str(quantization) if own else f"{quantization}, others {spec.dtype}"


def _states(spec: ModelSpec) -> Iterator[Line]:
    if spec.is_recurrent:
        yield "states", f"{format_bytes(spec.state_bytes)} a running request"


def _by_kind(label: str, of_layers: Sequence[str]) -> Iterator[Line]:
    """A line for each different text, with the layers that it is about."""
    for text in dict.fromkeys(of_layers):
        if text:
            layers = [i for i, own in enumerate(of_layers) if own == text]
            everywhere = len(layers) == len(of_layers)
            yield label, text if everywhere else f"{text} (layers {_ranges(layers)})"


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, neighbours as one range.

    >>> _ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in run] for _, run in runs]
    texts = [f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    if len(texts) > 4:
        return f"{', '.join(texts[:3])}, ... {texts[-1]}: {len(numbers)} of them"
    return ", ".join(texts)


def _parameters(spec: ModelSpec) -> str:
    """All of them, and those that one token meets."""
    attention = _count(attention_sources(spec))
    expert = _count(expert_sources(spec, dict.fromkeys(spec.moe_layers, (0,))))
    everything = attention + expert * spec.num_experts
    return f"{_short(everything)}, {_short(attention + expert * spec.top_k)} active a token"


def _count(sources: Iterable[Source]) -> int:
    return sum(prod(source.shape) for source in sources)


def _short(count: int) -> str:
    """
    >>> _short(46_702_792_704), _short(747_000)
    ('46.7 B', '0.747 M')
    """
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _attention(layer: LayerSpec) -> str:
    attention = layer.attention
    if isinstance(attention, MlaSpec):
        return _joined(
            f"latent (MLA), {attention.num_heads} heads over {attention.kv_lora_rank} + "
            f"{attention.rope_dim} values a token",
            f"queries through {attention.q_lora_rank}" if attention.q_lora_rank else None,
            f"the {attention.indexer.top_k} best positions" if attention.indexer else None,
            _rope(attention.rope),
        )
    if isinstance(attention, DeltaNetSpec):
        return _joined(
            f"recurrent (gated DeltaNet), {attention.value_heads} states of {attention.key_dim} x "
            f"{attention.value_dim}",
            f"{attention.key_heads} heads for keys",
            f"convolution over {attention.taps} tokens",
        )
    return _grouped(attention)


def _grouped(attention: AttentionSpec) -> str:
    return _joined(
        f"{attention.num_heads} heads of {attention.head_dim}, {attention.num_kv_heads} for keys",
        _qk_norm(attention),
        "biases" if attention.qkv_bias or attention.out_bias else None,
        f"window of {attention.window}" if attention.window else None,
        f"chunks of {attention.chunk}" if attention.chunk else None,
        "sinks" if attention.sinks else None,
        "output gate" if attention.gated else None,
        f"clipped at {attention.clip_qkv:g}" if attention.clip_qkv else None,
        "query temperature" if attention.temperature else None,
        "no positions" if attention.rope is None else _rope(attention.rope),
    )


def _qk_norm(attention: AttentionSpec) -> str | None:
    kinds = {
        QkNorm.HEAD: "by head",
        QkNorm.FULL: "over all heads",
        QkNorm.UNIT: "by head, without weights",
    }
    if attention.qk_norm is QkNorm.NONE:
        return None
    after = " after rotation" if attention.norm_after_rope else ""
    return f"q and k normalised {kinds[attention.qk_norm]}{after}"


def _rope(rope: RopeSpec) -> str:
    scaling = rope.scaling
    match scaling:
        case None:
            stretched = None
        case LinearScaling():
            stretched = f"linear x {scaling.factor:g}"
        case Llama3Scaling():
            stretched = f"llama3 x {scaling.factor:g}"
        case YarnScaling():
            stretched = f"yarn x {scaling.factor:g} from {scaling.original_max_position}"
        case LongRopeScaling():
            stretched = f"longrope from {scaling.original_max_position}"
        case NtkScaling():
            stretched = f"theta stretched by alpha {scaling.alpha:g}"
    return _joined(
        f"rope theta {rope.theta:g}",
        f"{rope.rotated} channels" if rope.rotated else None,
        "interleaved" if rope.interleaved else None,
        stretched,
    )


def _ffn(layer: LayerSpec) -> str:
    ffn = layer.ffn
    if isinstance(ffn, DenseSpec):
        return _joined(f"dense of {ffn.intermediate}", _activation(ffn.activation))
    return _joined(
        f"{ffn.router.num_experts} experts of {ffn.expert.intermediate}, top-{ffn.router.top_k}",
        _activation(ffn.expert.activation),
        "biases" if ffn.expert.bias else None,
        "weighted inputs" if ffn.expert.weight_on_input else None,
        _shared(ffn),
    )


def _shared(ffn: MoESpec) -> str | None:
    if ffn.shared is None:
        return None
    gate = "gated " if ffn.shared.gated else ""
    return f"a {gate}shared expert of {ffn.shared.intermediate}"


def _activation(activation: ActivationSpec) -> str:
    names = {
        Activation.SILU: "swiglu",
        Activation.GELU: "geglu",
        Activation.GELU_TANH: "geglu (tanh)",
    }
    clamp = f" clamped at {activation.limit:g}" if activation.limit is not None else ""
    return names[activation.kind] + clamp


def _router_of(layer: LayerSpec) -> str:
    return _router(layer.ffn.router) if isinstance(layer.ffn, MoESpec) else ""


def _router(router: RouterSpec) -> str:
    names = {
        RouterScore.LOGIT: "softmax of the chosen",
        RouterScore.SQRT_SOFTPLUS: "sqrt-softplus",
        RouterScore.CONSTANT: "none",
    }
    by = {GroupScore.MAX: "by their best", GroupScore.TOP2_SUM: "by their best two"}
    groups = router.groups
    return _joined(
        names.get(router.score, router.score.value),
        f"{groups.kept} of {groups.count} groups {by[groups.score]}" if groups else None,
        "bias" if router.bias else None,
        "selection bias" if router.selection_bias else None,
        "by token id" if router.hashed else None,
        "normalised" if router.normalise else None,
        f"x {router.scale:g}" if router.scale != 1 else None,
    )


def _norm(spec: ModelSpec) -> str:
    kind = {NormKind.RMS: "RMSNorm", NormKind.LAYER: "LayerNorm"}[spec.norm.kind]
    return _joined(
        kind,
        f"eps {spec.norm.eps:g}",
        "biases" if spec.norm.bias else None,
        "weights stored less 1" if spec.norm.unit_offset else None,
    )


def _multipliers(spec: ModelSpec) -> Iterator[Line]:
    own = spec.multipliers
    pairs = {"embedding": own.embedding, "residual": own.residual, "logits": own.logits}
    told = [f"{name} x {value:g}" for name, value in pairs.items() if value != 1]
    if told:
        yield "multipliers", ", ".join(told)
