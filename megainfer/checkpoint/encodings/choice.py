"""Which encoding a weight has: what is on disk decides, and config.json must not contradict it."""

from megainfer.checkpoint.encodings.awq import awq
from megainfer.checkpoint.encodings.blocks import blocks
from megainfer.checkpoint.encodings.encoding import Encoding
from megainfer.checkpoint.encodings.gptq import gptq
from megainfer.checkpoint.encodings.mxfp4 import mxfp4
from megainfer.checkpoint.encodings.packed import packed
from megainfer.checkpoint.encodings.plain import Plain, plain
from megainfer.checkpoint.encodings.scaled import scaled, scales_of
from megainfer.checkpoint.headers import StoredTensor, TensorHeaders
from megainfer.gguf.kinds import BLOCK_KINDS
from megainfer.models.quantization import Codes, QuantizationSpec
from megainfer.models.stored import Source


def encoding_of(
    files: TensorHeaders, source: Source, quantization: QuantizationSpec | None
) -> Encoding:
    """How this weight is stored.

    Raises CheckpointError naming the tensor that is missing or misshapen, that is stored in
    another format than config.json says, or as it is although config.json says quantised.
    """
    # Experts in a row of one matrix are quantised in no format that we know.
    none = quantization is None or quantization.codes is Codes.GGUF
    if none or len(source.entry_shape) != 2 or source.entries is not None:
        return _as_it_says(files.find(source.name), source)
    assert quantization is not None
    return _quantised(files, source, quantization) or _kept(files, source, quantization)


def _as_it_says(stored: StoredTensor, source: Source) -> Encoding:
    """A tensor of a GGUF file says for itself what its codes mean."""
    is_blocks = stored.gguf and stored.kind in BLOCK_KINDS
    return blocks(stored, source) if is_blocks else plain(stored, source)


def _quantised(
    files: TensorHeaders, source: Source, quantization: QuantizationSpec
) -> Encoding | None:
    """None where the tensors of a quantised weight are not there."""
    name = source.name
    scales = scales_of(files, name)
    match quantization.codes:
        case Codes.FP8 | Codes.INT8 if name in files and scales is not None:
            return scaled(files, scales, source, quantization)
        case Codes.PACKED if f"{name}_packed" in files:
            return packed(files, source, quantization)
        case Codes.AWQ if f"{name.removesuffix('.weight')}.qweight" in files:
            return awq(files, source, quantization)
        case Codes.GPTQ if f"{name.removesuffix('.weight')}.qweight" in files:
            return gptq(files, source, quantization)
        case Codes.MXFP4 if f"{name}_blocks" in files:
            return mxfp4(files, source)
    return None


def _kept(files: TensorHeaders, source: Source, quantization: QuantizationSpec) -> Plain:
    stored = files.find(source.name)
    found = plain(stored, source)
    if quantization.quantises(source.name.removesuffix(".weight")):
        raise stored.fail(
            f"is stored as {stored.kind}, but config.json says {quantization} and does not except "
            "it; list its module there as not converted, if that is what it is"
        )
    return found
