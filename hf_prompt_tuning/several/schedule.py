"""Give each of several prompts its own learning rate and schedule."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..errors import PromptTuningError
from ..training.arguments import PromptTuningArguments


def parameter_groups(
    weights: Mapping[str, Tensor], args_of: Mapping[str, PromptTuningArguments]
) -> list[dict[str, Any]]:
    """Return an optimizer's parameter group for each prompt.

    Args:
        weights: the prompts' vectors, by name.
        args_of: each prompt's own training arguments, by name.
    """
    return [
        {"params": [weight], "lr": args_of[name].learning_rate, "weight_decay": args_of[name].weight_decay}
        for name, weight in weights.items()
    ]


def joint_schedule(optimizer: torch.optim.Optimizer, steps: Iterable[int], args: PromptTuningArguments) -> LambdaLR:
    """Return a schedule in which each prompt's learning rate follows that prompt's own steps.

    Args:
        optimizer: has one parameter group for each prompt.
        steps: the number of update steps of each prompt, in the order of the groups.
        args: name the schedule and its warm-up.

    Raises:
        PromptTuningError: the schedule depends on the loss instead of the steps.
    """
    factors = []
    for total in steps:
        alone = get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=args.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        if not isinstance(alone, LambdaLR):
            raise PromptTuningError(
                f"lr_scheduler_type is {args.lr_scheduler_type}, which follows one loss; with several prompts use "
                "one that follows the steps, such as linear, cosine or constant."
            )
        factors += alone.lr_lambdas
    return LambdaLR(optimizer, factors)
