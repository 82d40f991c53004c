"""Whether a backbone is the one that a prompt was trained on.

A soft prompt means nothing to another model, even to one of the same shape, and nothing would fail: its answers would
just be bad. So a prompt remembers its backbone by architecture, sizes and embedding matrix. The matrix is remembered
twice: as a hash of all its bits, for the same checkpoint in the same dtype, and as a sample of rows, for the same
checkpoint in another dtype or quantized.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ..sharding import whole

ROWS_AT_ONCE = 1024
SAMPLED_ROWS = 16
SAMPLED_COLUMNS = 16
QUANTIZED_TOLERANCE = 0.15
"""Of four-bit embeddings: sixteen levels over a block of 32 normal numbers err by about 0.09 of their norm."""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(backbone: PreTrainedModel, quantized: str | None = None) -> dict[str, Any]:
    """Architecture, sizes and embedding of a backbone, as JSON.

    Args:
        backbone: a model; sharded and offloaded embeddings are brought together for this. One on the meta device has
            no `embedding` entry.
        quantized: the method that its embedding was quantized with, if it was.
    """
    text_config = backbone.config.get_text_config()
    embed = backbone.get_input_embeddings()
    known = {
        # `fully_shard` puts a class of its own in front.
        "architecture": next(c.__name__ for c in type(backbone).__mro__ if not issubclass(c, FSDPModule)),
        "vocab_size": embed.num_embeddings,
        "num_layers": getattr(text_config, "num_hidden_layers", None),
        "embedding_width": embed.embedding_dim,
    }
    with whole(embed):
        if embed.weight.is_meta:
            return known
        known["embedding"] = {
            "dtype": str(embed.weight.dtype).removeprefix("torch."),
            "quantized": quantized,
            "hash": embedding_hash(embed.weight),
            "sample": [[float(f"{x:.6g}") for x in row] for row in _sample(embed).tolist()],
        }
    return known


def backbone_fingerprint(backbone: PreTrainedModel) -> dict[str, Any]:
    """The fingerprint of a backbone as it was loaded."""
    # Other methods than GGUF, which is dequantized on loading, leave the embedding as it is.
    method = quantization(backbone)
    return fingerprint(backbone, method if method == "gguf" else None)


def embedding_hash(weight: Tensor) -> str | None:
    """A hash of a matrix's bits, the same on every device; None for a dtype without plain bits.

    Each row is summed as whole numbers, which is exact in any order, and the sums are hashed: a gigabyte is read once.
    """
    if not weight.dtype.is_floating_point or type(weight) not in (Tensor, nn.Parameter):
        return None
    bits = weight.detach().contiguous().view(BITS[weight.element_size()])
    # In pieces, because torch widens what it sums to 64 bits first.
    sums = torch.cat([piece.sum(dim=1, dtype=torch.int64) for piece in bits.split(ROWS_AT_ONCE)])
    return hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()


def _sample(embed: nn.Embedding) -> Tensor:
    """[16, 16] fp32, of rows spread over the vocabulary; by the module, which knows how to read quantized rows."""
    rows = torch.arange(1, 2 * SAMPLED_ROWS, 2, device=embed.weight.device) * embed.num_embeddings
    return embed.forward(rows // (2 * SAMPLED_ROWS))[:, :SAMPLED_COLUMNS].float().cpu()


def differences(known: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words; what either does not tell is not compared.

    Args:
        known: the prompt's.
        found: the backbone's at hand.
    """
    names = ("architecture", "vocab_size", "num_layers", "embedding_width")
    different = [
        f"{name} is {known[name]} there and {found[name]} here"
        for name in names
        if known.get(name) is not None and found.get(name) is not None and known[name] != found[name]
    ]
    if different or not known.get("embedding") or not found.get("embedding"):
        return different
    error, tolerance = _embedding_error(known["embedding"], found["embedding"])
    if error > tolerance:
        return [f"the embedding matrix differs (by {error:.1e} of its norm; {tolerance:.1e} would be rounding)"]
    return []


def _embedding_error(known: dict[str, Any], found: dict[str, Any]) -> tuple[float, float]:
    """How far two embedding matrices are apart, and how far the same one may be from itself."""
    if known["hash"] is not None and known["hash"] == found["hash"]:
        return 0.0, 0.0
    there, here = torch.tensor(known["sample"]), torch.tensor(found["sample"])
    if there.shape != here.shape:
        return float("inf"), 0.0
    error = float((there - here).norm() / there.norm().clamp(min=1e-12))
    # NaN compares as False with everything; a sample that is not finite matches nothing.
    error = error if error == error else float("inf")
    if known["quantized"] or found["quantized"]:
        return error, QUANTIZED_TOLERANCE
    if known["dtype"] != found["dtype"]:
        return error, max(_rounding(known["dtype"]), _rounding(found["dtype"]))
    # The same dtype, and other bits: another checkpoint, however near (a fine-tuned one moves its embeddings little).
    return max(error, 1e-6), 0.0


def _rounding(dtype: str) -> float:
    kind = getattr(torch, dtype, None)
    floating = isinstance(kind, torch.dtype) and kind.is_floating_point
    return torch.finfo(kind).eps if floating else QUANTIZED_TOLERANCE


def quantization(backbone: PreTrainedModel) -> str | None:
    """The method by which a backbone's weights were quantized, None where they were not."""
    method = getattr(getattr(backbone.config, "quantization_config", None), "quant_method", None)
    if method is None:
        return getattr(backbone, "dequantized_from", None)
    return str(getattr(method, "value", method))
