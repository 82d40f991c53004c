"""Check that a model can be a prompt's backbone, complete a prompt's config for it, and freeze it."""

import copy
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft import PromptTuningConfig as PeftPromptTuningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat.accelerate import check_offloaded
from ..compat.transformers import GGUF
from ..errors import PromptTuningError
from ..hub.files import hub_id
from ..layouts.traits import encoder_matrix
from ..prompts.config import PromptTuningConfig
from .base_models import FEATURES, check_features_are_of_text, is_base_model
from .classifiers import check_head_reads_text, classification_task

CAUSAL, SEQ2SEQ = "CAUSAL_LM", "SEQ_2_SEQ_LM"


def check_backbone(backbone: Any, task_type: str | None = None) -> str:
    """Return the task type of a model that a prompt can be put in front of. `task_type` is the expected one, or None.

    Raise PromptTuningError if it already has a prompt or adapters, is neither a language model of transformers nor one
    with a classification head that can be read exactly, is wrapped, looks texts up in another matrix than its own, or
    has another task type.
    """
    if isinstance(backbone, PeftModel):
        raise _is_peft(backbone)
    if not isinstance(backbone, PreTrainedModel):
        raise _is_no_model(backbone)
    if any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
        raise _has_adapters(backbone, "adapters")
    name = type(backbone).__name__
    own_type = _language_task(backbone) if type(backbone).can_generate() else reading_task(backbone)
    if own_type is None:
        raise PromptTuningError(
            f"the backbone is a {name}, which neither writes text nor classifies it, nor finds answers, nor "
            "is a base model (it has a head for masks or choices, or a decoder). Load it with AutoModelForCausalLM, "
            "AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoModelForTokenClassification, "
            "AutoModelForQuestionAnswering, AutoModel or AutoModelForTextEncoding."
        )
    if task_type not in (None, own_type):
        raise PromptTuningError(
            f"task_type is {getattr(task_type, 'value', task_type)}, and {name} is a {own_type} model; "
            "leave task_type out, or load the backbone with the other Auto class."
        )
    # A head's class may pass on what it does not name (ModernBERT's for answers); its base model is what is called.
    called = backbone if own_type in (CAUSAL, SEQ2SEQ) else backbone.base_model
    if "inputs_embeds" not in inspect.signature(called.forward).parameters:
        raise PromptTuningError(f"{name} takes no inputs_embeds, by which a prompt is given; use another backbone.")
    if own_type == FEATURES:
        check_features_are_of_text(backbone)
    elif own_type not in (CAUSAL, SEQ2SEQ):
        check_head_reads_text(backbone, own_type)
    check_offloaded(backbone)
    _check_reads_its_matrix(backbone)
    return own_type


def _check_reads_its_matrix(backbone: PreTrainedModel) -> None:
    """Raise PromptTuningError if the encoder looks texts up in another embedding matrix than the backbone names."""
    named, own = backbone.get_input_embeddings().weight, encoder_matrix(backbone)
    are_plain = all(type(weight) is nn.Parameter and not weight.is_meta for weight in (named, own))
    if own is not named and are_plain and not (named.shape == own.shape and torch.equal(named.to(own.device), own)):
        raise PromptTuningError(
            f"the backbone is a {type(backbone).__name__} whose encoder has an embedding matrix of its own "
            "(tie_word_embeddings=False), and not that of get_input_embeddings, which a prompt's texts are looked up "
            "in; load it with tie_word_embeddings=True, if it was trained so, or use another backbone."
        )


def reading_task(backbone: PreTrainedModel) -> str | None:
    """Return the task type of a model that reads texts and writes none: its head's, or FEATURE_EXTRACTION; or None."""
    return classification_task(backbone) or (FEATURES if is_base_model(backbone) else None)


def _language_task(backbone: PreTrainedModel) -> str:
    """Return CAUSAL_LM or SEQ_2_SEQ_LM for a model that writes text. Raise PromptTuningError if it looks ahead."""
    name, is_seq2seq = type(backbone).__name__, bool(backbone.config.is_encoder_decoder)
    if not is_seq2seq and _looks_ahead(backbone):
        raise PromptTuningError(
            f"the backbone is a {name} whose config says is_decoder=False, so it looks at what comes after a token; "
            "load it with is_decoder=True, if it was trained so, or use another backbone."
        )
    return SEQ2SEQ if is_seq2seq else CAUSAL


