"""Mix the rows of several prompts in batches.

Each prompt has its own stream of rows. Step s of the run is step s of every prompt. A prompt that has finished its
steps sends no more rows. With two gradient-accumulation steps:

    step         0               1               2
    complaints   [5 0 2][1 4 3]  [4 5 1][0 3 2]  done
    topics       [1 0]           [0 1]           [1 0]

A step has as many micro-batches as the prompt that has the most. Here the second micro-batches hold only rows of
`complaints`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments

from ..layouts.base import IGNORED
from .streams import Stream

COLUMNS = ("input_ids", "attention_mask", "labels")


class MixedBatches:
    """The update steps of several streams: item s is step s, `{"micro_batches": [batch, …]}`.

    Each batch has:

    - `input_ids`, `attention_mask`, `labels` from the collator;
    - `adapter_names`, the prompt of each row;
    - `items` [B] int64, the number of labelled tokens that the row's prompt has in the whole step.
    """

    def __init__(self, streams: Sequence[Stream], collator: Callable):
        self.streams = streams
        self.collator = collator

    def __len__(self) -> int:
        return max(len(stream.steps) for stream in self.streams)

    def __getitem__(self, step: int) -> dict[str, list[dict[str, Any]]]:
        micro: list[list[tuple[str, dict[str, Any]]]] = []
        items: dict[str, int] = {}
        for stream in self.streams:
            for i, rows in enumerate(stream.steps[step] if step < len(stream.steps) else []):
                if i == len(micro):
                    micro.append([])
                features = [self._feature(stream.data[row]) for row in rows]
                micro[i] += [(stream.name, feature) for feature in features]
                labelled = sum(int((feature["labels"] != IGNORED).sum()) for feature in features)
                items[stream.name] = items.get(stream.name, 0) + labelled
        return {"micro_batches": [self._batch(pairs, items) for pairs in micro]}

    @staticmethod
    def _feature(row: dict[str, Any]) -> dict[str, Any]:
        return {name: torch.as_tensor(row[name]) for name in COLUMNS if name in row}

    def _batch(self, pairs: list[tuple[str, dict[str, Any]]], items: dict[str, int]) -> dict[str, Any]:
        batch = self.collator([feature for _, feature in pairs])
        names = [name for name, _ in pairs]
        return batch | {"adapter_names": names, "items": torch.tensor([items[name] for name in names])}


def rows_of_prompts(batch: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return only the rows of a batch (of `MixedBatches`) that belong to the prompts with these names."""
    rows = [row for row, name in enumerate(batch["adapter_names"]) if name in names]
    if len(rows) == len(batch["adapter_names"]):
        return batch
    kept = {name: value[rows] for name, value in batch.items() if name != "adapter_names"}
    return kept | {"adapter_names": [batch["adapter_names"][row] for row in rows]}


class EpochSteps(Sampler):
    """Yield the step numbers of one epoch, each as a batch of one.

    An epoch is as long as that of the prompt with the most steps per epoch.
    """

    def __init__(self, steps: int, per_epoch: int):
        self.steps, self.per_epoch, self.epoch = steps, per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.per_epoch
        return iter([step] for step in range(first, min(first + self.per_epoch, self.steps)))


def mixed_dataloader(streams: Sequence[Stream], collator: Callable, args: TrainingArguments) -> DataLoader:
    """Return a data loader, with the options of `args`, whose batches are update steps; `set_epoch` sets the epoch."""
    batches = MixedBatches(streams, collator)
    sampler = EpochSteps(len(batches), max(stream.steps_per_epoch for stream in streams))
    loader = DataLoader(
        batches,
        batch_sampler=sampler,
        collate_fn=itemgetter(0),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    loader.set_epoch = sampler.set_epoch
    return loader
