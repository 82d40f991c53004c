"""Give a classification head a learning rate of its own."""

import math
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import PromptTuningError
from ..models.soft_prompts import SoftPrompts

HEAD_LEARNING_RATE = 1e-3
"""The default of `PromptTuningArguments`: the prompt's default would change a logit by tens in one step of AdamW."""


def head_rate(args: Any) -> float | None:
    """Return the learning rate of a head; None for that of the prompt (plain `TrainingArguments`)."""
    if not hasattr(args, "head_learning_rate"):
        return None
    rate = args.head_learning_rate
    if rate is not None and not (isinstance(rate, int | float) and 0 <= rate < math.inf):
        raise PromptTuningError(f"head_learning_rate is {rate!r:.80}; give a number, 0 or more.")
    return HEAD_LEARNING_RATE if rate is None else rate


def move_head(optimizer: Optimizer, model: SoftPrompts | nn.Module, rate: float) -> None:
    """Move the weights of the active prompt's head to groups of an unused optimizer that have another learning rate.

    Each group keeps its other options, so that biases still have no weight decay.
    """
    head = {id(weight) for weight in model.prompt_encoder[model.active_adapter].classifier.parameters()}
    for group in list(optimizer.param_groups):
        weights = [weight for weight in group["params"] if id(weight) in head]
        if weights:
            group["params"] = [weight for weight in group["params"] if id(weight) not in head]
            optimizer.add_param_group({**group, "params": weights, "lr": rate})