def _looks_ahead(backbone: PreTrainedModel) -> bool:
    """Tell whether is_decoder=False in a config makes attention see later tokens (in BERT, but not in GPT-NeoX)."""
    if getattr(backbone.config, "is_decoder", True) is not False:
        return False
    return any(vars(module).get("is_decoder") is False for module in backbone.modules())


def _is_peft(model: PeftModel) -> PromptTuningError:
    if model.active_peft_config.is_prompt_learning:
        return PromptTuningError(
            f"the backbone is a {type(model).__name__}, which has a prompt already. Give model.get_base_model(), the "
            "backbone in it, or put one more prompt beside its own with model.add_adapter(name, config)."
        )
    return _has_adapters(model, model.active_peft_config.peft_type.value)


def _has_adapters(model: nn.Module, kind: str) -> PromptTuningError:
    return PromptTuningError(
        f"the backbone is a {type(model).__name__} with {kind} in its layers, which a saved prompt has no name for. "
        "Give model.merge_and_unload(), saved under a name of its own, so that the prompt can be loaded on it again."
    )


def _is_no_model(given: Any) -> PromptTuningError:
    what = f"the backbone is a {type(given).__name__}"
    if isinstance(given, str | Path):
        return PromptTuningError(
            f"{what} ({str(given)!r:.80}); give a loaded model, e.g. from AutoModelForCausalLM.from_pretrained (or "
            "load_prompt, for a saved prompt with its backbone)."
        )
    for inner in ("module", "_orig_mod"):  # of DataParallel and similar wrappers, and of torch.compile
        if isinstance(given, nn.Module) and isinstance(getattr(given, inner, None), nn.Module):
            return PromptTuningError(
                f"{what}, a model that is wrapped already; give what it wraps (its .{inner}), and wrap the model with "
                "the prompt."
            )
    return PromptTuningError(f"{what}; give a language model of transformers, e.g. from AutoModelForCausalLM.")


def completed_config(
    given: PeftPromptTuningConfig, backbone: PreTrainedModel, task_type: str, others: Iterable[PromptTuningConfig]
) -> PromptTuningConfig:
    """Check a prompt's config, and return a copy with what the backbone determines.

    `others` are the configs of the backbone's other prompts, which share its dropout. Raise PromptTuningError if the
    config is not for a soft prompt, or is for another task, width or dropout.
    """
    config = PromptTuningConfig.from_peft(given)
    if config.task_type not in (None, task_type):
        raise PromptTuningError(
            f"task_type is {getattr(config.task_type, 'value', config.task_type)}, and this model is a "
            f"{task_type} model; leave task_type out."
        )
    config.task_type = config.task_type or task_type  # PEFT, and we, choose the class by it when a prompt is loaded
    width = backbone.get_input_embeddings().embedding_dim
    if config.token_dim not in (None, width):
        raise PromptTuningError(
            f"token_dim is {config.token_dim}, and the backbone's embeddings have width {width}; leave it out."
        )
    kept = getattr(backbone, "dropout_for_prompts", config.backbone_dropout)
    kept = next((other.backbone_dropout for other in others), kept)
    if config.inference_mode:
        config.backbone_dropout = kept  # dropout does not matter to a prompt that is not trained
    if kept != config.backbone_dropout:
        raise PromptTuningError(
            f"backbone_dropout is {config.backbone_dropout}, and this backbone has a prompt whose backbone_dropout is "
            f"{kept}; they share its dropout. Give both the same, or load the backbone once more for this one."
        )
    # Set here because PEFT guesses them. It takes the hidden size for the embeddings' width (wrong for a projected
    # OPT), and fails without a number of heads (MPT, xglm, mamba), which no prompt needs.
    backbone_config = backbone.config.get_text_config()
    config.token_dim = width
    config.num_layers = getattr(backbone_config, "num_hidden_layers", None) or 1
    config.num_attention_heads = getattr(backbone_config, "num_attention_heads", None) or 1
    # One prompt, in the encoder. PEFT's default for encoder-decoders adds a second half that is never trained.
    config.num_transformer_submodules = 1
    # A local folder means nothing on another machine, so the backbone is named by its Hub id or not at all.
    config.base_model_name_or_path = hub_id(config.base_model_name_or_path or backbone.name_or_path)
    return config


