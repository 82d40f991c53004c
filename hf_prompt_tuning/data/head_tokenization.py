"""Tokenize rows for classification heads: a text as the tokenizer writes it, and words with their tags."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError, first_line
from ..layouts.base import IGNORED
from .class_names import MULTI, REGRESSION, SINGLE, check_not_hot, names_of
from .contents import Content
from .encoded_rows import TYPES_FEATURE
from .head_template import ClassTemplate, HeadTemplate, TagTemplate
from .row_reports import RowReports
from .rows import row_columns
from .text_pairs import TextPairs
from .tokenization import PromptTokenizer

LABELS = {SINGLE: Value("int64"), REGRESSION: Value("float32"), MULTI: List(Value("float32"))}
"""The type of an encoded text's labels, by problem type."""


class HeadTokenizer(PromptTokenizer):
    """Base of what turns rows into token ids for a classification head.

    Args:
        template: the template, whose classes are known.
        tokenizer: the backbone's tokenizer.
    """

    takes: type = HeadTemplate
    template: HeadTemplate
    pictures = None  # a head reads texts alone
    columns_beside: Sequence[str] = ()
    """The columns of encoded rows, beside the ids, that the backbone reads: a number for each token."""

    def __init__(self, template: HeadTemplate, tokenizer: PreTrainedTokenizerBase):
        if not isinstance(template, self.takes):
            raise PromptTuningError(
                f"template is a {type(template).__name__}, and {type(self).__name__} takes a {self.takes.__name__}."
            )
        if not template.is_complete:
            raise PromptTuningError(
                "the template's classes are not known; give it labels and problem_type, or call "
                "template.with_label_words(data)."
            )
        self.template, self.tokenizer = template, tokenizer
        self.is_encoder_decoder, self.chats = False, None
        self._reports: dict[str, RowReports] = {}

    @property
    @abstractmethod
    def label_type(self) -> Any:
        """The type of the column of encoded labels."""

    @abstractmethod
    def encode(
        self, row: Mapping[str, Any], require_target: bool = True, reader: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the `input_ids`, `labels`, `length` and `was_cut` of one row.

        `reader` are the names of the ClassLabel in the row's data set. A row without a label is rejected if
        `require_target` is set.
        """

    def encode_dataset(
        self, data: Dataset | IterableDataset, name: str, require_target: bool = True
    ) -> Dataset | IterableDataset:
        """Encode every row of `data`, whose columns are all removed. Errors name the row and the data.

        Rows without a label are rejected if `require_target` is set. Log once how many rows were cut.
        """
        data = self._plain(data, name, require_target)
        column, classes = self.template.label_column, self.template.labels
        names = names_of(data.features, column)
        if self.template.problem_type == MULTI and isinstance(data, Dataset):
            check_not_hot(data, column, classes or (), name)
        kinds = {"input_ids": List(Value("int64")), "labels": self.label_type, "length": Value("int64")}
        kinds |= dict.fromkeys(self.columns_beside, TYPES_FEATURE)
        return self._mapped(data, name, lambda row: self.encode(row, require_target, names), kinds)

    def _missing(self, row: Mapping[str, Any]) -> PromptTuningError:
        column = self.template.label_column
        return PromptTuningError(
            f"the row has no label (column {column!r} holds {row.get(column)!r:.80}); training rows need one."
        )


def check_is_fast(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise PromptTuningError if a tokenizer is a slow one, which does not tell `what`."""
    if not tokenizer.is_fast:
        raise PromptTuningError(
            f"the tokenizer is a {type(tokenizer).__name__}, which does not tell {what}; load it with use_fast=True."
        )


class ClassTokenizer(HeadTokenizer):
    """Turn texts into token ids, with the tokenizer's special tokens, and their label into what the head learns.

    `labels` is an index (-100 for a row without a label), a float (NaN), or a float for each class (NaN). Pairs of
    texts also have `token_type_ids`, if the tokenizer gives them and the backbone reads them.

    Args:
        template: the template, whose classes are known.
        tokenizer: the backbone's tokenizer.
        token_types: how many token types the backbone tells apart.
    """

    takes = ClassTemplate
    template: ClassTemplate

    def __init__(self, template: ClassTemplate, tokenizer: PreTrainedTokenizerBase, token_types: int = 0):
        super().__init__(template, tokenizer)
        limit = template.max_source_length
        self.pairs = None if template.pair is None else TextPairs(tokenizer, token_types, limit)
        self.columns_beside = () if self.pairs is None else self.pairs.columns_beside

    @property
    def label_type(self) -> Any:
        """The type of the column of encoded labels."""
        return LABELS[self.template.problem_type]

    def _source_ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def _fitted(self, row: Mapping[str, Any]) -> tuple[str, list[int], bool]:
        if self.pairs is None:
            return super()._fitted(row)
        inputs, was_cut = self.pairs.joined(*self.template.texts(row))
        return self.tokenizer.decode(inputs["input_ids"]), inputs["input_ids"], was_cut

    def read_content(self, content: Any) -> Content:
        """Return the tokens of a row as a caller holds it, as `PromptTokenizer.read_content`.

        Raise PromptTuningError also for a pair with token types, which ids alone do not tell.
        """
        if self.columns_beside:
            raise PromptTuningError(
                "the template has a pair, whose texts the backbone tells apart by token_type_ids, and ids alone do "
                "not have them; call content_inputs, and give the model all that it returns."
            )
        return super().read_content(content)

    def content_inputs(self, content: Any) -> dict[str, list[int]]:
        """Return what the model reads of a row as a caller holds it: `input_ids`, of a pair also `token_type_ids`.

        Errors are those of `read_content`.
        """
        return self._inputs(row_columns(content, self.template.source_columns))[0]

    def _inputs(self, row: Mapping[str, Any]) -> tuple[dict[str, list[int]], bool]:
        """Return what the model reads of a row, and whether it was cut."""
        if self.pairs is not None:
            return self.pairs.joined(*self.template.texts(row))
        ids, was_cut = self.source_ids(row)
        return {"input_ids": ids}, was_cut

    def encode(
        self, row: Mapping[str, Any], require_target: bool = True, reader: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the `input_ids`, `labels`, `length` and `was_cut` of one row, as `HeadTokenizer.encode`."""
        inputs, was_cut = self._inputs(row)
        value = self.template.value(row, reader or ())
        if value is None and require_target:
            raise self._missing(row)
        return inputs | {
            "labels": self.without_label() if value is None else value,
            "length": len(inputs["input_ids"]),
            "was_cut": was_cut,
        }

    def without_label(self) -> int | float | list[float]:
        """Return the labels of a row that has none."""
        kind, nan = self.template.problem_type, float("nan")
        return {SINGLE: IGNORED, REGRESSION: nan, MULTI: [nan] * len(self.template.labels or ())}[kind]

    def readable(self, encoded: Mapping[str, Any], longest: int = 500) -> dict[str, str]:
        """Return the `source` and `target` of an encoded row as texts, each cut to `longest` characters.

        Special tokens show where a pair's second text begins.
        """
        text = self.tokenizer.decode(encoded["input_ids"], skip_special_tokens=self.pairs is None)
        return {"source": text[:longest], "target": str(self.label_of(encoded["labels"]))[:longest]}

    def label_of(self, value: Any) -> Any:
        """Return an encoded label for people: a class, a number, or a list of classes; None for a missing one."""
        kind, classes = self.template.problem_type, self.template.labels
        if kind == SINGLE:
            return classes[int(value)] if value >= 0 else None
        if kind == REGRESSION:
            return None if value != value else float(str(value))  # 3.38, not the 3.380000114 that fp32 has for it
        return None if value[0] != value[0] else [name for name, hot in zip(classes, value, strict=True) if hot]


class TagTokenizer(HeadTokenizer):
    """Turn words into token ids, and give the first token of each word the word's tag.

    `labels` has an index for each token: of the word's tag on its first token, -100 on the others, on special tokens
    and on words without a tag.
    """

    takes = TagTemplate
    template: TagTemplate

    def __init__(self, template: TagTemplate, tokenizer: PreTrainedTokenizerBase):
        super().__init__(template, tokenizer)
        check_is_fast(tokenizer, "which tokens are of which word")

    @property
    def label_type(self) -> Any:
        """The type of the column of encoded labels."""
        return List(Value("int64"))

    def word_tokens(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the token ids of words, and the place of each word's first token.

        Raise PromptTuningError if a word has no token, or the tokenizer does not take words.
        """
        try:
            encoded = self.tokenizer(list(words), is_split_into_words=True)
        except (AssertionError, ValueError) as error:  # byte-level tokenizers, which ask for add_prefix_space
            raise PromptTuningError(
                f"the tokenizer does not take words: {first_line(error)}. Load it with add_prefix_space=True."
            ) from error
        first: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids()):
            if word is not None:
                first.setdefault(word, place)
        if without := [word for i, word in enumerate(words) if i not in first]:
            raise PromptTuningError(
                f"the word {without[0]!r:.80} tokenizes to nothing, so that nothing could be tagged; remove it, with "
                "its tag."
            )
        return encoded["input_ids"], [first[i] for i in range(len(words))]

    def encode(
        self, row: Mapping[str, Any], require_target: bool = True, reader: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the `input_ids`, `labels`, `length` and `was_cut` of one row, as `HeadTokenizer.encode`."""
        ids, places = self.word_tokens(self.template.words(row))
        tags = self.template.tags(row, reader or ())
        if require_target and all(tag is None for tag in tags or ()):
            raise self._missing(row)
        labels = [IGNORED] * len(ids)
        for place, tag in zip(places, tags or [None] * len(places), strict=True):
            labels[place] = IGNORED if tag is None else tag
        return {"input_ids": ids, "labels": labels, "length": len(ids), "was_cut": False}

    def content_ids(self, content: Any) -> list[int]:
        """Return the tokens of a row as a caller holds it: a list of words, or a dict with the column of them."""
        column = self.template.words_column
        row = content if isinstance(content, Mapping) and column in content else {column: content}
        return self.word_tokens(self.template.words(row))[0]

    def readable(self, encoded: Mapping[str, Any], longest: int = 500) -> dict[str, str]:
        """Return the `source` and the tags of an encoded row as texts, each cut to `longest` characters."""
        text = self.tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
        tags = " ".join(self.template.labels[tag] for tag in encoded["labels"] if tag != IGNORED)
        return {"source": text[:longest], "target": tags[:longest]}


def head_tokenizer(template: HeadTemplate, tokenizer: PreTrainedTokenizerBase, token_types: int = 0) -> HeadTokenizer:
    """Return what turns rows into token ids with a template of a classification head.

    `token_types` is how many token types the backbone tells apart.
    """
    if isinstance(template, TagTemplate):
        return TagTokenizer(template, tokenizer)
    return ClassTokenizer(template, tokenizer, token_types)
