"""Turn columns into text: the source text, the target text, and the label words."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from functools import cache, cached_property
from numbers import Number
from typing import Any

from datasets import Dataset

from ..errors import PromptTuningError
from .chat_format import ChatFormat
from .files import ORIGIN
from .labels import (
    LabelReader,
    check_is_column,
    check_label_column,
    checked_words,
    class_names,
    is_missing,
    words_by_number,
    words_of_values,
)
from .picture_values import pictures_in

logger = logging.getLogger(__name__)

PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
NOT_A_COLUMN = re.compile(r"\.__|\[|\]|![rsa]\b|:[^ ]*$")
"""Matches what `str.format` reads as an attribute, index, conversion or format. A field may not have these."""


TEXTS = (str, Number, date, time, timedelta)
"""The types that a field's value may have (a `datetime` is a `date`)."""


@dataclass(frozen=True)
class PromptTemplate:
    """Template that turns a row of data into a source text and a target text.

    `{name}` is replaced by the column with that name; attributes and format codes are not allowed. `{{` and `}}` give
    braces. The target is either free text (`target`) or a label's words (`label_column`).

    Args:
        source: the source text, e.g. `"Tweet text : {Tweet text} Label :"`.
        target: the target of free text, e.g. `"{summary}"`.
        label_column: the column that holds the label, for classification.
        label_words: the words of each label value, e.g. `{"1": "complaint", "2": "no complaint"}`. Default: the names
            of a ClassLabel column (with spaces for underscores), or the values of a text column. Names are taken as
            their author chose them, digits too. A column whose values are all numbers has no names, and needs
            `label_words`; for stars they may be `{"1": "1", "2": "2", …}`.
        separator: the text between source and target if there is no white space between them. It is part of the
            target. Encoder-decoder models do not use it, because they read the target as a separate text: their
            targets have no leading space.
        max_source_length: cut the source to this number of tokens, the longest field first. None never cuts it.
        max_target_length: reject a longer target, and generate at most this number of tokens. None sets no limit for
            targets, and generates at most as many tokens as the longest target in training.
        label_names: the names of the ClassLabel column whose numbers are the keys of `label_words`. They are set by
            `with_label_words`.
        chat: tell the row as a chat: the source in the user's turn, the target in the assistant's. Its tokens are
            those of the chat template, without a separator. None for plain text.

    Raises:
        PromptTuningError: neither or both of target and label column are given, a brace is unpaired, or two labels
            have the same words.
    """

    source: str
    target: str | None = None
    label_column: str | None = None
    label_words: Mapping[str, str] | None = None
    separator: str = " "
    max_source_length: int | None = None
    max_target_length: int | None = None
    label_names: Sequence[str] | None = None
    chat: ChatFormat | None = None

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
        for name in ("source", "target", "label_column", "separator"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("source", "separator")):
                raise PromptTuningError(f"{name} is {value!r:.80}, a {type(value).__name__}; give a text.")
        if self.chat is not None and not isinstance(self.chat, ChatFormat):
            raise PromptTuningError(f"chat is {self.chat!r:.80}; give a ChatFormat, or None for plain text.")
        if self.label_words is not None:
            if self.label_column is None:
                raise PromptTuningError("label_words are given without label_column; name the label's column.")
            object.__setattr__(self, "label_words", checked_words(self.label_words))
        self.columns  # noqa: B018  (parses both templates, so that an unpaired brace raises here)

    @cached_property
    def columns(self) -> list[str]:
        """The columns that the templates name, in order, without the label column."""
        return list(dict.fromkeys([*self.source_columns, *self.target_columns]))

    @property
    def source_columns(self) -> list[str]:
        """The columns that the source names, in order. Prediction needs only these."""
        return fields(self.source)

    @property
    def target_columns(self) -> list[str]:
        """The columns that the target template names, in order."""
        return fields(self.target or "")

    @property
    def is_classification(self) -> bool:
        """Whether a prompt with this template ranks labels instead of generating text."""
        return self.label_column is not None

    @property
    def labels(self) -> list[str]:
        """The candidate label values. Every list of scores has this order."""
        return list(self.label_words or ())

    def check_columns(self, column_names: Iterable[str], data: str, labelled: bool = False) -> None:
        """Raise PromptTuningError if a needed column, with those of target and label if `labelled`, is missing."""
        missing = [name for name in (self.columns if labelled else self.source_columns) if name not in column_names]
        if missing:
            raise PromptTuningError(
                f"the template's field {{{missing[0]}}} is no column of the {data} data, "
                f"which has {', '.join(map(repr, column_names))}. Correct the template or the column's name."
            )
        if labelled and self.is_classification:
            check_is_column(self.label_column, column_names)

    def check_fields(self, row: Mapping[str, Any]) -> None:
        """Raise PromptTuningError if every field of the source is missing: such a row has nothing to learn from."""
        columns = self.source_columns
        if columns and all(is_missing(row[name]) for name in columns):
            missing = ", ".join(f"{{{name}}}" for name in columns)
            raise PromptTuningError(f"{missing} is missing; give the row a text or remove it.")

    def source_text(self, row: Mapping[str, Any], longest_field: int | None = None) -> str:
        """Return the source text of a row, with each field cut to `longest_field` characters if it is given."""
        return fill(self.source, row, longest_field)

    def shown(self, row: Mapping[str, Any]) -> str:
        """Return a row's input for people, in a file of predictions."""
        return self.source_text(row)

    def label_reader(self, features: Mapping[str, Any] | None = None) -> LabelReader:
        """Return the reader that turns a row's label into a key of `label_words`.

        `features` are the column types of the row's dataset. With None, a number means the same as in `label_words`.
        """
        key_names = list(self.label_names or ())
        names = class_names(features, self.label_column) if features is not None else key_names
        return LabelReader(self.label_words, key_names, names, self.label_column)

    def label_index(self, row: Mapping[str, Any], reader: LabelReader | None = None) -> int | None:
        """Return the index in `labels` of the row's label, or None if the label is missing, empty or -1.

        `reader` is that of the row's dataset. Raise PromptTuningError if the label has no words.
        """
        value = row.get(self.label_column)
        key = (reader or self.label_reader()).key(value)
        if key in self.label_words:
            return self.labels.index(key)
        if not key:
            return None
        alike = next((word for word in self.label_words if word.casefold() == key.casefold()), None)
        advice = "Add it there, or correct the row."
        if key.casefold() in ("yes", "no", "on", "off") and "true" in self.label_words:
            advice = "YAML reads yes, no, on and off without quotation marks as true and false: quote the label there."
        if alike is not None:
            advice = f"Write {alike!r} and {key!r} in one way: capital letters count" + (
                ", and YAML reads true without quotation marks as True."
                if key.casefold() in ("true", "false")
                else "."
            )
        raise PromptTuningError(
            f"the label {value!r} (column {self.label_column!r}) has no words; label_words are {self.label_words}. "
            f"{advice}"
        )

    def target_text(self, row: Mapping[str, Any]) -> str | None:
        """Return the target text of a row; None if the label, a target column or all target values are missing."""
        if self.is_classification:
            index = self.label_index(row)
            return None if index is None else self.label_words[self.labels[index]]
        columns = self.target_columns
        if columns and (any(name not in row for name in columns) or all(is_missing(row[name]) for name in columns)):
            return None
        return fill(self.target, row)

    def with_label_words(self, train: Any, other: Any = None) -> "PromptTemplate":
        """Return this template with the words of every candidate label. Read them from the data if they are not given.

        Words that are set stay unchanged, so calling this again has no effect. Of a stream of training data only the
        column types are read. A ClassLabel name that no row uses is not a candidate. Without training data, `other` is
        read.

        Raises:
            PromptTuningError: the label column is missing, holds numbers without names, or holds no labels; or the
                given words do not match its labels.
        """
        if not self.is_classification or self.label_names is not None:
            return self
        # A wrong column first: words for the labels would not be missing, were the template for other data.
        for data, name in ((train, "training"), (other if train is None else None, "evaluation")):
            if data is not None and data.column_names is not None:
                self.check_columns([column for column in data.column_names if column != ORIGIN], name)
        if train is not None and train.column_names is not None:
            check_label_column(train, self.label_column)
        if self.label_words is None:
            data = next((rows for rows in (train, other) if isinstance(rows, Dataset)), None)
            if data is None:
                raise PromptTuningError(
                    "there is neither data nor label_words to learn the labels from; give label_words."
                )
            words = words_of_values(data, self.label_column)
            if len(words) == 1:
                logger.warning(
                    f"All labels in the column {self.label_column!r} are {next(iter(words.values()))!r}, so this is "
                    "the only label to choose and the accuracy is always 1. Shuffle the rows before sampling, or "
                    "give label_words for every label."
                )
            return replace(self, label_words=words, label_names=class_names(data.features, self.label_column) or None)
        names = class_names(getattr(other if train is None else train, "features", None), self.label_column)
        if not names:
            return self
        words = words_by_number(self.label_words, names, self.label_column)
        return replace(self, label_words=words, label_names=names)


