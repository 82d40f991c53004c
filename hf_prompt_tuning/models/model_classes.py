"""The model classes by the task type of their backbones."""

from typing import Any

from transformers import PreTrainedModel

from ..errors import PromptTuningError
from .backbone import reading_task
from .base_models import FEATURES
from .causal_lm import PromptTuningModelForCausalLM
from .classifiers import QUESTION_ANS
from .feature_extraction import PromptTuningModelForFeatureExtraction
from .question_answering import PromptTuningModelForQuestionAnswering
from .seq2seq_lm import PromptTuningModelForSeq2SeqLM
from .sequence_classification import PromptTuningModelForSequenceClassification
from .soft_prompts import SoftPrompts
from .token_classification import PromptTuningModelForTokenClassification

PromptTuningModel = (
    PromptTuningModelForCausalLM
    | PromptTuningModelForSeq2SeqLM
    | PromptTuningModelForSequenceClassification
    | PromptTuningModelForTokenClassification
    | PromptTuningModelForQuestionAnswering
    | PromptTuningModelForFeatureExtraction
)
MODEL_CLASSES = {
    kind.task_type: kind
    for kind in (
        PromptTuningModelForCausalLM,
        PromptTuningModelForSeq2SeqLM,
        PromptTuningModelForSequenceClassification,
        PromptTuningModelForTokenClassification,
        PromptTuningModelForQuestionAnswering,
        PromptTuningModelForFeatureExtraction,
    )
}


def check_writes_text(model: Any) -> None:
    """Raise PromptTuningError for a model that writes no text, such as one with a classification head.

    It is for what has the labels, losses and texts of language models: trainers, exports.
    """
    backbone = model.get_base_model() if isinstance(model, SoftPrompts) else model
    task = reading_task(backbone) if isinstance(backbone, PreTrainedModel) else None
    if task is not None:
        head = {FEATURES: "without a head", QUESTION_ANS: "with a head for answers"}.get(
            task, "with a classification head"
        )
        raise PromptTuningError(
            f"the backbone is a {type(backbone).__name__} {head}, and this is for language "
            "models. Train its prompt alone, with PromptTuningTrainer (without a head, with transformers' Trainer), "
            "and call the model; or load the backbone with AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
