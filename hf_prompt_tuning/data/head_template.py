"""Describe rows for classification heads: a text and its label, or words and their tags."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from datasets import Dataset

from ..errors import PromptTuningError
from .class_names import (
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    class_index,
    classes_of,
    inner,
    kind_of,
    names_of,
    number,
    several,
)
from .labels import check_is_column, is_missing
from .template import PromptTemplate

Template = TypeVar("Template", bound="HeadTemplate")


class HeadTemplate:
    """Base of the templates for classification heads.

    Attributes:
        label_column: the column of the labels.
        labels: the names of the classes, in the order of the head's logits; None for numbers to predict, and before
            they are known.
        problem_type: which labels a row has; None before it is known.
        label_names: the names of the ClassLabel that the classes are from, if its numbers are not theirs.
    """

    label_column: str
    labels: Sequence[str] | None
    problem_type: str | None
    source: str

    label_argument = "label_column"
    """The argument that names the column of the labels."""
    is_classification = False
    """Whether words of labels are ranked, which a head does not need."""
    target = chat = max_target_length = None
    label_words: Mapping[str, str] | None = None
    label_names: Sequence[str] | None = None
    pair: str | None = None

    @property
    @abstractmethod
    def source_columns(self) -> list[str]:
        """The columns that a text is made of. Prediction needs only these."""

    @property
    def target_columns(self) -> list[str]:
        """The label column."""
        return [self.label_column]

    @property
    def columns(self) -> list[str]:
        """The columns that a training row must have."""
        return list(dict.fromkeys([*self.source_columns, *self.target_columns]))

    def check_columns(self, column_names: Iterable[str], data: str, labelled: bool = False) -> None:
        """Raise PromptTuningError if a needed column, with that of the label if `labelled`, is missing."""
        names = list(column_names)
        if missing := [name for name in self.source_columns if name not in names]:
            raise PromptTuningError(
                f"the template's column {missing[0]!r} is no column of the {data} data, which has "
                f"{', '.join(map(repr, names))}. Correct its name."
            )
        if labelled:
            check_is_column(self.label_column, names, self.label_argument)

    def with_label_words(self: Template, train: Any, other: Any = None) -> Template:
        """Return this template with the classes and the problem type of the data, if they are not known.

        They are read from `train`, without it from `other`. Calling this again has no effect. Raise PromptTuningError
        if the label column is missing or has another type, no row has a label, or a stream does not tell its classes.
        """
        data = other if train is None else train
        if data is None or self.is_complete:
            return self
        kind = self.problem_type
        names = list(data.column_names or next(iter(data), {}))
        check_is_column(self.label_column, names, self.label_argument)
        feature = (data.features or {}).get(self.label_column)
        if kind is None:
            if feature is None:
                raise PromptTuningError(
                    f"the data is a stream whose column {self.label_column!r} has no known type; give the template "
                    f"its problem_type, one of {', '.join(PROBLEM_TYPES)}."
                )
            kind = self._kind_of(feature)
        if kind == REGRESSION or self.labels is not None:
            return replace(self, problem_type=kind)
        named = names_of(data.features, self.label_column)
        if not named and not isinstance(data, Dataset):
            raise PromptTuningError(
                "the training data is a stream, whose classes are not known before; give the template its labels."
            )
        classes = classes_of(data, self.label_column) if isinstance(data, Dataset) else named
        return replace(self, problem_type=kind, labels=classes, label_names=named or None)

    def in_order(self: Template, labels: Sequence[str]) -> Template:
        """Return this template with the classes in the order of a head's logits."""
        names = self.label_names
        return replace(self, labels=list(labels), label_names=None if names == list(labels) else names)

    @property
    def is_complete(self) -> bool:
        """Whether problem type and classes are known."""
        return self.problem_type == REGRESSION or (self.problem_type is not None and self.labels is not None)

    def _kind_of(self, feature: Any) -> str:
        return kind_of(feature, self.label_column)

    def shown(self, row: Mapping[str, Any]) -> Any:
        """Return a row's input for people, in a file of predictions."""
        return row[self.source_columns[0]]


