"""What a trainer is given as data: raw columns become token ids, and what cannot be trained on is refused at once."""

from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .data_files import ORIGIN
from .errors import PromptTuningError
from .tokenization import PromptTokenizer, origin


def encode_data(data: Any, name: str, encoder: PromptTokenizer | None, limit: int | None, require_target: bool) -> Any:
    """Token ids of a dataset (or of each in a dict of datasets); rows of token ids pass as they are.

    Args:
        data: a dataset, a list of rows, a dict of datasets, or None.
        name: what messages call it ("training", "evaluation", …).
        encoder: makes token ids of raw columns; None where there is no template.
        limit: how many tokens a row may have; None for no limit.
        require_target: refuse rows without a label.

    Raises:
        PromptTuningError: no rows, no column of token ids, a row that is too long, or data of an unknown kind.
    """
    if data is None:
        return None
    if isinstance(data, dict):
        return {key: encode_data(value, key, encoder, limit, require_target) for key, value in data.items()}
    if isinstance(data, list):
        data = Dataset.from_list(data)
    if hasattr(data, "__len__") and len(data) == 0:
        raise PromptTuningError(f"the {name} data has no rows; give it some, or leave it out.")
    raw = data
    if encoder is not None and not isinstance(data, Dataset | IterableDataset):
        raise PromptTuningError(
            f"the {name} data is a {type(data).__name__}, and a template makes text of rows; give a list of them, or "
            "a Dataset or IterableDataset of the datasets library."
        )
    if encoder is not None and "input_ids" not in (data.column_names or ()):
        data = encoder.encode_dataset(data, name, require_target)
    if isinstance(data, Dataset):
        _check_rows(data, raw, name, limit)
    return data


def _check_rows(data: Dataset, raw: Dataset, name: str, limit: int | None) -> None:
    if "input_ids" not in data.column_names:
        columns = ", ".join(repr(column) for column in data.column_names if column != ORIGIN)
        raise PromptTuningError(
            f"the {name} data has the columns {columns} and no 'input_ids'. "
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


def as_dataset(data: Any) -> Dataset | None:
    """The data (the first of a dict) as a Dataset whose columns can be read, where that is possible."""
    if isinstance(data, dict):
        data = next(iter(data.values()), None)
    if isinstance(data, list) and data:
        data = Dataset.from_list(data)
    return data if isinstance(data, Dataset) else None
