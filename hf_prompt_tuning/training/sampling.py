"""Sample training batches that depend only on the seed and the epoch."""

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """Group rows of similar length into batches, shuffled anew in each epoch.

    transformers' sampler uses the same random generator as dropout. So its batches depend on how the model is
    computed, and a run that is resumed within an epoch gets other batches than the interrupted run. `batch_size`
    counts the rows of all processes.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()
