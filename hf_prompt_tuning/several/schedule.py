"""Give each of several prompts its own schedule."""

from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..errors import PromptTuningError
from ..training.arguments import PromptTuningArguments


def joint_schedule(optimizer: torch.optim.Optimizer, steps: Iterable[int], args: PromptTuningArguments) -> LambdaLR:
    """Return a schedule in which each parameter group of the optimizer follows its own number of update steps.

    Raise PromptTuningError if the schedule depends on the loss instead of the steps.
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
