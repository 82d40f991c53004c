"""Pad rows for classification heads into batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PromptTuningError, first_line
from ..layouts.base import IGNORED
from .collator import DataCollatorForPromptTuning


@dataclass
class DataCollatorForHeads(DataCollatorForPromptTuning):
    """Pad rows of token ids, and batch their labels as a classification head takes them.

    Args:
        tokenizer, pad_to_multiple_of: as in `DataCollatorForPromptTuning`.
        tags: whether labels are one for each token, padded with -100.
    """

    tags: bool = False

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of `input_ids` and `attention_mask` [B, T], and `labels` if the rows have them.

        `labels` are [B, T] long (tags), [B] long or floats, or [B, L] floats. Any other column is batched as
        `DataCollatorForPromptTuning` does. Raise PromptTuningError if a column cannot be batched.
        """
        # The base pads labels of each token; for a row's own label, stand-ins are given to it.
        as_tags = [row | {"labels": row.get("labels") if self._has_tags(row) else []} for row in features]
        for row in as_tags:
            if not len(row["labels"]):
                row["labels"] = [IGNORED] * len(row["input_ids"])
        batch = super().__call__(as_tags)
        if not self.tags:
            del batch["labels"]
            if "labels" in features[0]:
                batch["labels"] = self._labels(features)
        return batch

    def _has_tags(self, row: dict[str, Any]) -> bool:
        return self.tags and row.get("labels") is not None

    def _labels(self, features: Sequence[dict[str, Any]]) -> Tensor:
        try:
            labels = torch.stack([torch.as_tensor(row["labels"]) for row in features])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PromptTuningError(
                f"the column 'labels' makes no batch: {first_line(error)}. Give each row a number, or as many as the "
                "head has labels."
            ) from error
        return labels.float() if labels.is_floating_point() else labels.long()
