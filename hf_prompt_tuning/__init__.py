"""Prompt tuning for the Hugging Face Trainer."""

from .causal_lm import PromptTuningModelForCausalLM
from .collator import DataCollatorForPromptTuning
from .config import PromptTuningArguments, PromptTuningConfig, PromptTuningInit
from .errors import PromptTuningError
from .modeling import get_prompt_tuning_model
from .seq2seq_lm import PromptTuningModelForSeq2SeqLM
from .template import PromptTemplate
from .trainer import PromptTuningTrainer

__version__ = "0.1.0"

__all__ = [
    "DataCollatorForPromptTuning",
    "PromptTemplate",
    "PromptTuningArguments",
    "PromptTuningConfig",
    "PromptTuningError",
    "PromptTuningInit",
    "PromptTuningModelForCausalLM",
    "PromptTuningModelForSeq2SeqLM",
    "PromptTuningTrainer",
    "get_prompt_tuning_model",
]
