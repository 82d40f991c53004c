"""Describe rows for heads that find answers: a question, a context, and the answers that stand in it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from datasets import Dataset

from ..errors import PromptTuningError
from .head_template import HeadTemplate
from .labels import check_is_column, is_missing

logger = logging.getLogger(__name__)

MAX_LENGTH, STRIDE = 384, 128
"""The usual window of SQuAD, in tokens, and what two windows share."""


class Reference(NamedTuple):
    """An answer that a row gives.

    Attributes:
        text: the answer.
        start: the place of its first character in the context.
    """

    text: str
    start: int


@dataclass(frozen=True)
class AnswerTemplate(HeadTemplate):
    """Template of rows whose answers stand in a text. The defaults are the columns of SQuAD.

    A row is written as the tokenizer writes a pair: the question, then the context, with a line break between them if
    the tokenizer puts nothing there. A longer context is cut into windows that overlap, each behind the question.

    Args:
        question_column: the column of the question, a text.
        context_column: the column of the text that has the answer.
        answers_column: the column of the answers: `{"text": [...], "answer_start": [...]}`, or a list of
            `{"text": ..., "answer_start": ...}`. Starts are characters of the context, from 0. Empty lists mean that
            the context has no answer, and None that the answers are not known. A prompt learns the first one; metrics
            compare with all of them.
        max_length: the tokens of a window, question and special tokens among them. Default: 384, or the positions
            that the backbone has behind the prompt if they are fewer.
        stride: how many tokens of the context two neighbouring windows share. Default: 128, or a third of the window
            if that is less.
        longest_answer: the tokens of an answer at most.
        no_answers: whether a row may be found to have no answer. Default: whether training rows have none.

    Raises:
        PromptTuningError: an argument is invalid.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    max_length: int | None = None
    stride: int | None = None
    longest_answer: int = 30
    no_answers: bool | None = None

    labels = problem_type = None

    def __post_init__(self):
        names = ("question_column", "context_column", "answers_column")
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise PromptTuningError(f"{name} is {value!r:.80}; give a text.")
        if len({getattr(self, name) for name in names}) < len(names):
            columns = ", ".join(repr(getattr(self, name)) for name in names)
            raise PromptTuningError(f"question, context and answers are in the columns {columns}; give three columns.")
        for name, least in (("max_length", 1), ("stride", 0), ("longest_answer", 1)):
            value = getattr(self, name)
            if value is None and name != "longest_answer":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise PromptTuningError(f"{name} is {value!r:.80}; give a whole number, {least} or more.")
        if not isinstance(self.no_answers, bool | None):
            raise PromptTuningError(f"no_answers is {self.no_answers!r:.80}; give True or False, or leave it out.")

    label_argument = "answers_column"

    @property
    def label_column(self) -> str:
        """The column of the answers."""
        return self.answers_column

    @property
    def max_source_length(self) -> int | None:
        """The tokens of a window."""
        return self.max_length

    @property
    def source(self) -> str:
        """What a row's text is made of, in the notation of `PromptTemplate`."""
        return f"{{{self.question_column}}}\n{{{self.context_column}}}"

    @property
    def source_columns(self) -> list[str]:
        """The columns of the question and of the context."""
        return [self.question_column, self.context_column]

    @property
    def is_complete(self) -> bool:
        """Whether windows are known, and whether rows may have no answer."""
        return None not in (self.max_length, self.stride, self.no_answers)

    def with_label_words(self, train: Any, other: Any = None) -> "AnswerTemplate":
        """Return this template with `no_answers` as the training rows tell, without them the others.

        Raise PromptTuningError if the column of answers is missing, or a stream does not tell.
        """
        data = other if train is None else train
        if data is None or (self.no_answers is not None and train is None):
            return self
        check_is_column(self.answers_column, list(data.column_names or next(iter(data), {})), self.label_argument)
        if not isinstance(data, Dataset):
            if self.no_answers is None:
                raise PromptTuningError(
                    "the training data is a stream, which does not tell before whether rows have no answer; give the "
                    "template no_answers, True or False."
                )
            return self
        without = sum(map(_is_empty, data.with_format(None)[self.answers_column]))
        if self.no_answers is None:
            return replace(self, no_answers=without > 0)
        if without and not self.no_answers:
            logger.warning(
                "%d of %d training rows have no answer, and the template's no_answers is False: each row will be "
                "given one. To find rows without an answer, give no_answers=True.",
                *(without, len(data)),
            )
        return self

    def behind_prompt(self, room: int | None) -> "AnswerTemplate":
        """Return this template complete, for rows of at most `room` tokens, or of any length for None.

        Where no data has told, rows have answers. Raise PromptTuningError if a window does not fit.
        """
        if room is not None and (self.max_length or 0) > room:
            raise PromptTuningError(
                f"max_length is {self.max_length}, and behind the prompt the backbone has positions for {room}; lower "
                "max_length (max_source_length of the command) or num_virtual_tokens."
            )
        length = self.max_length or min(MAX_LENGTH, MAX_LENGTH if room is None else room)
        stride = min(STRIDE, length // 3) if self.stride is None else self.stride
        return replace(self, max_length=length, stride=stride, no_answers=bool(self.no_answers))

    def texts(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the question and the context of a row. Raise PromptTuningError if one is no text, or is empty."""
        texts = []
        for column in self.source_columns:
            value = row.get(column)
            if not isinstance(value, str) or not value.strip():
                raise PromptTuningError(f"{column!r} holds {value!r:.80}; give a text that is not empty.")
            texts.append(value)
        return texts[0], texts[1]

    def answers(self, row: Mapping[str, Any]) -> list[Reference] | None:
        """Return the answers of a row, an empty list if it has none, None if they are not known.

        Raise PromptTuningError if they have another form, or one does not stand where it should.
        """
        value, column = row.get(self.answers_column), self.answers_column
        if is_missing(value):
            return None
        pairs = _pairs(value)
        if pairs is None:
            raise PromptTuningError(
                f"{column!r} holds {value!r:.80}; give {{'text': [...], 'answer_start': [...]}} with a text and a "
                "place for each answer, empty lists for none."
            )
        context, references = self.texts(row)[1], []
        for text, start in pairs:
            # Where rows without a place stand among them, pandas writes whole numbers as floats.
            is_place = isinstance(start, int | float) and not isinstance(start, bool) and start == start // 1
            if not isinstance(text, str) or not text.strip() or not is_place:
                raise PromptTuningError(
                    f"{column!r} has the answer {text!r:.80} with answer_start {start!r:.80}; give a text that is not "
                    "empty, and the place of its first character in the context, a whole number."
                )
            references.append(Reference(text, int(start)))
            start = references[-1].start
            if start < 0 or context[start : start + len(text)] != text:
                there, at = context[max(start, 0) : max(start, 0) + len(text)], context.find(text)
                hint = "the context has no such text" if at < 0 else f"it stands at {at}"
                raise PromptTuningError(
                    f"{column!r} has the answer {text!r:.80} with answer_start {start}, where the context has "
                    f"{there!r:.80}; {hint}. Correct answer_start, which counts characters from 0."
                )
        return references


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the text and the place of each answer; None if a value has another form than answers have."""
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        are_lists = isinstance(texts, list | tuple) and isinstance(starts, list | tuple)
        return list(zip(texts, starts, strict=True)) if are_lists and len(texts) == len(starts) else None
    if not isinstance(value, list | tuple) or not all(isinstance(answer, Mapping) for answer in value):
        return None
    return [(answer.get("text"), answer.get("answer_start")) for answer in value]


def _is_empty(value: Any) -> bool:
    """Tell whether a value says that a row has no answer."""
    return not is_missing(value) and _pairs(value) == []
