"""Tell the classes of a label column, and read a row's label as an index, a number or several of them.

This is for classification heads, which know a class by its place; a language model ranks a label's words.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, LargeList, List, Value

from ..errors import PromptTuningError
from .labels import UNLABELLED, is_missing, label_key, label_name

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
"""The problem types of a classification head, by transformers' names."""
REGRESSION, SINGLE, MULTI = PROBLEM_TYPES
LABEL_TYPES = ("int", "uint", "string", "large_string", "bool", "null")
"""The beginnings of the types of a column that names labels."""


def inner(feature: Any) -> Any:
    """Return the type of a list column's values; None if the column holds no lists."""
    return feature.feature if isinstance(feature, List | LargeList) else None


def names_of(features: Mapping[str, Any] | None, column: str) -> list[str]:
    """Return the names of a ClassLabel column, or of a column of lists of it; empty for any other column."""
    feature = (features or {}).get(column)
    feature = inner(feature) or feature
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def kind_of(feature: Any, column: str) -> str:
    """Return the problem type that the type of a label column tells.

    Floats are numbers to predict, lists are several labels, all else is one label. Raise PromptTuningError for a type
    that is none of these.
    """
    values = inner(feature)
    kind = MULTI if values is not None else SINGLE
    values = feature if values is None else values
    if isinstance(values, Value) and values.dtype.startswith(("float", "double")):
        if kind == MULTI:
            raise PromptTuningError(
                f"label_column {column!r} holds lists of numbers with a fraction; a row has one number, or a list of "
                "the names or numbers of its labels."
            )
        return REGRESSION
    is_label = isinstance(values, ClassLabel) or (isinstance(values, Value) and values.dtype.startswith(LABEL_TYPES))
    if not is_label:
        raise PromptTuningError(
            f"label_column {column!r} holds {feature}; a row has a text, a number or a ClassLabel, or a list of them."
        )
    return kind


def classes_of(data: Dataset, column: str) -> list[str]:
    """Return the classes of a label column in the order of their indices.

    They are a ClassLabel's names in its own order: those in use, as for language models, or all of them where rows
    hold lists. Other values are sorted, numbers by their size. Raise PromptTuningError if no row has a label.
    """
    names = names_of(data.features, column)
    if names and inner(data.features[column]) is not None:
        return names
    used = {label_key(value) for value in _values(data, column)}
    used -= {key for key in UNLABELLED if key in used}
    if names:
        return [name for index, name in enumerate(names) if str(index) in used]
    if not used:
        raise PromptTuningError(f"no row of the data has a label in {column!r}; label some.")
    return sorted(used, key=int) if all(key.isdecimal() for key in used) else sorted(used)


def _values(data: Dataset, column: str) -> Iterable[Any]:
    if inner(data.features[column]) is None:
        return data.unique(column)
    return {value for row in data[column] for value in row or ()}


def class_index(value: Any, classes: Sequence[str], names: Sequence[str], column: str) -> int | None:
    """Return the index of a label in `classes`; None for a missing one (None, NaN, an empty text, -1 or -100).

    Args:
        value: a name, a number, or with `names` a number of theirs.
        classes: the names of the classes. A number that is no name is an index, unless names are numbers.
        names: those of the ClassLabel in the row's data set, else of the one that the classes are from; empty if
            neither is a ClassLabel.
        column: the label column.

    Raises:
        PromptTuningError: the label is none of the classes, or no single label.
    """
    if isinstance(value, list | tuple | Mapping | bytes):
        raise PromptTuningError(
            f"the label {value!r:.80} (column {column!r}) is a {type(value).__name__}; give one label, a text or a "
            "number."
        )
    key = label_name(value, names)
    if key in classes:
        return classes.index(key)
    if key in UNLABELLED:
        return None
    if key in ("True", "False") and key.lower() in classes:  # JSON's spelling
        return classes.index(key.lower())
    is_index = not names and key.isdecimal() and int(key) < len(classes)
    if is_index and not any(name.isdecimal() for name in classes):
        return int(key)
    raise PromptTuningError(
        f"the label {key!r} (column {column!r}) is none of the classes {', '.join(map(repr, classes))}, which are "
        "those of the training data or of the backbone. Correct the row, or train with rows that have it."
    )


def number(value: Any, column: str) -> float | None:
    """Return a row's number to predict; None if it is missing. Raise PromptTuningError if it is none."""
    if is_missing(value) or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError):
        raise PromptTuningError(
            f"the label {value!r:.80} (column {column!r}) is no number, and the problem type is {REGRESSION}; give a "
            "number."
        ) from None
    if found in (float("inf"), float("-inf")):
        raise PromptTuningError(f"the label (column {column!r}) is {found}, which no head learns; give a number.")
    return found


def check_not_hot(data: Dataset, column: str, classes: Sequence[str], name: str) -> None:
    """Raise PromptTuningError if the lists of a column may be rows of zeros and ones, one number for each class.

    With two classes, [0, 1] would name both. A ClassLabel's numbers are labels.
    """
    if names_of(data.features, column) or column not in (data.features or {}):
        return
    lists = [value for value in data[column] if isinstance(value, list)]
    if len(classes) < 2 or not lists or any(len(value) != len(classes) for value in lists):
        return
    if all(isinstance(item, int) and item in (0, 1) for value in lists for item in value):
        raise PromptTuningError(
            f"the {name} data: every list in the column {column!r} holds 0 or 1 for each of the {len(classes)} "
            f"classes {', '.join(map(repr, classes))}, as rows of zeros and ones do, and is to list a row's labels; "
            "give the names of each row's labels, or lists of a ClassLabel."
        )


def several(value: Any, classes: Sequence[str], names: Sequence[str], column: str) -> list[float] | None:
    """Return 1 for each class in a list of labels and 0 for the others; None if the list is missing.

    Raise PromptTuningError if it is no list, or a label is missing, unknown or repeated.
    """
    if is_missing(value):
        return None
    if not isinstance(value, list | tuple):
        raise PromptTuningError(
            f"the label {value!r:.80} (column {column!r}) is a {type(value).__name__}, and the problem type is "
            f"{MULTI}; give a list of labels."
        )
    hot = [0.0] * len(classes)
    for item in value:
        index = class_index(item, classes, names, column)
        if index is None:
            raise PromptTuningError(f"the labels {value!r:.80} (column {column!r}) hold a missing one; leave it out.")
        if hot[index]:
            raise PromptTuningError(
                f"the labels {value!r:.80} (column {column!r}) hold {classes[index]!r} twice; a list names each label "
                "of the row once, and is no row of zeros and ones."
            )
        hot[index] = 1.0
    return hot
