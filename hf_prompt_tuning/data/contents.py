"""Make the model's inputs of rows that are to be answered."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..layouts.base import IGNORED
from .collator import DataCollatorForPromptTuning
from .encoded_rows import PICTURES

NO_COLUMNS: Mapping[str, Any] = {}


class Content(NamedTuple):
    """A row that is to be answered.

    Attributes:
        ids: its tokens.
        unwritten: in words, the first part of a chat that the chat template left out; None if all is there.
        columns: its pictures and the type of each token, as in an encoded row; empty without a processor.
    """

    ids: list[int]
    unwritten: str | None
    columns: Mapping[str, Any] = NO_COLUMNS

    @property
    def types(self) -> dict[str, list[int]]:
        """The columns of a number for each token."""
        return {name: values for name, values in self.columns.items() if name != PICTURES}

    @property
    def pictures(self) -> list[Any]:
        """Its pictures."""
        return self.columns.get(PICTURES) or []


def model_inputs(contents: Sequence[Content], tokenizer: PreTrainedTokenizerBase, pictures: Any) -> BatchEncoding:
    """Return what a model takes of rows: `input_ids` and `attention_mask`, [B, T] long, and what pictures are.

    Rows are padded at the tokenizer's side. `pictures` is the `PictureProcessor` of the rows; None for texts alone.
    """
    rows = [{"input_ids": c.ids, "labels": [IGNORED] * len(c.ids), **c.types} for c in contents]
    batch: dict[str, Tensor] = DataCollatorForPromptTuning(tokenizer)(rows)
    del batch["labels"]
    if pictures is not None:
        batch |= pictures.pixels([content.pictures for content in contents])
    return BatchEncoding(batch)
