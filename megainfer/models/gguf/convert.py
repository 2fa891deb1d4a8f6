"""config.json and generation_config.json of a GGUF model, for the readers of each family."""

import re
from collections.abc import Sequence

from megainfer.errors import ModelError
from megainfer.gguf.header import Header, TensorEntry
from megainfer.gguf.metadata import Metadata
from megainfer.models.gguf.architectures import ARCHITECTURES
from megainfer.models.gguf.names import NAMES, SPLIT_LATENT
from megainfer.models.gguf.settings import GgufModel, Json
from megainfer.models.gguf.stored import KEY, Stored
from megainfer.models.gguf.types import expert_kinds, kinds_in_words, main_kind

HARMLESS = frozenset(("vocab_size", "rope.scaling.finetuned"))
"""What is said twice, or changes nothing."""
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_TEXTS = frozenset(
    ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>", "<|return|>", "<|call|>")
)
"""Special tokens that end an answer wherever there are such, as in llama.cpp: files name only one
or two of a model's end tokens."""
CONTROL = 3
"""llama.cpp's type of special tokens."""
BLOCK = re.compile(r"blk\.(\d+)\.")


def read_config(headers: Sequence[Header]) -> Json:
    """config.json of the model in these files, the first of which has the metadata.

    Raises ModelError naming file, key and value for an architecture that isn't served, and for a
    setting that would change outputs and isn't known.
    """
    model = _model(headers)
    architecture = ARCHITECTURES[model.architecture]
    config = architecture.read_config(model)
    _refuse_unknown(model)
    kinds = kinds_in_words(model.tensors.values())
    stored = Stored(
        model.architecture,
        model.has(f"{_key_up()}.weight"),
        kinds,
        expert_kinds(model.tensors.values()),
    )
    dtype = {"F32": "float32", "F16": "float16"}.get(main_kind(model.tensors.values()), "bfloat16")
    own = {"dtype": dtype, "eos_token_id": end_tokens(model.metadata), KEY: stored.as_json()}
    return {key: value for key, value in {**config, **own}.items() if value is not None}


def _key_up() -> str:
    assert SPLIT_LATENT.kv_up_split is not None
    return SPLIT_LATENT.kv_up_split[0]


def _model(headers: Sequence[Header]) -> GgufModel:
    metadata = Metadata(headers[0].path, headers[0].metadata)
    kind = metadata.text("general.type") or "model"
    if kind != "model":
        raise metadata.fail("general.type", "but only a language model is served; name its file")
    name = metadata.text("general.architecture")
    if name is None or name not in ARCHITECTURES:
        raise metadata.fail(
            "general.architecture",
            f"which is not served from GGUF; served: {', '.join(ARCHITECTURES)}; name the model "
            "that it was made from (its page on the hub says which)",
        )
    _refuse_dense(metadata, name)
    return GgufModel(name, metadata, _tensors(headers))


def _refuse_dense(metadata: Metadata, name: str) -> None:
    if not metadata.alike(f"{name}.expert_count"):
        raise ModelError(
            f"{metadata.path} has no {name}.expert_count: it is a dense model, and of those none "
            "are served from GGUF; name the model that it was made from"
        )


def _tensors(headers: Sequence[Header]) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in found:
                raise ModelError(f"{header.path} has a tensor {tensor.name}, as a part before it")
            found[tensor.name] = tensor
    return found


def _refuse_unknown(model: GgufModel) -> None:
    """A setting that was dropped in silence would be another model."""
    prefix = f"{model.architecture}."
    for key in model.metadata.values:
        known = key in model.metadata.looked_up or key.removeprefix(prefix) in HARMLESS
        if key.startswith(prefix) and not known:
            raise model.metadata.fail(key, "a setting that isn't known here and might matter")


def end_tokens(metadata: Metadata) -> list[int] | None:
    """Those that the file names, then special ones whose texts say it; None where there are none.

    Raises ModelError for one that is no token of the vocabulary.
    """
    tokens = metadata.texts("tokenizer.ggml.tokens")
    types = metadata.numbers("tokenizer.ggml.token_type")
    named = [metadata.whole(f"tokenizer.ggml.{name}") for name in ENDS]
    ends = [token for token in named if token is not None]
    if wrong := [token for token in ends if tokens and not 0 <= token < len(tokens)]:
        raise ModelError(f"{metadata.path} ends texts with token {wrong[0]}, of {len(tokens)}")
    ends += [
        token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == CONTROL and text in END_TEXTS
    ]
    return list(dict.fromkeys(ends)) or None


def unread_tensor(headers: Sequence[Header], read: frozenset[str], layers: int) -> str | None:
    """The name of a tensor that the model's spec has no place for: left out, it would be another
    model. None where there is no such one.

    read: the names that the spec asks for. layers: of the spec; what belongs to later ones predicts
    several tokens at once.
    """
    name = _model(headers).architecture
    for tensor in _tensors(headers):
        block = BLOCK.match(tensor)
        later = block is not None and int(block[1]) >= layers
        unread = any(part in tensor for part in ARCHITECTURES[name].unread)
        if tensor not in read and not later and not unread and tensor != NAMES.lm_head:
            return tensor
    return None
