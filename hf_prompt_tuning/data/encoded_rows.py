"""What rows of token ids look like, and how they are told from rows of text, whatever columns those have."""

from datasets import Dataset, IterableDataset, LargeList, List, Value

FEATURES = {
    "input_ids": List(Value("int64")),
    "labels": List(Value("int64")),
    "length": Value("int64"),
    "label": Value("int64"),
}
"""What an encoded row has, and its types; `label` only where the template classifies."""


def columns_of(data: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset; of a stream that does not tell, those of its first row."""
    return data.column_names if data.column_names is not None else list(next(iter(data), {}))


def is_of_token_ids(data: Dataset | IterableDataset) -> bool:
    """Whether a dataset has `input_ids` that are lists of numbers, and not texts of that name."""
    if data.features is not None:
        feature = data.features.get("input_ids")
        inner = feature.feature if isinstance(feature, List | LargeList) else None
        return isinstance(inner, Value) and (inner.dtype.startswith(("int", "uint")) or inner.dtype == "null")
    first = next(iter(data), {}).get("input_ids")
    return first is not None and not isinstance(first, str | bytes | int | float)


def is_encoded(data: Dataset | IterableDataset) -> bool:
    """Whether rows are as `PromptTokenizer.encode_dataset` gives them, of these columns and types alone."""
    found = dict(data.features or {})
    return all(found.pop(name, None) == FEATURES[name] for name in ("input_ids", "labels", "length")) and all(
        kind == FEATURES.get(name, Value("bool") if name == "was_cut" else None) for name, kind in found.items()
    )
