"""Compute and compare fingerprints of backbones, to check that a backbone is the one a prompt was trained on.

A soft prompt is useless with another model, even one of the same shape. No error would be raised, but the output
would be bad. So a prompt records the architecture, the sizes and the embedding matrix of its backbone. The matrix is
recorded in two ways: a hash of all its bits recognises the same checkpoint in the same dtype, and a sample of rows
recognises the same checkpoint in another dtype or quantized.
"""

import hashlib
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..compat.torch import FSDPModule
from ..errors import PromptMismatchError
from ..sharding import whole
from .files import SavedPrompt

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 1024
SIZES = ("architecture", "vocab_size", "num_layers", "embedding_width")
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
        quantized: the quantization method of its embedding. Default: GGUF for a backbone from a GGUF file, else None.
            Only GGUF quantizes the embedding; it is dequantized on loading.
    """
    text_config = backbone.config.get_text_config()
    embed = backbone.get_input_embeddings()
    values = {
        # `fully_shard` adds its own class first.
        "architecture": next(c.__name__ for c in type(backbone).__mro__ if not issubclass(c, FSDPModule)),
        "vocab_size": embed.num_embeddings,
        "num_layers": getattr(text_config, "num_hidden_layers", None),
        "embedding_width": embed.embedding_dim,
    }
    with whole(embed):
        if embed.weight.is_meta:
            return values
        values["embedding"] = {
            "dtype": str(embed.weight.dtype).removeprefix("torch."),
            "quantized": quantized or ("gguf" if quantization(backbone) == "gguf" else None),
            "hash": embedding_hash(embed.weight),
            "sample": [[float(f"{x:.6g}") for x in row] for row in _sample(embed).tolist()],
        }
    return values


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


def check_match(saved: SavedPrompt, width: int, fingerprint: dict[str, Any], ignore_mismatch: bool) -> None:
    """Raise PromptMismatchError if the prompt was trained on another backbone.

    Args:
        saved: the prompt.
        width: the width of the backbone's embeddings.
        fingerprint: the backbone's.
        ignore_mismatch: only warn about another backbone. Another width is an error all the same.
    """
    name = saved.backbone["name_or_path"] or "another backbone"
    advice = f"The prompt was trained on {name}; load that one."
    if saved.vectors.shape[1] != width:
        raise PromptMismatchError(
            f"{saved.source} holds vectors of width {saved.vectors.shape[1]}, and this backbone's embeddings have "
            f"{width}. {advice}"
        )
    different = differences(saved.backbone, fingerprint)
    if different:
        message = f"{saved.source} is not a prompt of this backbone: {'; '.join(different)}. {advice}"
        if not ignore_mismatch:
            raise PromptMismatchError(f"{message} Or give ignore_mismatch=True.")
        logger.warning(message)


def differences(recorded: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """Describe the differences between two fingerprints. Fields that one of them lacks are not compared.

    Args:
        recorded: the fingerprint in the prompt's files.
        present: the fingerprint of the present backbone.
    """
    pairs = {name: (recorded.get(name), present.get(name)) for name in SIZES}
    different = [
        f"{name} is {there} there and {here} here"
        for name, (there, here) in pairs.items()
        if None not in (there, here) and there != here
    ]
    if different or not recorded.get("embedding") or not present.get("embedding"):
        return different
    error, tolerance = _embedding_error(recorded["embedding"], present["embedding"])
    if error > tolerance:
        return [f"the embedding matrix differs (by {error:.1e} of its norm; {tolerance:.1e} would be rounding)"]
    return []


def _embedding_error(recorded: dict[str, Any], present: dict[str, Any]) -> tuple[float, float]:
    """Return the relative error between two embedding matrices, and the error that rounding may cause."""
    if recorded["hash"] is not None and recorded["hash"] == present["hash"]:
        return 0.0, 0.0
    there, here = torch.tensor(recorded["sample"]), torch.tensor(present["sample"])
    if there.shape != here.shape:
        return float("inf"), 0.0
    error = float((there - here).norm() / there.norm().clamp(min=1e-12))
    # Comparisons with NaN are False. Treat NaN as infinity, so that a non-finite sample matches nothing.
    error = error if error == error else float("inf")
    if recorded["quantized"] or present["quantized"]:
        return error, QUANTIZED_TOLERANCE
    if recorded["dtype"] != present["dtype"]:
        return error, max(_rounding(recorded["dtype"]), _rounding(present["dtype"]))
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
