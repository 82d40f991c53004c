"""Read a row's label from a number, a text, a boolean, or a ClassLabel's number or name."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value

from ..errors import PromptTuningError
from .files import ORIGIN

logger = logging.getLogger(__name__)

UNLABELLED = ("", "-1", "-100")
"""The keys that mean "no label", unless `label_words` has words for them. -1 and -100 do so in other libraries."""


def is_missing(value: Any) -> bool:
    """Tell whether a value is None or NaN."""
    return value is None or (isinstance(value, Real) and value != value)


def label_key(value: Any) -> str:
    """Return a label value as a key of `label_words`: 1, 1.0 and "1" are the same key. A missing value gives ""."""
    if is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    return str(int(value)) if isinstance(value, Integral) or float(value).is_integer() else str(value)


def label_name(value: Any, names: Sequence[str]) -> str:
    """Return the name of a ClassLabel's value: a number, or in a stream the name. Other values give their key."""
    key = label_key(value)
    if isinstance(value, str) and key in names:
        return key
    return names[int(key)] if key.isdecimal() and int(key) < len(names) else key


def class_names(features: Mapping[str, Any] | None, column: str | None) -> list[str]:
    """Return the names of a ClassLabel column, or an empty list for any other column."""
    feature = (features or {}).get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def checked_words(label_words: Any) -> dict[str, str]:
    """Check label words and return them by label key.

    Raise PromptTuningError if they are no mapping or are empty, two keys are the same label, a label's words are not
    text or are empty, or two labels have the same words.
    """
    if not isinstance(label_words, Mapping) or not label_words:
        raise PromptTuningError(
            f"label_words is {label_words!r:.80}; give the words of each label value, "
            'e.g. {"0": "negative", "1": "positive"}.'
        )
    words: dict[str, str] = {}
    label_of: dict[str, str] = {}
    for value, text in label_words.items():
        key = label_key(value)
        if key in words:
            raise PromptTuningError(f"label_words has the label {key!r} twice; give its words once.")
        if isinstance(text, bool) or not isinstance(text, str | Real):
            of_yaml = " YAML reads yes, no, on and off without quotation marks as true and false."
            raise PromptTuningError(
                f"the words of label {key!r} are {text!r:.80}; give a text.{of_yaml if isinstance(text, bool) else ''}"
            )
        words[key] = text = str(text)
        if not text.strip():
            raise PromptTuningError(f"label {key!r} has no words (got {text!r}); give it some in label_words.")
        if text.strip() in label_of:
            raise PromptTuningError(
                f"labels {label_of[text.strip()]!r} and {key!r} have the same words {text!r}; "
                "a model cannot tell them apart. Give each its own in label_words."
            )
        label_of[text.strip()] = key
    return words


def words_by_number(words: Mapping[str, str], names: Sequence[str], column: str) -> dict[str, str]:
    """Return the label words by ClassLabel number, as the rows hold it. The keys of `words` are numbers or names.

    Raise PromptTuningError if a key is neither, is the name of one label and the number of another, or two keys are
    the same label.
    """
    by_name = {name: str(i) for i, name in enumerate(names)}
    by_number = {number: number for number in by_name.values()}
    # If only one way fits all keys, use it. E.g. three labels named "1", "2", "3" have the numbers 0 to 2, so the keys
    # "1", "2", "3" are names.
    fitting = [way for way in (by_name, by_number) if words.keys() <= way.keys()]
    ways = fitting if len(fitting) == 1 else [by_name, by_number]
    numbered: dict[str, str] = {}
    for key, text in words.items():
        readings = {way[key] for way in ways if key in way}
        if len(readings) > 1:
            raise PromptTuningError(
                f"label_words has the key {key!r}, which in the ClassLabel column {column!r} is the name of label "
                f"{by_name[key]} and the number of the label {names[int(key)]!r}. Leave label_words out, for the "
                "names to be the words, or make texts of the column (cast_column)."
            )
        if not readings:
            raise PromptTuningError(
                f"label_words has the key {key!r}, which is no label of the ClassLabel column {column!r}; there are "
                f"{', '.join(map(repr, names))}. Correct the key."
            )
        number = readings.pop()
        if number in numbered:
            raise PromptTuningError(f"label_words has the label {key!r} twice; give its words once.")
        numbered[number] = text
    return numbered


def check_is_column(column: str, names: Iterable[str], argument: str = "label_column") -> None:
    """Raise PromptTuningError if the label column, which this argument names, is not one of the data's columns."""
    if column not in names:
        raise PromptTuningError(
            f"{argument} {column!r} is no column of the data, "
            f"which has {', '.join(repr(name) for name in names if name != ORIGIN)}. Correct its name."
        )


