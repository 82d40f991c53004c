"""Choose the template, the model and the callbacks of a trainer."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainingArguments, set_seed

from ..data.encoding import text_rows, with_label_words
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..models.create import get_prompt_tuning_model
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig
from .callbacks import DivergenceCallback
from .trainer_checks import warn_of_template


def choose_template(
    template: PromptTemplate | None, model: nn.Module, tokenizer: Any, train: Any, evaluation: Any
) -> PromptTemplate | None:
    """Return the template for the data: the given one, or the prompt's; None if all data are token ids.

    Raise PromptTuningError if the data is text and there is no tokenizer.
    """
    own = model.info.template if isinstance(model, SoftPrompts) else None
    warn_of_template(own, template)
    chosen = template if template is not None else own
    if chosen is None or tokenizer is not None:
        return with_label_words(chosen, train, evaluation)
    data = [rows for rows in (train, evaluation) if rows is not None]
    if template is not None or not data or any(text_rows(rows, chosen) is not None for rows in data):
        raise PromptTuningError("processing_class is not given; give the backbone's tokenizer.")
    return None


def prompt_model(
    model: nn.Module,
    config: PromptTuningConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: PromptTemplate | None = None,
    seed: int = 0,
) -> SoftPrompts:
    """Return the model with its prompt. A plain backbone gets a prompt from the config, and is not frozen yet.

    The prompt's vectors are drawn after `set_seed(seed)`. Raise PromptTuningError if a plain backbone has no config,
    or the prompt cannot be made.
    """
    if isinstance(model, SoftPrompts):
        return model
    if config is None:
        raise PromptTuningError(
            f"model is a {type(model).__name__}; give one from get_prompt_tuning_model, "
            "or a transformers backbone together with prompt_config."
        )
    set_seed(seed)
    return get_prompt_tuning_model(model, config, tokenizer, template, "default", frozen=False)


def all_callbacks(callbacks: Sequence[Any] | None, args: TrainingArguments) -> list[Any]:
    """Return the caller's callbacks, early stopping by the arguments, and a `DivergenceCallback` if there is none."""
    callbacks = list(callbacks or [])
    if getattr(args, "early_stopping_patience", None):
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    kinds = [callback if isinstance(callback, type) else type(callback) for callback in callbacks]
    if not any(issubclass(kind, DivergenceCallback) for kind in kinds):
        callbacks.append(DivergenceCallback())
    return callbacks
