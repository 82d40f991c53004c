"""Compute and compare fingerprints of backbones, to check that a backbone is the one a prompt was trained on.

A soft prompt is useless with another model, even one of the same shape. No error would be raised, but the output
would be bad. So a prompt records the architecture, the sizes and the embedding matrix of its backbone. The matrix is
recorded in two ways: a hash of all its bits recognises the same checkpoint in the same dtype, and a sample of rows
recognises the same checkpoint in another dtype or quantized.
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
"""The largest relative error accepted for a quantized embedding.

With four bits (16 levels), a block of 32 normally distributed numbers has an error of about 0.09 of its norm.
"""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(backbone: PreTrainedModel, quantized: str | None = None) -> dict[str, Any]:
    """Return the architecture, sizes and embedding of a backbone as JSON values.

    Args:
        backbone: a model. Sharded and offloaded embeddings are gathered for this. An embedding on the meta device
            gives no `embedding` entry.
        quantized: the quantization method of its embedding, or None.
    """
    text_config = backbone.config.get_text_config()
    embed = backbone.get_input_embeddings()
    known = {
        # `fully_shard` adds its own class first.
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
    """Return the fingerprint of a loaded backbone."""
    # Only GGUF quantizes the embedding; it is dequantized on loading. Other methods do not change it.
    method = quantization(backbone)
    return fingerprint(backbone, method if method == "gguf" else None)


def embedding_hash(weight: Tensor) -> str | None:
    """Return a hash of a matrix's bits, the same on every device, or None for a dtype without plain bits.

    Sum the bits of each row as integers, which is exact in any order, and hash the sums. So a matrix of a gigabyte is
    read only once.
    """
    if not weight.dtype.is_floating_point or type(weight) not in (Tensor, nn.Parameter):
        return None
    bits = weight.detach().contiguous().view(BITS[weight.element_size()])
    # Sum in pieces, because torch first converts the numbers to 64 bits.
    sums = torch.cat([piece.sum(dim=1, dtype=torch.int64) for piece in bits.split(ROWS_AT_ONCE)])
    return hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()


def _sample(embed: nn.Embedding) -> Tensor:
    """Return a sample [16, 16] fp32 of rows spread over the vocabulary. The module can read quantized rows, too."""
    rows = torch.arange(1, 2 * SAMPLED_ROWS, 2, device=embed.weight.device) * embed.num_embeddings
    return embed.forward(rows // (2 * SAMPLED_ROWS))[:, :SAMPLED_COLUMNS].float().cpu()


def differences(known: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Describe the differences between two fingerprints. Fields that one of them lacks are not compared.

    Args:
        known: the fingerprint that the prompt recorded.
        found: the fingerprint of the present backbone.
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
    """Return the relative error between two embedding matrices, and the error that rounding may cause."""
    if known["hash"] is not None and known["hash"] == found["hash"]:
        return 0.0, 0.0
    there, here = torch.tensor(known["sample"]), torch.tensor(found["sample"])
    if there.shape != here.shape:
        return float("inf"), 0.0
    error = float((there - here).norm() / there.norm().clamp(min=1e-12))
    # Comparisons with NaN are False. Treat NaN as infinity, so that a non-finite sample matches nothing.
    error = error if error == error else float("inf")
    if known["quantized"] or found["quantized"]:
        return error, QUANTIZED_TOLERANCE
    if known["dtype"] != found["dtype"]:
        return error, max(_rounding(known["dtype"]), _rounding(found["dtype"]))
    # Same dtype but other bits: another checkpoint, even if close (fine-tuning changes embeddings only a little).
    return max(error, 1e-6), 0.0


def _rounding(dtype: str) -> float:
    kind = getattr(torch, dtype, None)
    floating = isinstance(kind, torch.dtype) and kind.is_floating_point
    return torch.finfo(kind).eps if floating else QUANTIZED_TOLERANCE


def quantization(backbone: PreTrainedModel) -> str | None:
    """Return the quantization method of a backbone's weights, or None if they are not quantized."""
    method = getattr(getattr(backbone.config, "quantization_config", None), "quant_method", None)
    if method is None:
        return getattr(backbone, "dequantized_from", None)
    return str(getattr(method, "value", method))
