"""What a trainer is given as data: raw columns become token ids, and what cannot be trained on is refused at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from ..errors import PromptTuningError, first_line
from .encoded_rows import columns_of, is_encoded, is_of_token_ids
from .files import ORIGIN
from .template import PromptTemplate
from .token_ids import check_dataset
from .tokenization import PromptTokenizer, origin


def encode_data(
    data: Any,
    name: str,
    encoder: PromptTokenizer | None,
    limit: int | None,
    require_target: bool,
    vocabulary: int | None = None,
) -> Any:
    """Token ids of a dataset (or of each in a dict of datasets); rows of token ids pass as they are.

    Args:
        data: a dataset, a list of rows, a dict of datasets, or None.
        name: what messages call it ("training", "evaluation", …).
        encoder: makes token ids of raw columns; None where there is no template.
        limit: how many tokens a row may have; None for no limit.
        require_target: refuse rows without a label.
        vocabulary: the rows of the backbone's embedding; None leaves the ids unchecked.

    Raises:
        PromptTuningError: no rows, no column of token ids, a row that is too long, a token that the backbone does not
            know, or data of an unknown kind.
    """
    if data is None:
        return None
    if isinstance(data, dict):
        return {
            key: encode_data(value, key, encoder, limit, require_target, vocabulary) for key, value in data.items()
        }
    if isinstance(data, list):
        data = from_list(data, name)
    if hasattr(data, "__len__") and len(data) == 0:
        raise PromptTuningError(f"the {name} data has no rows; give it some, or leave it out.")
    raw = data
    if encoder is not None and not isinstance(data, Dataset | IterableDataset):
        raise PromptTuningError(
            f"the {name} data is a {type(data).__name__}, and a template makes text of rows; give a list of them, or "
            "a Dataset or IterableDataset of the datasets library."
        )
    if encoder is not None and is_text(data, encoder.template):
        data = encoder.encode_dataset(data, name, require_target)
    elif isinstance(data, Dataset | IterableDataset) and not is_encoded(data):
        if encoder is not None and encoder.template.is_classification and not require_target:
            raise PromptTuningError(
                f"the {name} data has token ids, and the template ranks labels, which these rows do not tell. Give "
                "the rows with the template's columns, or as PromptTokenizer.encode_dataset gives them."
            )
        data = _without_own(data)
    if isinstance(data, Dataset):
        _check_rows(data, raw, name, limit)
        if vocabulary is not None:
            check_dataset(data, raw, name, vocabulary)
    return data


def from_list(rows: list[Any], name: str) -> Dataset:
    """Rows as a dataset, with every column that any of them has.

    Raises:
        PromptTuningError: a row is no mapping of column names, or rows differ in what a column holds.
    """
    for i, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
            raise PromptTuningError(
                f"row {i} of the {name} data is {row!r:.80}; give a mapping of column names to values."
            )
    # Of all rows: `Dataset.from_list` looks at the first one's alone.
    columns = dict.fromkeys(column for row in rows for column in row)
    try:
        return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise PromptTuningError(
            f"the rows of the {name} data do not agree on what a column holds: {first_line(error)}. "
            "Give it alike in all of them."
        ) from error


def is_text(data: Dataset | IterableDataset, template: PromptTemplate) -> bool:
    """Whether the template is to make text of these rows, because they are not token ids already.

    Rows that have both token ids and all that the template reads are text: the template was given for them.
    """
    if not is_of_token_ids(data):
        return True
    if is_encoded(data):
        return False
    needed = [*template.columns, *([template.label_column] if template.is_classification else [])]
    return set(needed) <= set(columns_of(data))


def _without_own(data: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Rows of token ids without columns that are called like encoded ones, and say something else.

    A sampler would take `length` for the number of tokens, and `label` would be taken for the number of a label.
    """
    own = [name for name in ("length", "label") if name in columns_of(data)]
    return data.remove_columns(own) if own else data


def _check_rows(data: Dataset, raw: Dataset, name: str, limit: int | None) -> None:
    if not is_of_token_ids(data):
        columns = ", ".join(repr(column) for column in columns_of(raw) if column != ORIGIN)
        raise PromptTuningError(
            f"the {name} data has the columns {columns} and no 'input_ids' of token ids. "
            "Give a template that makes text of the columns, or rows of token ids."
        )
    if limit is None:
        return
    lengths = data["length"] if "length" in data.column_names else [len(ids) for ids in data["input_ids"]]
    longest = int(np.argmax(lengths))
    if lengths[longest] > limit:
        raise PromptTuningError(
            f"row {longest + 1} of the {name} data{origin(raw[longest])} has {lengths[longest]} tokens, and behind "
            f"the prompt the backbone has positions for {limit}. Lower max_source_length or num_virtual_tokens."
        )


def text_rows(data: Any, template: PromptTemplate) -> Dataset | IterableDataset | None:
    """The data (the first of a dict) as a dataset, where the template is to make text of it."""
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    if isinstance(data, list) and data:
        data = from_list(data, "training")
    return data if isinstance(data, Dataset | IterableDataset) and is_text(data, template) else None


def with_label_words(template: PromptTemplate | None, train: Any, evaluation: Any) -> PromptTemplate | None:
    """The template with the words of every label, from a trainer's data (see `PromptTemplate.with_label_words`).

    Args:
        template: None stays so.
        train: a dataset, a list of rows, or None.
        evaluation: the same, or a dict of such.
    """
    if template is None:
        return None
    return template.with_label_words(text_rows(train, template), text_rows(evaluation, template))
