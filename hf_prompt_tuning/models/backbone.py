"""Read properties of the frozen model behind a prompt, and prepare it for training and generation."""

import functools
import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.quantization_config import QuantizationMethod

from ..stand_ins import calling


def keep_differentiable(backbone: PreTrainedModel) -> None:
    """Keep a bitsandbytes 4-bit backbone differentiable on a CPU.

    On a CPU with AVX-512 BF16, the first pass in eval mode packs the weights for a kernel that has no backward pass.
    Nothing unpacks them, so training after an evaluation would continue with wrong gradients.
    """
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def forget_gguf(backbone: PreTrainedModel) -> None:
    """Remove the quantization mark from a backbone that was loaded from a GGUF file.

    The weights are dequantized while loading, and Trainer refuses a model with this mark.
    """
    method = getattr(getattr(backbone.config, "quantization_config", None), "quant_method", None)
    if method != QuantizationMethod.GGUF:
        return
    del backbone.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(backbone).pop(name, None)
    # Needed when another prompt is put in front of this backbone.
    backbone.dequantized_from = QuantizationMethod.GGUF.value


def prepares_embeddings(backbone: PreTrainedModel, handed_on: bool) -> bool:
    """Tell whether the model's `prepare_inputs_for_generation` takes embeddings.

    Args:
        backbone: the model.
        handed_on: also accept a method that passes on all its keyword arguments.
    """
    names = inspect.signature(backbone.prepare_inputs_for_generation).parameters
    return "inputs_embeds" in names or (handed_on and "kwargs" in names)


def generating_with(backbone: PreTrainedModel, per_layer_inputs: Tensor | None) -> PreTrainedModel:
    """Return a model whose `generate` takes embeddings: the backbone itself, or a stand-in for it.

    `generate` passes on only the arguments that the outermost `forward` names, and Gemma 3n's does not name the
    per-layer vectors. `generate` also refuses embeddings for models (Bamba, Falcon-H1, Nemotron-H, Zamba2) whose
    `prepare_inputs_for_generation` does not name them, although it passes them on.

    Args:
        backbone: any model.
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
