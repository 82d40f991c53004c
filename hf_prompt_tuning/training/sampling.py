"""Which rows make a batch: the seed and the epoch alone tell it."""

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class SeededLengthGroupedSampler(LengthGroupedSampler):
    """Rows of about the same length together, drawn anew in each epoch.

    transformers' own draws from the generator that dropout draws from, too. So its batches depend on how a model is
    computed, and a run that is resumed within an epoch gets other batches than the one that was interrupted.

    Args:
        batch_size: of one update step, over all processes.
        lengths: of each row.
        seed: the run's.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()
