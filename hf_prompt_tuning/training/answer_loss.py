"""Compute the loss of a head that finds answers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .head_optimizer import head_rate


@dataclass
class AnswerLoss:
    """The loss of a head for answers, a mean over the windows of an update step whose answer is known."""

    @classmethod
    def of_run(cls, args: TrainingArguments) -> "AnswerLoss":
        """Return the loss of a run. Raise PromptTuningError for an argument of classes."""
        head_rate(args)  # raises here, before training
        for name in ("class_weights", "pos_weight", "label_smoothing_factor"):
            if given := getattr(args, name, None):
                raise PromptTuningError(
                    f"{name} is {given!r:.80}, which is for classes, and the backbone has a head for answers; leave "
                    "it out."
                )
        return cls()

    def parts(self, outputs: Any, labels: Tensor) -> Tensor:
        """Return the loss of each window, [B] fp32: the mean of two cross-entropies, 0 where no answer is known.

        `labels` are the columns of first and last tokens, [B, 2] long. Pads take no part in the softmax.
        """
        logits = outputs["start_logits"], outputs["end_logits"]
        sides = [
            cross_entropy(scores.float(), places, ignore_index=IGNORED, reduction="none")
            for scores, places in zip(logits, labels.unbind(1), strict=True)
        ]
        return sum(sides) / len(sides)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss of a batch as `Trainer` asks for it.

        It is the sum of the windows' losses, divided by `num_items_in_batch`, which is what `items` counts in the
        whole update step; without it, by what this batch has.
        """
        values = self.parts(outputs, labels)
        items = self.items(labels) if num_items_in_batch is None else num_items_in_batch
        return values.sum() / torch.as_tensor(items, device=values.device).clamp(min=1)

    def items(self, labels: Tensor) -> Tensor:
        """Return how many windows of a batch count in the mean, as a tensor of one number."""
        return (labels[:, 0] != IGNORED).sum()
