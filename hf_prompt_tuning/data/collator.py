"""Pad token ids and labels into batches. No code here depends on prompts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError, first_line
from ..layouts.base import IGNORED
from .encoded_rows import PICTURES, TEACHER
from .files import ORIGIN
from .processors import is_processor

TAUGHT_ROWS = "taught_rows"
"""The column of a batch that marks the rows that a teacher teaches, [B, 1]: 0, or -100 if a row does not count."""

TEACHERS_COLUMN = re.compile(r"teacher_(\d+)_(input_ids|attention_mask|labels)")
"""Columns of a batch as a teacher reads it. Another collator may make others whose names begin alike."""


@dataclass
class DataCollatorForPromptTuning:
    """Pad rows of token ids into a batch.

    The tokenizer needs no pad token: padded positions are masked, so GPT-2's and Llama's tokenizers work unchanged.

    Args:
        tokenizer: the tokenizer that gives the padding side and the pad token. Training gives the same result with
            any of them, so rows of token ids need no tokenizer. A processor also makes what the backbone takes of
            `images`, a column of each row's pictures.
        pad_to_multiple_of: pad T to a multiple of this (for tensor cores).
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    pad_to_multiple_of: int | None = None

    def __post_init__(self):
        self._reader: Any = None

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of `input_ids`, `attention_mask` and `labels`, each [B, T] int64.

        The batch also has `label` [B] if the rows have it. Labels are padded with -100, on the same side as the ids.
        Encoder-decoder labels, which differ in length from the ids, have a T of their own and are padded on the right.
        Any other column is padded like the ids if it has one number per token id, and stacked otherwise. Raise
        PromptTuningError if a row has no `input_ids` or no `labels`, or a column cannot be batched.
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
        # A processor has a tokenizer of its own.
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        side = "right" if tokenizer is None else tokenizer.padding_side
        # A batch needs a pad token; padded positions are masked, so any token works.
        pad = 0 if tokenizer is None else tokenizer.pad_token_id or 0
        aligned = all(len(label) == len(i) for label, i in zip(labels, ids, strict=True))
        batch = {
            "input_ids": self._pad(ids, pad, side),
            "attention_mask": self._pad(masks, 0, side),
            "labels": self._pad(labels, IGNORED, side if aligned else "right"),
        }
        if not batch["labels"].shape[1]:
            # No row has labels, and a decoder does not accept an empty sequence.
            batch["labels"] = torch.full((len(labels), 1), IGNORED)
        if isinstance(features[0].get("label"), int | Tensor):  # not a text column named "label"
            batch["label"] = torch.tensor([f["label"] for f in features])
        others = dict.fromkeys(name for f in features for name in f if name not in (*batch, "label", "length", ORIGIN))
        for name in [name for name in others if TEACHER.fullmatch(name)]:
            del others[name]
            batch |= self._teacher(name, features, pad, side, aligned)
            batch[TAUGHT_ROWS] = torch.zeros(len(features), 1, dtype=torch.long)
        if PICTURES in others and is_processor(self.tokenizer):
            del others[PICTURES]
            batch |= self._pictures(features)
        return batch | {name: self._others(name, features, ids, side) for name in others}

    def _pictures(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what the processor makes of the rows' pictures."""
        from .pictures import PictureProcessor  # it needs Pillow

        if self._reader is None:
            self._reader = PictureProcessor(self.tokenizer)
        return self._reader.pixels([f.get(PICTURES) or [] for f in features])

    def _teacher(
        self, name: str, features: Sequence[dict[str, Any]], pad: int, side: str, aligned: bool
    ) -> dict[str, Tensor]:
        """Batch the ids of a teacher's rows, with their mask, or their labels."""
        rows = [torch.as_tensor(f[name], dtype=torch.long) for f in features]
        if name.endswith("labels"):
            return {name: self._pad(rows, IGNORED, side if aligned else "right")}
        mask = self._pad([torch.ones_like(row) for row in rows], 0, side)
        return {name: self._pad(rows, pad, side), name.replace("input_ids", "attention_mask"): mask}

    def _others(self, name: str, features: Sequence[dict[str, Any]], ids: list[Tensor], side: str) -> Tensor:
        """Batch a column other than the ids, mask and labels."""
        try:
            # Python floats become fp32, PyTorch's default.
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


def label_columns(batch: dict[str, Any]) -> list[Tensor]:
    """Return the columns of a batch that say which of its rows count, the student's and each teacher's."""
    own, teachers = split_teachers(batch)
    shared = [batch[TAUGHT_ROWS]] if TAUGHT_ROWS in batch else []
    return [own["labels"], *(teacher["labels"] for teacher in teachers), *shared]


def split_teachers(batch: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Split a batch into the student's own columns, and a batch of the rows as each teacher reads them."""
    own: dict[str, Any] = {}
    teachers: dict[int, dict[str, Any]] = {}
    for name, value in batch.items():
        if match := TEACHERS_COLUMN.fullmatch(name):
            teachers.setdefault(int(match[1]), {})[match[2]] = value
        else:
            own[name] = value
    rows = own.pop(TAUGHT_ROWS, None)
    return own, [teachers[number] | {TAUGHT_ROWS: rows} for number in sorted(teachers)]


def beside_texts(batch: dict[str, Any]) -> list[str]:
    """Return a batch's columns other than text (images, token types, …). Only `forward` for whole rows takes them."""
    return [name for name in batch if name not in ("input_ids", "attention_mask", "labels", "adapter_names", "label")]
