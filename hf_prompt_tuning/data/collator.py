"""Pads token ids and labels. It knows nothing of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError, first_line
from ..layouts.base import IGNORED
from .files import ORIGIN


@dataclass
class DataCollatorForPromptTuning:
    """Makes a batch of rows of token ids.

    It needs no pad token: pads are masked, so GPT-2's and Llama's tokenizers work as they are.

    Args:
        tokenizer: its padding side and pad token are used. The result of training does not depend on either, so rows
            of token ids need none.
        pad_to_multiple_of: pad T to a multiple of this (for tensor cores).
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of `input_ids`, `attention_mask` and `labels`, all [B, T] long, and `label` [B] where rows have one.

        Labels are padded with -100 on the side where the ids are; where the labels are a text of their own (another
        length than the ids, so encoder-decoder), at the right. What else the rows have is padded as the ids are where
        it has a number for each of them, and else stacked.

        Raises:
            PromptTuningError: a row has no `input_ids`, or no `labels`, or a column makes no batch.
        """
        for name in ("input_ids", "labels"):
            if name not in features[0]:
                raise PromptTuningError(
                    f"the rows have {sorted(features[0])} and no {name!r}. "
                    "Give the trainer a template for raw columns, or rows of token ids with labels."
                )
        ids = [torch.as_tensor(f["input_ids"], dtype=torch.long) for f in features]
        masks = [
            torch.as_tensor(f["attention_mask"] if "attention_mask" in f else torch.ones_like(i), dtype=torch.long)
            for f, i in zip(features, ids, strict=True)
        ]
        labels = [torch.as_tensor(f["labels"], dtype=torch.long) for f in features]
        side = "right" if self.tokenizer is None else self.tokenizer.padding_side
        # Pads are masked, so any token will do.
        pad = 0 if self.tokenizer is None else self.tokenizer.pad_token_id or 0
        aligned = all(len(label) == len(i) for label, i in zip(labels, ids, strict=True))
        batch = {
            "input_ids": self._pad(ids, pad, side),
            "attention_mask": self._pad(masks, 0, side),
            "labels": self._pad(labels, IGNORED, side if aligned else "right"),
        }
        if not batch["labels"].shape[1]:
            # No row has a label to predict, and a decoder takes no row of nothing.
            batch["labels"] = torch.full((len(labels), 1), IGNORED)
        if isinstance(features[0].get("label"), int | Tensor):  # and not a text of the data's own
            batch["label"] = torch.tensor([f["label"] for f in features])
        others = dict.fromkeys(name for f in features for name in f if name not in (*batch, "label", "length", ORIGIN))
        return batch | {name: self._others(name, features, ids, side) for name in others}

    def _others(self, name: str, features: Sequence[dict[str, Any]], ids: list[Tensor], side: str) -> Tensor:
        """A batch of what rows have beside texts."""
        try:
            # Python's floats are fp32, as everywhere in PyTorch.
            values = [torch.as_tensor(f[name]) for f in features]
            if all(value.shape == i.shape for value, i in zip(values, ids, strict=True)):
                return self._pad(values, 0, side)
            return torch.stack(values)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PromptTuningError(
                f"the column {name!r} makes no batch: {first_line(error)}. Give each row an array of one shape, or a "
                "number for each of its token ids; or remove the column."
            ) from error

    def _pad(self, rows: list[Tensor], value: int, side: str) -> Tensor:
        if self.pad_to_multiple_of is not None:
            longest = max(len(row) for row in rows)
            length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
            short = length - len(rows[0])
            filling = (short, 0) if side == "left" else (0, short)
            rows = [torch.nn.functional.pad(rows[0], filling, value=value), *rows[1:]]
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