def check_label_column(data: Dataset | IterableDataset, column: str) -> None:
    """Raise PromptTuningError if the label column is missing, or its type cannot be a label (lists, bytes)."""
    check_is_column(column, data.column_names)
    feature = (data.features or {}).get(column)
    if feature is None or isinstance(feature, ClassLabel):
        return
    if not isinstance(feature, Value) or "binary" in feature.dtype:
        raise PromptTuningError(
            f"label_column {column!r} holds {feature}; a row has one label: a text, a number or a ClassLabel."
        )


def words_of_values(data: Dataset, column: str) -> dict[str, str]:
    """Return the label words that a column provides: a ClassLabel's names in use, or the values of a text column.

    Raise PromptTuningError if it holds numbers without names, or no labels.
    """
    check_label_column(data, column)
    used = {key for value in data.unique(column) if (key := label_key(value)) not in UNLABELLED}
    if names := class_names(data.features, column):
        words = {str(i): name.replace("_", " ") for i, name in enumerate(names) if str(i) in used}
    else:
        words = {key: key for key in sorted(used)}
    if not words:
        raise PromptTuningError(f"no row of the data has a label in {column!r}; label some, or give label_words.")
    if not names and all(re.fullmatch(r"-?\d+(\.\d+)?|true|false", key, re.IGNORECASE) for key in used):
        shown = json.dumps(dict.fromkeys(sorted(used)[:5], "…"), ensure_ascii=False)
        raise PromptTuningError(
            f"label_column {column!r} holds {sorted(used)}, which say nothing to a language model. "
            f"Give the words of each, label_words {shown}. If the values themselves are the words (stars, for "
            f"example), repeat them: label_words {json.dumps({key: key for key in sorted(used)[:5]})}."
        )
    return words


@dataclass(frozen=True)
class LabelReader:
    """Turn one dataset's label values into keys of the label words.

    A ClassLabel's number has no meaning without its names. So labels are matched by name if the dataset's names differ
    from the names that the label words come from. A value with two possible meanings is rejected.

    Args:
        words: the label words by key.
        key_names: the names of the ClassLabel whose numbers are the keys of `words`; empty if the keys are values.
        names: the names of the ClassLabel in this dataset; empty if the column has another type.
        column: the label column.
    """

    words: Mapping[str, str]
    key_names: Sequence[str]
    names: Sequence[str]
    column: str

    def key(self, value: Any) -> str:
        """Return the key of a row's label, or "" for a row without a label.

        Raise PromptTuningError if the value cannot be a label, or could mean either of two labels.
        """
        if isinstance(value, list | tuple | Mapping | bytes):
            raise PromptTuningError(
                f"the label {value!r:.80} (column {self.column!r}) is a {type(value).__name__}; "
                "a row has one label, a text or a number."
            )
        key = label_key(value)
        if key not in self.words and key in UNLABELLED:
            return ""
        if key not in self.words and key.lower() in self.words and key in ("True", "False"):
            return key.lower()  # JSON's spelling
        if not self.names:
            return self._number_of(key, value) if self.key_names else key
        name = self.name(value)
        if self.key_names:
            return str(self.key_names.index(name)) if name in self.key_names else name
        if name in self.words and key in self.words and name != key:
            raise self._ambiguous(value, f"the value {key!r} or the name {name!r}")
        return name if name in self.words else key

    def name(self, value: Any) -> str:
        """Return the name of a value of this dataset's ClassLabel (`label_name`)."""
        return label_name(value, self.names)

    def names_without_words(self) -> set[str]:
        """Return the names of the ClassLabel that have no label words."""
        return {name for i, name in enumerate(self.names) if self.key(i) not in self.words}

    def _number_of(self, key: str, value: Any) -> str:
        number = str(self.key_names.index(key)) if key in self.key_names else key
        if number != key and key.isdecimal() and int(key) < len(self.key_names):
            raise self._ambiguous(value, f"label {key} ({self.key_names[int(key)]!r}) or the name of label {number}")
        return number

    def _ambiguous(self, value: Any, readings: str) -> PromptTuningError:
        return PromptTuningError(
            f"the label {value!r} (column {self.column!r}) may be {readings}: this data names its labels in another "
            "way than the data that the label words are from. Write the column alike in both."
        )


def warn_of_names(names: Sequence[str], without: set[str], data: str) -> None:
    """Warn once of the rows whose label has no label words: those of the `names` that are in `without`."""
    unnamed = [label for label in names if label in without]
    if unnamed and len(unnamed) < len(names):
        labels = " or ".join(map(repr, dict.fromkeys(unnamed)))
        logger.warning(
            f"{len(unnamed)} of {len(names)} {data} rows have the label {labels}, which has no words (no training "
            "row has it, or label_words leave it out): they count as rows without a label."
        )
