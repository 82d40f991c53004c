"""Encode and check a trainer's data: turn raw columns into token ids, and reject invalid data before training.

A tokenizer may have tokens that the backbone lacks, so token ids must be rows of the backbone's embedding.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .changed_values import ChangeWarning
from .encoded_rows import columns_of, is_encoded, is_of_token_ids
from .files import ORIGIN, agreeing
from .heads import without_head
from .message_content import of_one_kind
from .origins import naming, origin
from .picture_values import stored_pictures
from .rows import is_table
from .template import PromptTemplate
from .tokenization import PromptTokenizer

ROWS_AT_ONCE = 10_000


def encode_data(
    data: Any,
    name: str,
    encoder: PromptTokenizer | None,
    limit: int | None,
    require_target: bool,
    vocabulary: int | None = None,
    require_labels: bool = False,
    head: Sequence[int] = (),
) -> Any:
    """Return the token ids of a dataset, or of each dataset in a dict. Keep rows that are token ids already.

    Args:
        data: a dataset, a list of rows, a dict of datasets, or None.
        name: the name of the data in messages ("training", "evaluation", …).
        encoder: encodes raw columns; None if there is no template.
        limit: the largest number of tokens in a row; None for no limit.
        require_target: reject rows without a label.
        vocabulary: the number of rows in the backbone's embedding; None skips the check of the ids.
        require_labels: reject rows of token ids if none of them has a label. Checked together with the ids.
        head: the tokens that the prompt stands behind. Those with which rows begin do not count for `limit`.

    Raises:
        PromptTuningError: the data has no rows, no label, no token ids, a row that is too long, an unknown token id,
            or an unsupported type; or some rows begin with the head and others do not.
    """
    if data is None:
        return None
    if isinstance(data, dict):
        options = limit, require_target, vocabulary, False, head
        return {key: encode_data(rows, key, encoder, *options) for key, rows in data.items()}
    rows = from_list(data, name, tells=True) if isinstance(data, list) else data
    if hasattr(rows, "__len__") and len(rows) == 0:
        raise PromptTuningError(f"the {name} data has no rows; give it some, or leave it out.")
    if isinstance(rows, Dataset | IterableDataset):
        encoded = _encoded(rows, name, encoder, require_target)
        if isinstance(encoded, Dataset):
            tokenizer = None if encoder is None else encoder.tokenizer
            _check_rows(encoded, rows, name, limit, head, tokenizer)
            if vocabulary is not None:
                check_dataset(encoded, rows, name, vocabulary, require_labels)
        return encoded
    if encoder is not None:
        raise PromptTuningError(
            f"the {name} data is a {type(rows).__name__}, and a template makes text of rows; give a list of them, or "
            "a Dataset or IterableDataset of the datasets library."
        )
    return rows


def _encoded(
    rows: Dataset | IterableDataset, name: str, encoder: PromptTokenizer | None, require_target: bool
) -> Dataset | IterableDataset:
    """Apply the template if there is one for these rows. Else keep them, as rows of token ids."""
    if encoder is not None and is_text(rows, encoder.template):
        return encoder.encode_dataset(rows, name, require_target)
    if is_encoded(rows):
        return rows
    if encoder is not None and encoder.template.is_classification and not require_target:
        raise PromptTuningError(
            f"the {name} data has token ids, and the template ranks labels, which these rows do not tell. Give "
            "the rows with the template's columns, or as PromptTokenizer.encode_dataset gives them."
        )
    # Remove the user's own `length` and `label`. A sampler would read `length` as the number of tokens, and `label`
    # would be read as the index of a label.
    own = [column for column in ("length", "label") if column in columns_of(rows)]
    return rows.remove_columns(own) if own else rows


def check_kind(data: Any, name: str, may_be_several: bool = False) -> None:
    """Raise PromptTuningError if the data is a dict of splits, a table of another library, or the name of a file.

    `may_be_several` accepts a dict of data sets.
    """
    if may_be_several and isinstance(data, dict):
        for key, rows in data.items():
            check_kind(rows, f"{name} ({key})")
        return
    kind = type(data)
    if isinstance(data, dict) and all(isinstance(key, str) for key in data):  # numbers as keys could be row numbers
        splits = all(isinstance(rows, Dataset | IterableDataset) for rows in data.values())
        fix = "one of its splits" if splits else "a list of rows, or Dataset.from_dict(…) of columns"
        keys = ", ".join(map(repr, data)) or "nothing"
        raise PromptTuningError(f"the {name} data is a {kind.__name__} of {keys}; give {fix}.")
    if is_table(data) or kind.__name__ == "LazyFrame":
        makers = {"pandas": "Dataset.from_pandas(…, preserve_index=False)", "polars": "Dataset.from_polars(…)"}
        maker = makers.get(kind.__module__.partition(".")[0], "Dataset(…)")
        raise PromptTuningError(f"the {name} data is a {kind.__name__}; give {maker} of the datasets library.")
    if isinstance(data, str | Path):
        raise PromptTuningError(
            f"the {name} data is the {kind.__name__} {str(data)!r:.80}; give its rows: a list of them, or a Dataset "
            '(load_dataset("json", data_files=…, split="train")).'
        )


def from_list(rows: list[Any], name: str, tells: bool = False) -> Dataset:
    """Return the rows as a dataset with the columns of all rows. If it `tells`, warn of a column that is changed.

    Raise PromptTuningError if a row is not a mapping with column names as keys, or a column holds different types.
    """
    for i, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
            raise PromptTuningError(
                f"row {i} of the {name} data is {row!r:.80}; give a mapping of column names to values."
            )
    # Take the columns of all rows: `Dataset.from_list` reads only those of the first row.
    columns = dict.fromkeys(column for row in rows for column in row)
    rows = [_stored(row, index, name) for index, row in enumerate(rows)]
    with agreeing(f"the rows of the {name} data"):
        values = {column: of_one_kind([row.get(column) for row in rows]) for column in columns}
        data = Dataset.from_dict(values)
    warning = ChangeWarning(f"the {name} data")
    for column in columns if tells else ():
        warning.see(column, 1, values[column], data.data.column(column))
    return data


def _stored(row: Mapping[str, Any], index: int, name: str) -> dict[str, Any]:
    """Return a row with its pictures of Pillow as they are stored. Raise PromptTuningError if one cannot be."""
    with naming(row, index, name):
        return {column: stored_pictures(value, f"the column {column!r}") for column, value in row.items()}


def is_text(data: Dataset | IterableDataset, template: PromptTemplate) -> bool:
    """Tell whether the template must be applied to these rows.

    Rows of token ids need no template. Rows that have both token ids and all columns of the template count as text,
    because the caller gave the template for them.
    """
    if not is_of_token_ids(data):
        return True
    if is_encoded(data):
        return False
    needed = [*template.columns, *([template.label_column] if template.is_classification else [])]
    return set(needed) <= set(columns_of(data))


def _check_rows(
    data: Dataset,
    raw: Dataset,
    name: str,
    limit: int | None,
    head: Sequence[int],
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    if not is_of_token_ids(data):
        columns = ", ".join(repr(column) for column in columns_of(raw) if column != ORIGIN)
        raise PromptTuningError(
            f"the {name} data has the columns {columns} and no 'input_ids' of token ids. "
            "Give a template that makes text of the columns, or rows of token ids."
        )
    in_head = _tokens_of_head(data, raw, name, head, tokenizer) if head else 0
    if limit is None:
        return
    limit += in_head
    lengths = data["length"] if "length" in data.column_names else [len(ids) for ids in data["input_ids"]]
    longest = int(np.argmax(lengths))
    if lengths[longest] > limit:
        raise PromptTuningError(
            f"row {longest + 1} of the {name} data{origin(raw[longest])} has {lengths[longest]} tokens, and behind "
            f"the prompt the backbone has positions for {max(limit, 0)}. Shorten the row (max_source_length cuts "
            "texts, not tagged words), or lower num_virtual_tokens."
        )


def _tokens_of_head(
    data: Dataset, raw: Dataset, name: str, head: Sequence[int], tokenizer: PreTrainedTokenizerBase | None
) -> int:
    """Return how many tokens of the head every row begins with: all or none.

    Raises:
        PromptTuningError: some rows begin with it and others do not, or a row begins with a part of it.
    """
    counts: list[int] = []
    for i, ids in enumerate(data["input_ids"]):
        try:
            counts.append(len(ids) - len(without_head(ids, head, tokenizer)))
            if counts[i] != counts[0]:
                raise PromptTuningError(
                    f"the row begins with {list(ids[: len(head)])}, and the prompt stands behind {list(head)}, with "
                    "which some rows begin and others do not. Tokenize all rows in one way."
                )
        except PromptTuningError as error:
            raise PromptTuningError(f"row {i + 1} of the {name} data{origin(raw[i])}: {error}") from error
    return counts[0]


def text_rows(data: Any, template: PromptTemplate) -> Dataset | IterableDataset | None:
    """Return the data (of a dict, the first dataset) as a dataset if the template must be applied to it, else None."""
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    if isinstance(data, list) and data:
        data = from_list(data, "training")
    return data if isinstance(data, Dataset | IterableDataset) and is_text(data, template) else None


def with_label_words(template: PromptTemplate | None, train: Any, evaluation: Any) -> PromptTemplate | None:
    """Return the template, or None, with the label words of a trainer's data (`PromptTemplate.with_label_words`)."""
    if template is None:
        return None
    return template.with_label_words(text_rows(train, template), text_rows(evaluation, template))


