"""Choose the Auto class of transformers that loads a backbone."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

AUTO_CLASSES = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}
ENCODERS_OF_PAIRS = ("t5", "mt5", "umt5")
"""Encoder-decoders of which AutoModelForTextEncoding loads the encoder alone, and AutoModel both."""
ENCODERS_ALONE = tuple(MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES[kind] for kind in ENCODERS_OF_PAIRS)
"""Their classes."""


def reads_pictures(config: PreTrainedConfig) -> bool:
    """Tell whether the models of a config read pictures among texts."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def auto_class(task_type: str, config: PreTrainedConfig | None) -> Any:
    """Return the Auto class that loads a backbone with this config for a task. Without one, it reads texts alone."""
    auto = AUTO_CLASSES[task_type]
    if config is None:
        return auto
    if auto is AutoModel and config.model_type in ENCODERS_OF_PAIRS:
        return AutoModelForTextEncoding
    # Of some models that see, AutoModelForCausalLM loads the part that reads texts, and of others all of it.
    if auto is AutoModelForCausalLM and reads_pictures(config) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return auto


def named_auto_class(task_type: str | None, architecture: str | None) -> Any:
    """Return the Auto class that loads a backbone of a class's name for a task; without a task, a causal model's."""
    return AutoModelForTextEncoding if architecture in ENCODERS_ALONE else AUTO_CLASSES[task_type or "CAUSAL_LM"]
