"""Which rows each update step learns from, where one run trains several prompts.

Each prompt has its own row order, batch size and number of steps, exactly as it would have alone. Step s of the run is
step s of every prompt; a prompt that has had its steps sends no more rows. With two gradient-accumulation steps:

    step         0               1               2
    complaints   [5 0 2][1 4 3]  [4 5 1][0 3 2]  done
    topics       [1 0]           [0 1]           [1 0]

A step has as many micro-batches as its busiest prompt has; here the second micro-batches are of `complaints` alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Sampler

from ..errors import PromptTuningError
from ..layouts.base import IGNORED

COLUMNS = ("input_ids", "attention_mask", "labels")
Step = list[list[int]]
"""The rows of each micro-batch of an update step."""


@dataclass(frozen=True)
class Stream:
    """What one prompt learns from, in order.

    Attributes:
        name: the prompt's adapter.
        data: rows of token ids.
        steps: the rows of each of its update steps.
        steps_per_epoch: how many of them are one pass over its data.
    """

    name: str
    data: Any
    steps: list[Step]
    steps_per_epoch: int


def row_order(strategy: str, rows: int, seed: int) -> Callable[[int], list[int]]:
    """The order of the rows in each epoch: the one that a Trainer with this seed has.

    Raises:
        PromptTuningError: a sampling strategy that orders rows by the batch they come in.
    """
    if strategy == "sequential":
        return lambda epoch: list(range(rows))
    if strategy != "random":
        raise PromptTuningError(
            f"train_sampling_strategy is {strategy!r}; with several prompts in a batch it can be random or sequential."
        )
    sampler = SeedableRandomSampler(range(rows), data_seed=seed)

    def order(epoch: int) -> list[int]:
        sampler.set_epoch(epoch)
        return list(sampler)

    return order


def stream_steps(
    order: Callable[[int], list[int]],
    batch_size: int,
    accumulation: int,
    epochs: float,
    max_steps: int,
    drop_last: bool,
) -> tuple[list[Step], int]:
    """A prompt's update steps, as a Trainer with these arguments would make them; and how many make an epoch.

    Args:
        order: an epoch's rows.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a step; the last step of an epoch may have fewer.
        epochs: passes over the data, not necessarily whole ones; without `max_steps`.
        max_steps: how many steps, whatever the epochs; -1 to go by them.
        drop_last: leave out an epoch's last batch where it is short.

    Raises:
        PromptTuningError: there is no whole batch.
    """
    steps: list[Step] = []
    per_epoch = total = epoch = 0
    while not per_epoch or len(steps) < total:
        rows = order(epoch)
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        if drop_last and len(batches[-1]) < batch_size:
            batches.pop()
        if not batches:
            raise PromptTuningError(f"{len(rows)} rows are no batch of {batch_size}, and dataloader_drop_last is set.")
        found = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
        per_epoch = len(found)
        total = max_steps if max_steps > 0 else math.ceil(epochs * per_epoch)
        steps += found
        epoch += 1
    return steps[:total], per_epoch


class MixedBatches:
    """The update steps of several streams: item s is step s, `{"micro_batches": [batch, …]}`.

    Each batch has `input_ids`, `attention_mask`, `labels` as the collator makes them; `adapter_names`, a prompt for
    each row; and `items` [B] long, how many labelled tokens the row's prompt has in the whole step.
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


class EpochSteps(Sampler):
    """The numbers of one epoch's steps, each as a batch of one; an epoch is that of the prompt with the most steps."""

    def __init__(self, steps: int, per_epoch: int):
        self.steps, self.per_epoch, self.epoch = steps, per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        """Trainer calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.per_epoch
        return iter([step] for step in range(first, min(first + self.per_epoch, self.steps)))


def mixed_dataloader(streams: Sequence[Stream], collator: Callable, **options: Any) -> DataLoader:
    """A loader whose batches are update steps; `set_epoch` says which epoch's.

    Args:
        streams: one for each prompt.
        collator: makes a batch of rows.
        **options: of `DataLoader` (`num_workers`, …).
    """
    batches = MixedBatches(streams, collator)
    sampler = EpochSteps(len(batches), max(stream.steps_per_epoch for stream in streams))
    loader = DataLoader(batches, batch_sampler=sampler, collate_fn=_only, **options)
    loader.set_epoch = sampler.set_epoch
    return loader


def _only(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return steps[0]
