"""What is read from, and done to, the frozen model behind a prompt."""

import functools
import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.quantization_config import QuantizationMethod

from ..sharding import embedded
from ..stand_ins import calling

SCALES_IDS = ("blenderbot-small", "marian", "mvp", "pegasus")
"""Models whose encoder scales what it looks up, where others' embedding modules do; given vectors must be scaled."""


def keep_differentiable(backbone: PreTrainedModel) -> None:
    """Keeps a backbone in 4 bits of bitsandbytes on a CPU one that gradients pass through.

    On a CPU with AVX-512 BF16 its first pass in eval mode packs the weights for a kernel that has no backward, and
    nothing unpacks them: training after an evaluation would go on with wrong gradients.
    """
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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
    # For the next prompt that is put in front of it.
    backbone.dequantized_from = QuantizationMethod.GGUF.value


def max_positions(backbone: PreTrainedModel) -> int | None:
    """How many positions the backbone's input may have, None where it has no such limit (T5, ALiBi, recurrence)."""
    config = backbone.config.get_text_config()
    if getattr(config, "alibi", False) or hasattr(config, "relative_attention_num_buckets"):
        return None
    return getattr(config, "max_position_embeddings", None)


def steady_positions(backbone: PreTrainedModel) -> int | None:
    """The length up to which a token's rotary position does not depend on its batch; None where it never does.

    Dynamic NTK and longrope take other frequencies as soon as one row is longer than the original context.
    """
    config = backbone.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer.
    found = [one for one in (rope, *rope.values()) if isinstance(one, dict) and "rope_type" in one]
    limits = [
        one.get("original_max_position_embeddings") or config.max_position_embeddings
        for one in found
        if one["rope_type"] in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def token_scale(backbone: PreTrainedModel) -> float:
    """What the encoder multiplies the vectors of its token ids by, and not the vectors that it is given."""
    if backbone.config.model_type not in SCALES_IDS or hasattr(backbone.get_input_embeddings(), "embed_scale"):
        return 1.0
    return backbone.get_encoder().embed_scale


def has_per_layer_inputs(backbone: PreTrainedModel) -> bool:
    """Whether every layer reads vectors of its own for each token, looked up by the token's id (Gemma 3n, Gemma 4)."""
    return bool(getattr(backbone.config.get_text_config(), "hidden_size_per_layer_input", None))


def per_layer_inputs(backbone: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Those vectors, of all layers in a row: [B, T, layers * D] for ids [B, T]."""
    return embedded(backbone.get_per_layer_input_embeddings(), input_ids)


def prepares_embeddings(backbone: PreTrainedModel, handed_on: bool) -> bool:
    """Whether a model's preparation of inputs for `generate` names embeddings; or hands on all that it gets."""
    names = inspect.signature(backbone.prepare_inputs_for_generation).parameters
    return "inputs_embeds" in names or (handed_on and "kwargs" in names)


def generating_with(backbone: PreTrainedModel, per_layer_inputs: Tensor | None) -> PreTrainedModel:
    """A model that `generate` takes embeddings for: the backbone itself, or a stand-in for it.

    `generate` hands on what the outermost `forward` names, and there Gemma 3n's is silent about per-layer vectors. And
    it refuses embeddings for models (Bamba, Falcon-H1, Nemotron-H, Zamba2) whose own preparation of inputs does not
    name them, though it hands all on.

    Args:
        backbone: of any kind.
        per_layer_inputs: [B, N, layers, D], or None.
    """
    named = prepares_embeddings(backbone, handed_on=False)
    if per_layer_inputs is None and named:
        return backbone

    @functools.wraps(backbone.forward)
    def forward(*args: Any, **kwargs: Any) -> ModelOutput:
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and per_layer_inputs is not None:
            copies = len(embeds) // len(per_layer_inputs)  # beams, or several returned sequences
            kwargs["per_layer_inputs"] = per_layer_inputs.repeat_interleave(copies, dim=0)
        return backbone(*args, **kwargs)

    def prepare(input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        return backbone.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    writer = calling(backbone, forward)
    if not named:
        vars(writer)["prepare_inputs_for_generation"] = prepare
    return writer