def freeze(backbone: PreTrainedModel, keep_dropout: bool) -> None:
    """Freeze a backbone. All changes to it are made here.

    Its parameters need no gradient, and its dropout is off unless it is kept. Marks and shortcuts of quantized models
    that prevent training are removed. Weights and config do not change, except for the mark of a GGUF file.
    """
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    forget_gguf(backbone)
    keep_differentiable(backbone)
    if not keep_dropout:
        turn_off_dropout(backbone)
    backbone.dropout_for_prompts = keep_dropout


def keep_differentiable(backbone: PreTrainedModel) -> None:
    """Keep a bitsandbytes 4-bit backbone differentiable on a CPU.

    On a CPU with AVX-512 BF16, the first pass in eval mode packs the weights for a kernel that has no backward pass.
    Nothing unpacks them, so training after an evaluation would continue with wrong gradients.
    """
    for module in backbone.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_from_gguf(backbone: PreTrainedModel) -> bool:
    """Tell whether a backbone was loaded from a GGUF file."""
    config = getattr(backbone.config, "quantization_config", None)
    return GGUF in (getattr(config, "quant_method", None), getattr(backbone, "dequantized_from", None))


def forget_gguf(backbone: PreTrainedModel) -> None:
    """Remove the quantization mark from a backbone that was loaded from a GGUF file.

    The weights are dequantized while loading, and Trainer refuses a model with this mark.
    """
    if not is_from_gguf(backbone) or not hasattr(backbone.config, "quantization_config"):
        return
    del backbone.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(backbone).pop(name, None)
    # Needed when another prompt is put in front of this backbone.
    backbone.dequantized_from = GGUF


def turn_off_dropout(backbone: PreTrainedModel) -> None:
    """Set every dropout probability in a model's modules to 0, and every one that they read from a config when called.

    The model's own config is not changed, because the caller may save it.
    The model can then stay in train mode (which activation checkpointing requires) and still be deterministic.
    """
    views: dict[int, PreTrainedConfig] = {}
    for module in backbone.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in _probabilities(vars(module)):
            setattr(module, name, 0.0)
        config = vars(module).get("config")
        # The backbone's own config is not replaced: it is the one that is saved and shown, and the backbone's
        # `forward` reads no probability from it.
        if module is not backbone and isinstance(config, PreTrainedConfig) and any(_probabilities(vars(config))):
            module.config = views.setdefault(id(config), without_dropout(config))


def _probabilities(values: dict[str, Any]) -> Iterator[str]:
    return (name for name, value in list(values.items()) if "drop" in name and isinstance(value, float) and value)


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a view of a config in which every dropout probability is 0.

    All other values are shared: a change in either config is seen in both (above all a changed attention
    implementation).
    """
    if isinstance(config, _View):
        return config
    kind = type(config)
    always_zero = property(lambda view: 0.0, lambda view, value: None)  # a new value is ignored: dropout stays off
    members: dict[str, Any] = dict.fromkeys(_probabilities(vars(config)), always_zero)
    view = object.__new__(type(kind.__name__, (_View, kind), members | {"__module__": kind.__module__, "of": config}))
    object.__setattr__(view, "__dict__", vars(config))
    return view


class _View:
    """Mixin for a view of the config `of`. A view that is copied with deepcopy or pickled stays a view."""

    of: PreTrainedConfig

    def __init_subclass__(cls) -> None:
        """Do nothing: otherwise a subclass of a config would become a dataclass of its own."""

    def __reduce__(self) -> tuple:
        return without_dropout, (self.of,)

    def __copy__(self) -> PreTrainedConfig:
        """Return an independent config with the view's values."""
        alone = copy.copy(self.of)
        vars(alone).update({name: 0.0 for name, value in vars(type(self)).items() if isinstance(value, property)})
        return alone
