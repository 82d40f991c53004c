"""Check that token ids are rows of the backbone's embedding. A tokenizer may have tokens that the backbone lacks."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .tokenization import origin

ROWS_AT_ONCE = 10_000


def check_ids(ids: Iterable[int], rows: int, what: str) -> None:
    """Raise PromptTuningError if an id is not a row of the embedding.

    Args:
        ids: token ids.
        rows: V, the number of rows in the embedding.
        what: the start of the message: what has these ids.
    """
    unknown = next((i for i in ids if not 0 <= i < rows), None)
    if unknown is not None:
        raise PromptTuningError(
            f"{what} the token id {unknown}, and the backbone's embedding has rows 0 to {rows - 1}. Use the "
            "backbone's own tokenizer, or call backbone.resize_token_embeddings(len(tokenizer)) before it gets a "
            "prompt."
        )


def vocabulary_of(model: Any) -> int | None:
    """Return the number of rows in a backbone's embedding, with or without a prompt; None if it is unknown."""
    embed = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return getattr(embed, "num_embeddings", None)


def check_dataset(data: Dataset, raw: Dataset, name: str, rows: int) -> None:
    """Check the `input_ids` and `labels` of every row, as `check_ids` does.

    Args:
        data: rows of token ids.
        raw: the same rows before encoding, which may name their origin.
        name: the name of the data in messages.
        rows: V, the number of rows in the embedding.
    """
    start = 0
    for batch in data.with_format("arrow").iter(ROWS_AT_ONCE):
        for column, ignored in (("input_ids", None), ("labels", IGNORED)):
            if column in batch.column_names and _has_unknown(batch.column(column), rows, ignored):
                for i, ids in enumerate(batch.column(column).to_pylist(), start):
                    tokens = [token for token in ids or () if token != ignored]
                    check_ids(tokens, rows, f"row {i + 1} of the {name} data{origin(raw[i])} has in {column}")
        start += batch.num_rows


def _has_unknown(ids: pa.ChunkedArray, rows: int, ignored: int | None) -> bool:
    flat = pc.list_flatten(ids)
    if not pa.types.is_integer(flat.type):
        return False
    if ignored is not None:
        flat = flat.filter(pc.not_equal(flat, ignored))
    ends = pc.min_max(flat).as_py()
    return ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < rows
