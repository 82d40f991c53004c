"""Record a run's hyperparameters, losses and nearest words in the prompt that it trains, for the prompt's card."""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments

from ..prompts.json_files import numbers_of
from ..prompts.privacy import tells_private_words
from .scoring import loss_history
from .soft_prompts import SoftPrompts
from .vocabulary import nearest_words

RECORDED = (
    *("optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("label_smoothing_factor", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
)
"""The hyperparameters that a prompt's card shows."""
OF_HEADS = ("head_learning_rate", "class_weights", "pos_weight")
"""The same of a classification head, as far as they are given."""

MEMORY = re.compile(r"(^|_)mem_[cg]pu(_|$)")
"""The metrics that `skip_memory_metrics=False` adds to an evaluation."""


def describe_run(
    model: SoftPrompts,
    args: TrainingArguments,
    state: TrainerState,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str | None = None,
) -> None:
    """Write hyperparameters, losses and nearest words of the active prompt into its `info`.

    No nearest words are written of a prompt that may tell private words: they would be those that are not to be saved.
    `name` is the prompt's name in the log, if several prompts train together.
    """
    values = {name: getattr(args, name) for name in RECORDED}
    for own in OF_HEADS:
        if (given := getattr(args, own, None)) is not None:
            values[own] = json.dumps(given) if isinstance(given, dict) else given
    if getattr(args, "recipe", None) is not None:
        values["recipe"] = args.recipe
    if getattr(args, "average_last", 0.0):
        values["average_last"] = args.average_last
    model.info.training = {name: getattr(value, "value", value) for name, value in values.items()}
    model.info.history = loss_history(state.log_history, name)
    if tokenizer is not None and not tells_private_words(model.info):
        model.info.nearest_words = nearest_words(model.prompt, model.word_embeddings, tokenizer)


def to_record(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers, without speed, memory and the training's progress."""
    left_out = ("runtime", "per_second", "preparation_time", "epoch", "num_input_tokens_seen", "label_nodes")
    numbers = numbers_of(metrics)
    return {name: value for name, value in numbers.items() if not name.endswith(left_out) and not MEMORY.search(name)}