def _check(template: HeadTemplate, *texts: str) -> None:
    for name in (*texts, "label_column"):
        value = getattr(template, name)
        if not isinstance(value, str) or not value:
            raise PromptTuningError(f"{name} is {value!r:.80}; give a text.")
    if template.problem_type not in (None, *PROBLEM_TYPES):
        raise PromptTuningError(
            f"problem_type is {template.problem_type!r:.80}; give one of {', '.join(PROBLEM_TYPES)}, or leave it out."
        )
    labels = template.labels
    if labels is None:
        return
    if template.problem_type == REGRESSION:
        raise PromptTuningError(f"labels are given, and the problem type is {REGRESSION}; leave one of them out.")
    are_texts = isinstance(labels, list | tuple) and labels and all(isinstance(name, str) for name in labels)
    if not are_texts or len(set(labels)) < len(labels):
        raise PromptTuningError(f"labels is {labels!r:.80}; give a list of different names.")
    object.__setattr__(template, "labels", list(labels))


@dataclass(frozen=True)
class ClassTemplate(HeadTemplate):
    """Template of rows for a sequence classifier: one text or two, and a label, several labels or a number.

    Args:
        source: the source text, e.g. `"{message}"`; see `PromptTemplate`.
        label_column: the column of the label: a text, a whole number or a ClassLabel (one label), a list of them
            (several labels), or a number with a fraction (regression).
        labels: the names of the classes in the order of the logits. Default: the backbone's, or those of the training
            data.
        problem_type: "regression", "single_label_classification" or "multi_label_classification". Default: as the
            column's type tells. Give "regression" for whole numbers, and for the texts of a csv file.
        max_source_length: cut the source to this number of tokens, the longest field first. A pair is cut as the
            tokenizer's `longest_first` does: at the end of the longer text, whatever is there. None never cuts it.
        pair: a second text, e.g. `"{sentence2}"`. The tokenizer joins both by its special tokens and token types, as
            `tokenizer(text, text_pair)` does. None for a single text.
        label_names: the names of the ClassLabel that the classes are from, if its numbers are not theirs. They are
            set by `with_label_words`. Numbers in data without a ClassLabel are read by them.

    Raises:
        PromptTuningError: a brace is unpaired, or an argument is invalid.
    """

    source: str
    label_column: str
    labels: Sequence[str] | None = None
    problem_type: str | None = None
    max_source_length: int | None = None
    pair: str | None = None
    label_names: Sequence[str] | None = None

    def __post_init__(self):
        _check(self, "source", *([] if self.pair is None else ["pair"]))
        self._texts  # noqa: B018  (parses the sources, so that an unpaired brace raises here)

    @cached_property
    def _texts(self) -> list[PromptTemplate]:
        """What makes the text of a row, or both."""
        sources = [self.source] if self.pair is None else [self.source, self.pair]
        return [PromptTemplate(text, target="", max_source_length=self.max_source_length) for text in sources]

    @classmethod
    def of(cls, template: PromptTemplate) -> "ClassTemplate":
        """Return what a template of a language model is for a head.

        Raise PromptTuningError if it has a target, label words or a chat, which a head does not read.
        """
        names = ("target", "label_words", "max_target_length", "chat")
        if given := [name for name in names if getattr(template, name) is not None]:
            raise PromptTuningError(
                f"{given[0]} is given, and the backbone has a classification head, which learns the values of "
                "label_column; leave it out."
            )
        return cls(template.source, template.label_column, max_source_length=template.max_source_length)

    @property
    def source_columns(self) -> list[str]:
        """The columns that the source and the pair name, in order."""
        return list(dict.fromkeys(name for text in self._texts for name in text.source_columns))

    @property
    def label_words(self) -> dict[str, str] | None:
        """The words of each class, for a prompt that starts from them (`CLASS_LABELS`)."""
        return None if self.labels is None else {name: name.replace("_", " ") for name in self.labels}

    def source_text(self, row: Mapping[str, Any], longest_field: int | None = None) -> str:
        """Return the source text of a row, with each field cut to `longest_field` characters if it is given."""
        return self._texts[0].source_text(row, longest_field)

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """Return the text of a row, or both of a pair. Raise PromptTuningError if one of them is empty."""
        self.check_fields(row)
        texts = [text.source_text(row) for text in self._texts]
        if empty := [name for name, text in zip(("source", "pair"), texts, strict=False) if not text.strip()]:
            raise PromptTuningError(
                f"the {empty[0]} {getattr(self, empty[0])!r} is empty here; remove the row or fill it."
            )
        return texts

    def check_fields(self, row: Mapping[str, Any]) -> None:
        """Raise PromptTuningError if every field of a text is missing: such a row has nothing to learn from."""
        for text in self._texts:
            text.check_fields(row)

    def shown(self, row: Mapping[str, Any]) -> str | dict[str, str]:
        """Return a row's input for people, in a file of predictions: of a pair, as transformers' pipeline takes it."""
        texts = [text.source_text(row) for text in self._texts]
        return texts[0] if self.pair is None else dict(zip(("text", "text_pair"), texts, strict=True))

    def value(self, row: Mapping[str, Any], names: Sequence[str] = ()) -> int | float | list[float] | None:
        """Return what the head learns of a row: an index, a number, or 1 or 0 for each class; None if it is missing.

        `names` are those of the ClassLabel in the row's data set. Raise PromptTuningError for an invalid label.
        """
        value = row.get(self.label_column)
        if self.problem_type == REGRESSION:
            return number(value, self.label_column)
        read = several if self.problem_type == MULTI else class_index
        return read(value, self.labels, names or self.label_names or (), self.label_column)


