"""Define the columns of encoded rows, and tell rows of token ids from rows of text."""

import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Image, IterableDataset, LargeList, List, Value

from .picture_values import stored_pictures

FEATURES = {
    "input_ids": List(Value("int64")),
    "labels": List(Value("int64")),
    "length": Value("int64"),
    "label": Value("int64"),
}
"""The columns of an encoded row and their types. `label` is there only if the template classifies."""

PICTURES = "images"
"""The column of an encoded row that has its pictures."""

TYPES = ("token_type_ids", "mm_token_type_ids")
"""Columns in which a processor tells the type of each token: 0 for text, and others for pictures."""

TYPES_FEATURE = List(Value("int64"))

ROW = "window_row"
"""The column of an encoded window that has the number of its row, if long rows are cut into windows."""

TEACHER = re.compile(r"teacher_(\d+)_(input_ids|labels)")
"""Columns of a row as a teacher reads it, for each teacher."""


def columns_of(data: Dataset | IterableDataset) -> list[str]:
    """Return the columns of a dataset. A stream may not list them; then return the columns of its first row."""
    return data.column_names if data.column_names is not None else list(next(iter(data), {}))


def has_transform(data: Dataset | IterableDataset) -> bool:
    """Tell whether a transform of the caller's makes the rows of a dataset (`with_transform`)."""
    return isinstance(data, Dataset) and data.format["type"] == "custom"


def is_of_token_ids(data: Dataset | IterableDataset) -> bool:
    """Tell whether a dataset's `input_ids` are lists of numbers, not a text column with that name."""
    if data.features is not None:
        feature = data.features.get("input_ids")
        inner = feature.feature if isinstance(feature, List | LargeList) else None
        return isinstance(inner, Value) and (inner.dtype.startswith(("int", "uint")) or inner.dtype == "null")
    first = next(iter(data), {}).get("input_ids")
    return first is not None and not isinstance(first, str | bytes | int | float)


def is_encoded(data: Dataset | IterableDataset) -> bool:
    """Tell whether rows have exactly the columns and types that `PromptTokenizer.encode_dataset` returns."""
    optional = {"label": FEATURES["label"], "was_cut": Value("bool"), PICTURES: List(Image())}
    optional |= dict.fromkeys(TYPES, TYPES_FEATURE)
    types = FEATURES | optional
    features = {name: kind for name, kind in (data.features or {}).items() if not TEACHER.fullmatch(name)}
    return FEATURES.keys() - optional <= features.keys() and all(
        feature == types.get(name) for name, feature in features.items()
    )


def as_stored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an encoded row with its pictures as they are stored. Raise PromptTuningError if one cannot be.

    Its pictures are Pillow's if a transform of the caller's makes the rows, or a stream yields them so.
    """
    pictures = {PICTURES: stored_pictures(row[PICTURES], f"the column {PICTURES!r}")} if PICTURES in row else {}
    return {**row, **pictures}


def count_padded(data: Dataset, pad: int, may_be_text: bool) -> int:
    """Return how many rows of token ids begin or end with the pad token: twice, if once it may be a token of the text.

    A tokenizer may have the end of a text as its pad token.
    """
    pads = [pad] * (2 if may_be_text else 1)
    size = len(pads)
    return sum(list(ids[:size]) == pads or list(ids[-size:]) == pads for ids in data["input_ids"])


def count_rows(data: Dataset) -> int:
    """Return how many rows of the caller are encoded in a dataset, of which each may have several windows."""
    return len(data) if ROW not in data.column_names else max(data.with_format(None)[ROW], default=-1) + 1
