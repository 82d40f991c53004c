"""Prompt tuning for the Hugging Face Trainer.

A name is imported at its first use. Importing the package imports neither torch nor transformers. It only registers
the two pipelines for `transformers.pipeline`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .serving.registration import register_pipelines

if TYPE_CHECKING:
    from .data.answer_collator import DataCollatorForAnswers
    from .data.answer_template import AnswerTemplate
    from .data.answer_windows import AnswerTokenizer
    from .data.chat_format import ChatFormat
    from .data.chat_template import ChatTemplate
    from .data.chat_tokenization import ChatTokenizer
    from .data.collator import DataCollatorForPromptTuning
    from .data.head_collator import DataCollatorForHeads
    from .data.head_template import ClassTemplate, TagTemplate
    from .data.template import PromptTemplate
    from .data.tokenization import PromptTokenizer
    from .errors import (
        CheckpointSaveError,
        HubUnavailableError,
        PromptLoadError,
        PromptMismatchError,
        PromptPushError,
        PromptTuningError,
        TrainingInterrupted,
    )
    from .inspection.inspector import inspect_prompt
    from .inspection.results import Inspection
    from .layouts.label_search import LabelSearch
    from .models.answer_spans import Answer
    from .models.causal_lm import PromptTuningModelForCausalLM
    from .models.create import get_prompt_tuning_model
    from .models.feature_extraction import PromptTuningModelForFeatureExtraction
    from .models.labels import strip_virtual_tokens
    from .models.load import LoadedPrompt, load_prompt
    from .models.question_answering import PromptTuningModelForQuestionAnswering
    from .models.seq2seq_lm import PromptTuningModelForSeq2SeqLM
    from .models.sequence_classification import PromptTuningModelForSequenceClassification
    from .models.token_classification import PromptTuningModelForTokenClassification
    from .prompts.config import PromptTuningConfig, PromptTuningInit
    from .prompts.foreign import import_prompt
    from .serving.gguf import export_gguf
    from .serving.pipelines import PromptClassificationPipeline, PromptGenerationPipeline
    from .serving.tokens import export_tokens
    from .serving.vllm import VllmPrompt, export_vllm
    from .several.ensemble import PromptEnsemble, load_ensemble
    from .several.ensemble_trainer import EnsembleTrainer
    from .several.field_trainer import FieldTrainer
    from .several.task import PromptTask
    from .several.trainer import MultiPromptTrainer
    from .training.arguments import PromptTuningArguments
    from .training.callbacks import (
        DivergenceCallback,
        FrozenBackboneCallback,
        PromptAveragingCallback,
        PromptCheckpointCallback,
        PromptHubCallback,
        PromptMonitorCallback,
        kept_prompts,
        restore_prompt,
    )
    from .training.teacher import Teacher
    from .training.trainer import PromptTuningTrainer

__version__ = "0.1.0"

# The same names as in the imports above, for use at run time. A test checks that both lists agree.
_NAMES_OF = {
    ".data.answer_collator": "DataCollatorForAnswers",
    ".data.answer_template": "AnswerTemplate",
    ".data.answer_windows": "AnswerTokenizer",
    ".data.chat_format": "ChatFormat",
    ".data.chat_template": "ChatTemplate",
    ".data.chat_tokenization": "ChatTokenizer",
    ".data.collator": "DataCollatorForPromptTuning",
    ".data.head_collator": "DataCollatorForHeads",
    ".data.head_template": "ClassTemplate TagTemplate",
    ".data.template": "PromptTemplate",
    ".data.tokenization": "PromptTokenizer",
    ".errors": "CheckpointSaveError HubUnavailableError PromptLoadError PromptMismatchError PromptPushError "
    "PromptTuningError TrainingInterrupted",
    ".inspection.inspector": "inspect_prompt",
    ".inspection.results": "Inspection",
    ".layouts.label_search": "LabelSearch",
    ".models.answer_spans": "Answer",
    ".models.causal_lm": "PromptTuningModelForCausalLM",
    ".models.create": "get_prompt_tuning_model",
    ".models.feature_extraction": "PromptTuningModelForFeatureExtraction",
    ".models.labels": "strip_virtual_tokens",
    ".models.load": "LoadedPrompt load_prompt",
    ".models.question_answering": "PromptTuningModelForQuestionAnswering",
    ".models.seq2seq_lm": "PromptTuningModelForSeq2SeqLM",
    ".models.sequence_classification": "PromptTuningModelForSequenceClassification",
    ".models.token_classification": "PromptTuningModelForTokenClassification",
    ".prompts.config": "PromptTuningConfig PromptTuningInit",
    ".prompts.foreign": "import_prompt",
    ".serving.pipelines": "PromptClassificationPipeline PromptGenerationPipeline",
    ".serving.gguf": "export_gguf",
    ".serving.tokens": "export_tokens",
    ".serving.vllm": "VllmPrompt export_vllm",
    ".several.ensemble": "PromptEnsemble load_ensemble",
    ".several.ensemble_trainer": "EnsembleTrainer",
    ".several.field_trainer": "FieldTrainer",
    ".several.task": "PromptTask",
    ".several.trainer": "MultiPromptTrainer",
    ".training.arguments": "PromptTuningArguments",
    ".training.callbacks": "DivergenceCallback FrozenBackboneCallback PromptAveragingCallback "
    "PromptCheckpointCallback PromptHubCallback PromptMonitorCallback kept_prompts restore_prompt",
    ".training.teacher": "Teacher",
    ".training.trainer": "PromptTuningTrainer",
}
_HOME = {name: home for home, names in _NAMES_OF.items() for name in names.split()}
__all__ = sorted(_HOME)
_WINGS = ("data", "errors", "hub", "inspection", "layouts", "models", "prompts", "serving", "several", "training")


def __getattr__(name: str) -> Any:
    """Import and return a public name or a subpackage."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name], __name__), name)
        globals()[name] = value
        return value
    if name in _WINGS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_WINGS})


register_pipelines()
