"""From columns to words: the source text, the target text, and the words of each label."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from functools import cached_property
from numbers import Number
from typing import Any

from datasets import ClassLabel, Dataset

from .data_files import ORIGIN
from .errors import PromptTuningError

PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
NOT_A_COLUMN = re.compile(r"\.__|\[|\]|![rsa]\b|:[^ ]*$")
"""What str.format would take for an attribute, an index, a conversion or a format: never looked up, so refused."""


TEXTS = (str, Number, date, time, timedelta)
"""The kinds of value that a field may have (a `datetime` is a `date`)."""


@dataclass(frozen=True)
class PromptTemplate:
    """How a row of data becomes a source text and a target text.

    `{name}` stands for the column of that very name (nothing else: no attributes, no format codes), `{{` and `}}` for
    braces. The target is either free text (`target`) or a label's words (`label_column`).

    Args:
        source: e.g. `"Tweet text : {Tweet text} Label :"`.
        target: e.g. `"{summary}"`, for free text.
        label_column: the column that holds the label, for classification.
        label_words: the words of each label value, e.g. `{"1": "complaint", "2": "no complaint"}`. Where it is not
            given: a ClassLabel column's names (underscores as spaces), or a text column's own values.
        separator: what stands between source and target where neither brings white space of its own. It is part of
            the target. Encoder-decoder models, whose target is a text of its own, do not use it.
        max_source_length: cut the source to so many tokens (the longest field first). None: never.
        max_target_length: refuse a longer target, and generate at most so many tokens. None: no limit for targets,
            and generation as long as the longest target seen in training.

    Raises:
        PromptTuningError: no target and no label column, or both; a stray brace; two labels with the same words.
    """

    source: str
    target: str | None = None
    label_column: str | None = None
    label_words: Mapping[str, str] | None = None
    separator: str = " "
    max_source_length: int | None = None
    max_target_length: int | None = None

    def __post_init__(self):
        if (self.target is None) == (self.label_column is None):
            raise PromptTuningError(
                f"target is {self.target!r} and label_column is {self.label_column!r}; give one of them: "
                "a target template for free text, or the label's column for classification."
            )
        for name in ("max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PromptTuningError(f"{name} is {value}; give 1 or more tokens, or leave it out.")
        if self.label_words is not None:
            if self.label_column is None:
                raise PromptTuningError("label_words are given without label_column; name the label's column.")
            words = {str(key): str(value) for key, value in self.label_words.items()}
            object.__setattr__(self, "label_words", words)
            self._check_words(words)
        self.columns  # noqa: B018  (parses both templates, so that a stray brace is found here)

    @staticmethod
    def _check_words(words: Mapping[str, str]) -> None:
        label_of: dict[str, str] = {}
        for label, text in words.items():
            if not text.strip():
                raise PromptTuningError(f"label {label!r} has no words (got {text!r}); give it some in label_words.")
            if text.strip() in label_of:
                raise PromptTuningError(
                    f"labels {label_of[text.strip()]!r} and {label!r} have the same words {text!r}; "
                    "a model cannot tell them apart. Give each its own in label_words."
                )
            label_of[text.strip()] = label

    @cached_property
    def columns(self) -> list[str]:
        """The columns that the templates name, in order, without the label's."""
        pieces = parse(self.source) + (parse(self.target) if self.target is not None else [])
        return list(dict.fromkeys(name for is_field, name in pieces if is_field))

    @property
    def source_columns(self) -> list[str]:
        """The columns that the source names, in order: what a row needs to be predicted."""
        return list(dict.fromkeys(name for is_field, name in parse(self.source) if is_field))

    @property
    def is_classification(self) -> bool:
        """Whether a prompt with this template ranks labels (rather than writing text)."""
        return self.label_column is not None

    @property
    def labels(self) -> list[str]:
        """The label values that are candidates, in the order of every list of scores."""
        return list(self.label_words or ())

    def check_columns(self, column_names: Iterable[str], data: str) -> None:
        """Raises PromptTuningError where a column that the template needs is not in `data`."""
        missing = [name for name in self.columns if name not in column_names]
        if missing:
            raise PromptTuningError(
                f"the template's field {{{missing[0]}}} is no column of the {data} data, "
                f"which has {', '.join(map(repr, column_names))}. Mend the template or the column's name."
            )

    def check_fields(self, row: Mapping[str, Any]) -> None:
        """Raises PromptTuningError where every field of the source is missing: there is nothing to learn from."""
        fields = [name for is_field, name in parse(self.source) if is_field]
        if fields and all(is_missing(row[name]) for name in fields):
            missing = ", ".join(f"{{{name}}}" for name in dict.fromkeys(fields))
            raise PromptTuningError(f"{missing} is missing; give the row a text or remove it.")

    def source_text(self, row: Mapping[str, Any], longest_field: int | None = None) -> str:
        """The source of one row; each field is cut to `longest_field` characters where that is given."""
        return fill(parse(self.source), row, longest_field)

    def label_index(self, row: Mapping[str, Any]) -> int | None:
        """Which of `labels` the row has; None for a row without a label (missing, empty, or -1).

        Raises:
            PromptTuningError: the row has a label that has no words.
        """
        value = row.get(self.label_column)
        key = label_key(value)
        if key in self.label_words:
            return self.labels.index(key)
        if key in ("", "-1"):
            return None
        known = ", ".join(f"{k!r}: {w!r}" for k, w in self.label_words.items())
        raise PromptTuningError(
            f"the label {value!r} (column {self.label_column!r}) has no words; label_words are {{{known}}}. "
            "Add it there, or correct the row."
        )

    def target_text(self, row: Mapping[str, Any]) -> str | None:
        """The target of one row; None for a row without a label."""
        if self.is_classification:
            index = self.label_index(row)
            return None if index is None else self.label_words[self.labels[index]]
        return fill(parse(self.target), row)

    def with_label_words(self, train: Dataset | None, other: Dataset | None = None) -> "PromptTemplate":
        """This template with the words of every candidate label, read from the data where they were not given.

        Args:
            train: the training data; a ClassLabel's name that none of its rows uses is no candidate.
            other: looked at where there is no training data.

        Raises:
            PromptTuningError: the label column is not there, or holds numbers that have no names.
        """
        if not self.is_classification:
            return self
        data = train if train is not None else other
        feature = None
        if data is not None:
            if self.label_column not in data.column_names and (train is not None or self.label_words is None):
                raise PromptTuningError(
                    f"label_column {self.label_column!r} is no column of the data, "
                    f"which has {', '.join(repr(c) for c in data.column_names if c != ORIGIN)}. "
                    "Mend its name."
                )
            feature = data.features.get(self.label_column) if data.features else None
        names = feature.names if isinstance(feature, ClassLabel) else []
        if self.label_words is not None:
            # Words may be given by a ClassLabel's names; the rows hold its numbers.
            return replace(
                self,
                label_words={
                    str(names.index(key)) if key in names else key: words for key, words in self.label_words.items()
                },
            )
        if data is None:
            raise PromptTuningError(
                "there is neither data nor label_words to learn the labels from; give label_words."
            )
        used = {key for value in data.unique(self.label_column) if (key := label_key(value)) not in ("", "-1")}
        if names:
            words = {str(i): name.replace("_", " ") for i, name in enumerate(names) if str(i) in used}
        elif all(re.fullmatch(r"-?\d+(\.\d+)?|true|false", key, re.IGNORECASE) for key in used):
            raise PromptTuningError(
                f"label_column {self.label_column!r} holds {sorted(used)}, which say nothing to a language model. "
                'Give their words, e.g. label_words {"0": "negative", "1": "positive"}.'
            )
        else:
            words = {key: key for key in sorted(used)}
        return replace(self, label_words=words)


