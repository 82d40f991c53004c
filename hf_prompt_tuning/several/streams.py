"""Order the training rows of one prompt, exactly as in a run of its own.

A prompt's update steps, with batches of three rows and two gradient-accumulation steps:

    step         0               1
    complaints   [5 0 2][1 4 3]  [4 5 1][0 3 2]
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler

from ..errors import PromptTuningError
from ..training.arguments import PromptTuningArguments

Step = list[list[int]]
"""The rows of each micro-batch of an update step."""


@dataclass(frozen=True)
class Stream:
    """The rows of token ids of the prompt `name`: those of each update step, and how many steps read all rows once."""

    name: str
    data: Any
    steps: list[Step]
    steps_per_epoch: int


def read_stream(name: str, data: Any, args: PromptTuningArguments) -> Stream:
    """Return a prompt's update steps, as a Trainer with its arguments makes them.

    The last step of an epoch may have fewer micro-batches than the others. Raise PromptTuningError if the sampling
    strategy is neither "random" nor "sequential", or there is no complete batch.
    """
    rows, size = len(data), args.train_batch_size
    steps: list[Step] = []
    for epoch in itertools.count():
        batches = list(BatchSampler(_row_order(rows, epoch, args), size, args.dataloader_drop_last))
        if not batches:
            raise PromptTuningError(f"{rows} rows are no batch of {size}, and dataloader_drop_last is set.")
        steps_of_epoch = list(BatchSampler(batches, args.gradient_accumulation_steps, drop_last=False))
        steps += steps_of_epoch
        total = args.max_steps if args.max_steps >= 0 else math.ceil(args.num_train_epochs * len(steps_of_epoch))
        if len(steps) >= total:
            break
    return Stream(name, data, steps[:total], len(steps_of_epoch))


def with_first_rows(whole: Stream, rows: Sequence[int], step: int, args: PromptTuningArguments) -> Stream:
    """Return a stream that before update step `step` has only the rows with these numbers, and then is as `whole`."""
    args = copy.copy(args)
    args.max_steps = step
    first = read_stream(whole.name, rows, args).steps
    numbered = [[[rows[row] for row in batch] for batch in batches] for batches in first]
    return replace(whole, steps=numbered + whole.steps[step:])


def _row_order(rows: int, epoch: int, args: PromptTuningArguments) -> Sequence[int]:
    strategy = args.train_sampling_strategy
    if strategy == "sequential":
        return range(rows)
    if strategy != "random":
        raise PromptTuningError(
            f"train_sampling_strategy is {strategy!r}; with several prompts in a batch it can be random or sequential."
        )
    sampler = SeedableRandomSampler(range(rows), data_seed=args.seed if args.data_seed is None else args.data_seed)
    sampler.set_epoch(epoch)
    return list(sampler)