def check_ids(ids: Iterable[int], rows: int, what: str) -> None:
    """Raise PromptTuningError if an id is not one of the embedding's V `rows`. The message starts with `what`."""
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


def check_dataset(data: Dataset, raw: Dataset, name: str, rows: int, require_labels: bool = False) -> None:
    """Check the `input_ids` and `labels` of every row, as `check_ids` does.

    `raw` are the same rows before encoding, which may name their origin. With `require_labels`, also raise
    PromptTuningError if there are labels and all of them are -100.
    """
    start, has_labels = 0, not require_labels or "labels" not in data.column_names
    for batch in data.with_format("arrow").iter(ROWS_AT_ONCE):
        for column, ignored in (("input_ids", None), ("labels", IGNORED)):
            if column not in batch.column_names:
                continue
            least, largest = _least_and_largest(batch.column(column), ignored)
            has_labels = has_labels or (column == "labels" and least is not None)
            if least is not None and not 0 <= least <= largest < rows:
                for i, ids in enumerate(batch.column(column).to_pylist(), start):
                    tokens = [token for token in ids or () if token != ignored]
                    check_ids(tokens, rows, f"row {i + 1} of the {name} data{origin(raw[i])} has in {column}")
        start += batch.num_rows
    if not has_labels:
        raise PromptTuningError(
            f"no row of the {name} data has a label; all labels are {IGNORED}. Give the tokens to predict their ids "
            "as labels."
        )


def _least_and_largest(ids: pa.ChunkedArray, ignored: int | None) -> tuple[Any, Any]:
    """Return the least and the largest id that is not ignored; (None, None) if there is none.

    Values that are no integers are not checked: return (0, 0).
    """
    flat = pc.list_flatten(ids)
    if not pa.types.is_integer(flat.type):
        return (None, None) if pa.types.is_null(flat.type) else (0, 0)
    if ignored is not None:
        flat = flat.filter(pc.not_equal(flat, ignored))
    ends = pc.min_max(flat).as_py()
    return ends["min"], ends["max"]