def parse(template: str) -> list[tuple[bool, str]]:
    """A template's pieces: (True, column name) for a field, (False, text) for words.

    Raises:
        PromptTuningError: a single brace, or a field without a name.
    """
    pieces = []
    for piece in PIECE.findall(template):
        if piece in ("{{", "}}"):
            pieces.append((False, piece[0]))
        elif piece in ("{", "}", "{}"):
            raise PromptTuningError(
                f"the template {template!r} has a stray {piece!r}; write {{column name}} for a column, "
                "and {{ or }} for a brace."
            )
        elif piece.startswith("{"):
            if found := NOT_A_COLUMN.search(piece[1:-1]):
                raise PromptTuningError(
                    f"the template {template!r} has the field {piece}; a field is a column's name, nothing else: "
                    f"take out {found.group()!r}, or rename the column."
                )
            pieces.append((True, piece[1:-1]))
        else:
            pieces.append((False, piece))
    return pieces


def fill(pieces: list[tuple[bool, str]], row: Mapping[str, Any], longest_field: int | None = None) -> str:
    """The text of a parsed template for one row; a missing value is an empty text.

    Raises:
        PromptTuningError: a field holds what has no text of its own (a list, an object, bytes).
    """
    texts = []
    for is_field, piece in pieces:
        if is_field:
            value = row[piece]
            if not isinstance(value, TEXTS) and not is_missing(value):
                raise PromptTuningError(
                    f"{{{piece}}} is a {type(value).__name__} ({str(value)[:60]}), and a template takes texts, "
                    "numbers and dates; make it one of these in the data."
                )
            texts.append("" if is_missing(value) else str(value)[:longest_field])
        else:
            texts.append(piece)
    return "".join(texts)


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and value != value)


def label_key(value: Any) -> str:
    """A label's value as a key of `label_words`: 1, 1.0 and "1" are the same; "" for a missing one."""
    if is_missing(value):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return str(value)
