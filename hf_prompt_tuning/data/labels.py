"""Which label a row has, whatever wrote it down: a number, a text, a boolean, a ClassLabel's number or its name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value

from ..errors import PromptTuningError
from .files import ORIGIN

UNLABELLED = ("", "-1")
"""The keys of rows without a label, where no words are given for them."""


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, Real) and value != value)


def label_key(value: Any) -> str:
    """A label's value as a key of `label_words`: 1, 1.0 and "1" are the same; "" for a missing one."""
    if is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    return str(int(value)) if isinstance(value, Integral) or float(value).is_integer() else str(value)


def class_names(features: Mapping[str, Any] | None, column: str | None) -> list[str]:
    """The names of a ClassLabel column's values; none for any other column."""
    feature = (features or {}).get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def checked_words(label_words: Any) -> dict[str, str]:
    """The words of each label by its key.

    Raises:
        PromptTuningError: it is no mapping or empty, two of its keys are one label, a label's words are no text or
            empty, or two labels have the same words.
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
            raise PromptTuningError(f"the words of label {key!r} are {text!r:.80}; give a text.")
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
    """The words by a ClassLabel's numbers, which its rows hold; they may be given by its names.

    Raises:
        PromptTuningError: a key is neither a name nor a number, or may be both of different labels; or two keys are
            one label.
    """
    by_name, by_number = {name: i for i, name in enumerate(names)}, {str(i): i for i in range(len(names))}
    ways = [way for way in (by_name, by_number) if words.keys() <= way.keys()]
    found: dict[str, str] = {}
    for key, text in words.items():
        # All keys are read in one way where only one is possible: of the names "1", "2", "3" no label has number 3.
        readings = {way[key] for way in (ways if len(ways) == 1 else (by_name, by_number)) if key in way}
        if len(readings) > 1:
            raise PromptTuningError(
                f"label_words has the key {key!r}, which in the ClassLabel column {column!r} is the name of label "
                f"{by_name[key]} and the number of the label {names[by_number[key]]!r}. Leave label_words out, for "
                "the names to be the words, or make texts of the column (cast_column)."
            )
        if not readings:
            raise PromptTuningError(
                f"label_words has the key {key!r}, which is no label of the ClassLabel column {column!r}; there are "
                f"{', '.join(map(repr, names))}. Mend the key."
            )
        number = str(readings.pop())
        if number in found:
            raise PromptTuningError(f"label_words has the label {key!r} twice; give its words once.")
        found[number] = text
    return found


def check_label_column(data: Dataset | IterableDataset, column: str) -> None:
    """Raises PromptTuningError where a label column is not there, or holds what is no label (lists, bytes)."""
    if column not in data.column_names:
        raise PromptTuningError(
            f"label_column {column!r} is no column of the data, "
            f"which has {', '.join(repr(c) for c in data.column_names if c != ORIGIN)}. Mend its name."
        )
    feature = (data.features or {}).get(column)
    if feature is None or isinstance(feature, ClassLabel):
        return
    if not isinstance(feature, Value) or "binary" in feature.dtype:
        raise PromptTuningError(
            f"label_column {column!r} holds {feature}; a row has one label: a text, a number or a ClassLabel."
        )


def words_of_values(data: Dataset, column: str) -> dict[str, str]:
    """The words that a column brings itself: a ClassLabel's names that are used, or a text's own values.

    Raises:
        PromptTuningError: the column holds numbers that have no names, or no label at all.
    """
    check_label_column(data, column)
    used = {key for value in data.unique(column) if (key := label_key(value)) not in UNLABELLED}
    if names := class_names(data.features, column):
        words = {str(i): name.replace("_", " ") for i, name in enumerate(names) if str(i) in used}
    elif used and all(re.fullmatch(r"-?\d+(\.\d+)?|true|false", key, re.IGNORECASE) for key in used):
        raise PromptTuningError(
            f"label_column {column!r} holds {sorted(used)}, which say nothing to a language model. "
            'Give their words, e.g. label_words {"0": "negative", "1": "positive"}.'
        )
    else:
        words = {key: key for key in sorted(used)}
    if not words:
        raise PromptTuningError(f"no row of the data has a label in {column!r}; label some, or give label_words.")
    return words


@dataclass(frozen=True)
class LabelReader:
    """How one data set's values become keys of label words.

    A ClassLabel's number says nothing without its names. So names decide wherever the data set's are not those that
    the words are from, and a value that may be read in two ways is refused.

    Args:
        words: by key.
        known: the names of the ClassLabel whose numbers the keys are; none where the keys are values.
        names: those of the ClassLabel in this data set; none where the column has another type.
        column: the label's.
    """

    words: Mapping[str, str]
    known: Sequence[str]
    names: Sequence[str]
    column: str

    def key(self, value: Any) -> str:
        """The key of a row's label; "" for a row without one.

        Raises:
            PromptTuningError: the value is no label, or may be two of them.
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
            return key.lower()  # as JSON writes it
        if not self.names:
            return self._by_known_name(key, value) if self.known else key
        name = self.name(value)
        if self.known:
            return str(self.known.index(name)) if name in self.known else name
        if name in self.words and key in self.words and name != key:
            raise self._ambiguous(value, f"the value {key!r} or the name {name!r}")
        return name if name in self.words else key

    def name(self, value: Any) -> str:
        """The name of a ClassLabel's value, which is its number (or, of a stream, the name itself); else its key."""
        key = label_key(value)
        if isinstance(value, str) and key in self.names:
            return key
        return self.names[int(key)] if key.isdecimal() and int(key) < len(self.names) else key

    def names_without_words(self) -> set[str]:
        """The ClassLabel's names that are no candidates."""
        return {name for i, name in enumerate(self.names) if self.key(i) not in self.words}

    def _by_known_name(self, key: str, value: Any) -> str:
        number = str(self.known.index(key)) if key in self.known else key
        if number != key and key.isdecimal() and int(key) < len(self.known):
            raise self._ambiguous(value, f"label {key} ({self.known[int(key)]!r}) or the name of label {number}")
        return number

    def _ambiguous(self, value: Any, readings: str) -> PromptTuningError:
        return PromptTuningError(
            f"the label {value!r} (column {self.column!r}) may be {readings}: this data names its labels in another "
            "way than the data that the label words are from. Write the column alike in both."
        )
