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

from ..data.encoded_rows import PICTURES, TYPES
from ..layouts.base import IGNORED
from .streams import Stream

COLUMNS = ("input_ids", "attention_mask", "labels")
ROWS = "rows"
"""The key of a batch with pictures under which its rows are as they were before the collator."""


class MixedBatches:
    """The update steps of several streams: item s is step s, `{"micro_batches": [batch, …]}`.

    Each batch has:

    - `input_ids`, `attention_mask`, `labels` from the collator;
    - `adapter_names`, the prompt of each row;
    - `items` [B] int64, the number of labelled tokens that the row's prompt has in the whole step.

    With rows with pictures, it has what the collator makes of these, and the types of tokens. With `keeps_rows` it
    then has the rows, too (`ROWS`): what is made of pictures is not one a row, so that `rows_of_prompts` needs them.
    """

    def __init__(self, streams: Sequence[Stream], collator: Callable, keeps_rows: bool = False):
        self.streams = streams
        self.collator = collator
        self.keeps_rows = keeps_rows

    def __len__(self) -> int:
        return max(len(stream.steps) for stream in self.streams)

    @property
    def steps_of_prompts(self) -> dict[str, int]:
        """The number of update steps of each prompt, by name."""
        return {stream.name: len(stream.steps) for stream in self.streams}

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
        sees = PICTURES in row
        names = (*COLUMNS, *TYPES) if sees else COLUMNS
        feature = {name: torch.as_tensor(row[name]) for name in names if name in row}
        return feature | ({PICTURES: row[PICTURES]} if sees else {})

    def _batch(self, pairs: list[tuple[str, dict[str, Any]]], items: dict[str, int]) -> dict[str, Any]:
        features = [feature for _, feature in pairs]
        for name in {name for feature in features for name in feature if name in TYPES}:
            for feature in features:  # rows of token ids are texts
                feature.setdefault(name, torch.zeros_like(feature["input_ids"]))
        names = [name for name, _ in pairs]
        batch = self.collator(features)
        batch |= {"adapter_names": names, "items": torch.tensor([items[name] for name in names])}
        keeps = self.keeps_rows and any(PICTURES in feature for feature in features)
        return batch | ({ROWS: features} if keeps else {})


def rows_of_prompts(batch: dict[str, Any], names: Collection[str], collator: Callable) -> dict[str, Any]:
    """Return only the rows of a batch (of `MixedBatches`) that belong to the prompts with these names.

    Rows with pictures are collated anew.
    """
    batch = dict(batch)
    features = batch.pop(ROWS, None)
    rows = [row for row, name in enumerate(batch["adapter_names"]) if name in names]
    if len(rows) == len(batch["adapter_names"]):
        return batch
    own = {"adapter_names": [batch["adapter_names"][row] for row in rows], "items": batch["items"][rows]}
    if features is not None:
        return collator([features[row] for row in rows]) | own
    return {name: value[rows] for name, value in batch.items() if name not in own} | own


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


def mixed_dataloader(
    streams: Sequence[Stream], collator: Callable, args: TrainingArguments, keeps_rows: bool = False
) -> DataLoader:
    """Return a data loader, with the options of `args`, whose batches are update steps; `set_epoch` sets the epoch."""
    batches = MixedBatches(streams, collator, keeps_rows)
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
