"""What is read from, and done to, the frozen model behind a prompt."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationMethod


def turn_off_dropout(backbone: PreTrainedModel) -> None:
    """Sets every dropout probability of a model to 0, in its modules and in what they read from the config.

    The model can then stay in train mode (which activation checkpointing asks for) and still be deterministic.
    """
    holders: list[Any] = [*backbone.modules(), backbone.config, backbone.config.get_text_config()]
    for holder in holders:
        if isinstance(holder, nn.modules.dropout._DropoutNd):
            holder.p = 0.0
        for name, value in list(vars(holder).items()):
            if "drop" in name and isinstance(value, float):
                setattr(holder, name, 0.0)


def forget_gguf(backbone: PreTrainedModel) -> None:
    """Takes the mark of a quantized model off a backbone that was loaded from a GGUF file.

    Its weights are dequantized as they are loaded, and Trainer refuses a model that is marked so.
    """
    method = getattr(getattr(backbone.config, "quantization_config", None), "quant_method", None)
    if method != QuantizationMethod.GGUF:
        return
    del backbone.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(backbone).pop(name, None)


def describe_backbone(backbone: PreTrainedModel, revision: str | None = None) -> dict[str, Any]:
    """What a prompt says of the backbone that it was trained on."""
    text_config = backbone.config.get_text_config()
    embed = backbone.get_input_embeddings()
    return {
        "name_or_path": backbone.name_or_path or None,
        "revision": revision or getattr(backbone.config, "_commit_hash", None),
        "architecture": type(backbone).__name__,
        "vocab_size": embed.num_embeddings,
        "num_layers": getattr(text_config, "num_hidden_layers", None),
        "embedding_width": embed.embedding_dim,
    }


def max_positions(backbone: PreTrainedModel) -> int | None:
    """How many positions the backbone's input may have, None where it has no such limit (T5, ALiBi, recurrence)."""
    config = backbone.config.get_text_config()
    if getattr(config, "alibi", False) or hasattr(config, "relative_attention_num_buckets"):
        return None
    return getattr(config, "max_position_embeddings", None)
