"""Read all rows of the evaluation data in order, whatever order and sampling the training data uses."""

import copy
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers.trainer_utils import has_length

from .publishing import PublishingTrainer


class RowOrderTrainer(PublishingTrainer):
    """Trainer that returns results in the order of the rows; a base class of `PromptTuningTrainer`."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        # Trainer's sampler groups evaluation rows by length if training does. With several processes, Accelerate
        # distributes the rows.
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) and self.args.world_size <= 1 else None

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        if is_training:
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        asked, self.args = self.args, copy.copy(self.args)
        self.args.dataloader_drop_last, self.args.dataloader_in_order = False, True
        if isinstance(dataset, IterableDataset):
            # Several workers would each read a part of the stream and return batches in turn, which mixes up the rows.
            self.args.dataloader_num_workers = min(1, asked.dataloader_num_workers)
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.args = asked

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the evaluation data loader as `Trainer` does, but never reuse the loader of other data.

        With persistent workers, `Trainer` would reuse the loader of its own data for a dataset that is passed in.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        kept, self._eval_dataloaders = getattr(self, "_eval_dataloaders", {}), {}
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self._eval_dataloaders = kept