@dataclass(frozen=True)
class TagTemplate(HeadTemplate):
    """Template of rows for a tagger: a list of words, and a list with a tag for each.

    Args:
        words_column: the column of the words, a list of texts.
        label_column: the column of the tags: texts, whole numbers or ClassLabels; None, -1 or -100 for a word
            without one.
        labels: the names of the tags in the order of the logits. Default: the backbone's, or those of the training
            data.
        problem_type: "single_label_classification", the only one.
        label_names: as in `ClassTemplate`.

    Raises:
        PromptTuningError: an argument is invalid.
    """

    words_column: str
    label_column: str
    labels: Sequence[str] | None = None
    problem_type: str | None = SINGLE
    label_names: Sequence[str] | None = None

    max_source_length = None
    """Words are never cut off: their tags would be lost."""

    def __post_init__(self):
        _check(self, "words_column")
        if self.problem_type != SINGLE:
            raise PromptTuningError(
                f"problem_type is {self.problem_type!r:.80}, and a word has one tag; leave it out."
            )

    @property
    def source(self) -> str:
        """What a row's text is made of, in the notation of `PromptTemplate`."""
        return f"{{{self.words_column}}}"

    @property
    def source_columns(self) -> list[str]:
        """The column of the words."""
        return [self.words_column]

    def with_label_words(self, train: Any, other: Any = None) -> "TagTemplate":
        """Return this template with the tags of the data, as `HeadTemplate.with_label_words`."""
        data = other if train is None else train
        feature = ((data.features if data is not None else None) or {}).get(self.label_column)
        if feature is not None and inner(feature) is None:
            raise PromptTuningError(
                f"label_column {self.label_column!r} holds {feature}; a row has a list with a tag for each word."
            )
        if feature is not None:
            kind_of(feature, self.label_column)
        return super().with_label_words(train, other)

    def words(self, row: Mapping[str, Any]) -> list[str]:
        """Return the words of a row. Raise PromptTuningError if they are no list of texts that are not empty."""
        words = row[self.words_column]
        if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) for word in words):
            raise PromptTuningError(
                f"{self.words_column!r} holds {words!r:.80}; give a list of words (texts), one at least."
            )
        return list(words)

    def tags(self, row: Mapping[str, Any], names: Sequence[str] = ()) -> list[int | None] | None:
        """Return the index of each word's tag, None for a word without one; None if the row has no tags.

        `names` are those of the ClassLabel in the row's data set. Raise PromptTuningError if there are more or fewer
        tags than words, or one is unknown.
        """
        tags, words = row.get(self.label_column), row[self.words_column]
        if is_missing(tags):
            return None
        if not isinstance(tags, list | tuple) or len(tags) != len(words):
            count = f"{len(tags)} tags" if isinstance(tags, list | tuple) else repr(tags)[:80]
            raise PromptTuningError(
                f"{self.label_column!r} holds {count} for {len(words)} words; give a list with a tag for each word."
            )
        names = names or self.label_names or ()
        return [class_index(tag, self.labels, names, self.label_column) for tag in tags]
