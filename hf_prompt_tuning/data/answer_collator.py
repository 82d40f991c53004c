"""Pad windows of questions and contexts into batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layouts.base import IGNORED
from .answer_windows import ENDS, STARTS
from .collator import DataCollatorForPromptTuning

IN_CONTEXT = "in_context"
"""The column of a batch that marks the tokens of the context, [B, T] bool: those an answer is made of."""
READ = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class DataCollatorForAnswers(DataCollatorForPromptTuning):
    """Pad windows of token ids into a batch, with the columns of their answers as they are in it.

    Args:
        tokenizer, pad_to_multiple_of: as in `DataCollatorForPromptTuning`.
    """

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of `input_ids`, `attention_mask` and, if the rows have them, `token_type_ids`, each [B, T].

        It also has `labels` [B, 2] long, the columns of each answer's first and last token, moved by the pads at the
        left, and -100 if they are not known; and `in_context` [B, T] bool.
        """
        rows = [{name: row[name] for name in READ if name in row} for row in features]
        marks = [[int(here < there) for here, there in zip(row[STARTS], row[ENDS], strict=True)] for row in features]
        batch = super().__call__([row | {"labels": mark} for row, mark in zip(rows, marks, strict=True)])
        in_context = (batch.pop("labels") == 1) & batch["attention_mask"].bool()
        answers = torch.tensor([list(row["labels"]) for row in features])
        pads = batch["attention_mask"].long().argmax(1)
        answers = torch.where(answers == IGNORED, IGNORED, answers + pads[:, None])
        return batch | {"labels": answers, IN_CONTEXT: in_context}
