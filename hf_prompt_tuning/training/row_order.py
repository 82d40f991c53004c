"""A Trainer that reads evaluation data in the order of its rows, all of them, whatever training does with its own."""

import copy
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers.trainer_utils import has_length

from .publishing import PublishingTrainer


class RowOrderTrainer(PublishingTrainer):
    """The part of `PromptTuningTrainer` by which what is computed of a row stands where the row stood."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler | None:
        # Trainer's own groups rows by length where training does. On several processes Accelerate deals the rows out.
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) and self.args.world_size <= 1 else None

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        if is_training:
            return super()._get_dataloader(dataset, *args, is_training=True, **kwargs)
        asked, self.args = self.args, copy.copy(self.args)
        self.args.dataloader_drop_last, self.args.dataloader_in_order = False, True
        if isinstance(dataset, IterableDataset):
            # Several workers each read a part of a stream, and their batches come in turn.
            self.args.dataloader_num_workers = min(1, asked.dataloader_num_workers)
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.args = asked

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `Trainer`, which would take the workers that stay with its own data for those of any other."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        kept, self._eval_dataloaders = getattr(self, "_eval_dataloaders", {}), {}
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self._eval_dataloaders = kept