def sources_of(template: Any) -> list[str]:
    """Return what a template's text is made of: its source, and of a classifier's pair the second one, too."""
    return [source for source in (template.source, getattr(template, "pair", None)) if source is not None]


@cache
def parse(template: str) -> tuple[tuple[bool, str], ...]:
    """Return the pieces of a template: (True, column name) for a field, (False, text) for words.

    Raise PromptTuningError if a brace is unpaired, or a field has no name or is more than a column name.
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
            if extra := NOT_A_COLUMN.search(piece[1:-1]):
                raise PromptTuningError(
                    f"the template {template!r} has the field {piece}; a field is a column's name, nothing else: "
                    f"take out {extra.group()!r}, or rename the column."
                )
            pieces.append((True, piece[1:-1]))
        else:
            pieces.append((False, piece))
    return tuple(pieces)


def fields(template: str) -> list[str]:
    """Return the columns that a template names, in order."""
    return list(dict.fromkeys(name for is_field, name in parse(template) if is_field))


def fill(template: str, row: Mapping[str, Any], longest_field: int | None = None) -> str:
    """Return the text of a template for one row. A missing value becomes "".

    Raise PromptTuningError if a field's value has no text form (a list, an object, bytes).
    """
    texts = []
    for is_field, piece in parse(template):
        value = row[piece] if is_field else piece
        if is_missing(value):
            continue
        if not isinstance(value, TEXTS):
            advice = (
                "Pictures are read with the backbone's processor as the trainer's processing_class."
                if pictures_in(value)
                else "Make it one of these in the data."
            )
            raise PromptTuningError(
                f"{{{piece}}} is a {type(value).__name__} ({str(value)[:60]}), and a template takes texts, "
                f"numbers and dates. {advice}"
            )
        texts.append(str(value)[:longest_field] if is_field else piece)
    return "".join(texts)
