"""Read a dense Llama model from a GGUF file, by the names and layouts of Hugging Face.

Letters: H heads, D hidden, F FFN intermediate, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megainfer.errors import CheckpointError, ModelError

FloatArray = npt.NDArray[np.float32]

_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",  # absent where the embedding is tied
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class LlamaShape:
    """The numbers that a Llama config.json needs."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    rms_eps: float
    tied: bool


class LlamaGguf:
    """An open GGUF file of architecture `llama`; tensors are dequantised one at a time."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelError` without the `gguf` package, or for a model that isn't plain Llama."""
        self._reader = _open(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self.metadata("general.architecture")
        if architecture != "llama":
            raise ModelError(f"{path.name} is of architecture {architecture!r}, expected 'llama'")
        self.shape = self._read_shape()
        self._refuse_unknown_tensors(path)

    def metadata(self, key: str) -> Any:
        """The value of a metadata key; `ModelError` if the file lacks it."""
        field = self._reader.get_field(key)
        if field is None:
            raise ModelError(f"the GGUF file has no metadata key {key!r}")
        return field.contents()

    def layer(self, index: int, part: str) -> FloatArray:
        """`model.layers.{index}.{part}.weight` as float32; `part` as in `self_attn.q_proj`."""
        weight = self._dequantised(_layer_tensor(index, part))
        if part == "self_attn.q_proj":
            return unpermute(weight, self.shape.heads)
        if part == "self_attn.k_proj":
            return unpermute(weight, self.shape.kv_heads)
        return weight

    def outside_layers(self) -> dict[str, FloatArray]:
        """Embedding [V, D], last norm [D] and, unless tied, `lm_head` [V, D], as float32."""
        return {
            name: self._dequantised(theirs)
            for name, theirs in _OUTSIDE_LAYERS.items()
            if theirs in self._tensors or name != "lm_head.weight"
        }

    def _dequantised(self, name: str) -> FloatArray:
        from gguf.quants import dequantize

        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"the GGUF file has no tensor {name!r}")
        # A copy, since a float32 tensor comes as a read-only view of the mapped file.
        return np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    def _read_shape(self) -> LlamaShape:
        hidden = int(self.metadata("llama.embedding_length"))
        heads = int(self.metadata("llama.attention.head_count"))
        return LlamaShape(
            layers=int(self.metadata("llama.block_count")),
            hidden=hidden,
            ffn=int(self.metadata("llama.feed_forward_length")),
            heads=heads,
            kv_heads=int(self.metadata("llama.attention.head_count_kv")),
            head_dim=hidden // heads,
            vocab=int(self.metadata("llama.vocab_size")),
            context=int(self.metadata("llama.context_length")),
            rope_theta=_shortest_float(self.metadata("llama.rope.freq_base")),
            rms_eps=_shortest_float(self.metadata("llama.attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in self._tensors,
        )

    def _refuse_unknown_tensors(self, path: Path) -> None:
        """A bias or a rope factor that we dropped in silence would be another model."""
        known = {_layer_tensor(i, part) for i in range(self.shape.layers) for part in _IN_LAYER}
        known |= set(_OUTSIDE_LAYERS.values())
        unknown = sorted(self._tensors.keys() - known)
        if unknown:
            raise ModelError(f"{path.name} has tensors that plain Llama lacks: {unknown[:3]}")


def unpermute(weight: FloatArray, heads: int) -> FloatArray:
    """Put the rows of a q or k projection [H * head_dim, D] back as Hugging Face has them.

    Rotary pairs row i of a head with row i + head_dim / 2 in Hugging Face's layout, and with its
    neighbour in llama.cpp's; llama.cpp's converter interleaves the two halves, and this undoes it.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _layer_tensor(index: int, part: str) -> str:
    return f"blk.{index}.{_IN_LAYER[part]}.weight"


def _shortest_float(value: float) -> float:
    """A GGUF stores float32; give back the decimal that was meant: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ModelError(
            "making the demo model needs the package gguf: pip install 'megainfer[demo]'"
        ) from error
    return GGUFReader(path)
