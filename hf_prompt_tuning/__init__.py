"""Prompt tuning for the Hugging Face Trainer."""

from .data.collator import DataCollatorForPromptTuning
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
from .models.causal_lm import PromptTuningModelForCausalLM
from .models.create import get_prompt_tuning_model
from .models.labels import strip_virtual_tokens
from .models.load import load_prompt
from .models.seq2seq_lm import PromptTuningModelForSeq2SeqLM
from .prompts.config import PromptTuningConfig, PromptTuningInit
from .prompts.foreign import import_prompt
from .serving.pipelines import PromptClassificationPipeline, PromptGenerationPipeline
from .serving.vllm import VllmPrompt, export_vllm
from .several.ensemble import PromptEnsemble, load_ensemble
from .several.ensemble_trainer import EnsembleTrainer
from .several.task import PromptTask
from .several.trainer import MultiPromptTrainer
from .training.arguments import PromptTuningArguments
from .training.callbacks import (
    DivergenceCallback,
    FrozenBackboneCallback,
    PromptCheckpointCallback,
    PromptHubCallback,
    PromptMonitorCallback,
    kept_prompts,
    restore_prompt,
)
from .training.trainer import PromptTuningTrainer

__version__ = "0.1.0"

__all__ = [
    "CheckpointSaveError",
    "DataCollatorForPromptTuning",
    "DivergenceCallback",
    "EnsembleTrainer",
    "FrozenBackboneCallback",
    "HubUnavailableError",
    "Inspection",
    "MultiPromptTrainer",
    "PromptCheckpointCallback",
    "PromptClassificationPipeline",
    "PromptEnsemble",
    "PromptGenerationPipeline",
    "PromptHubCallback",
    "PromptLoadError",
    "PromptMismatchError",
    "PromptMonitorCallback",
    "PromptPushError",
    "PromptTask",
    "PromptTemplate",
    "PromptTokenizer",
    "PromptTuningArguments",
    "PromptTuningConfig",
    "PromptTuningError",
    "PromptTuningInit",
    "PromptTuningModelForCausalLM",
    "PromptTuningModelForSeq2SeqLM",
    "PromptTuningTrainer",
    "TrainingInterrupted",
    "VllmPrompt",
    "export_vllm",
    "get_prompt_tuning_model",
    "import_prompt",
    "inspect_prompt",
    "kept_prompts",
    "load_ensemble",
    "load_prompt",
    "restore_prompt",
    "strip_virtual_tokens",
]
