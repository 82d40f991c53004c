"""Rows of columns: texts of many scripts, labels of many types, column names that others use, and templates."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_prompt_tuning import PromptTemplate

from .families import FAMILIES, VOCAB

TEXTS = (
    "never came",
    "a",
    "thank you for the quick help",
    "шрифт 日本",
    "😀 !",
    ' "quoted", and {braced} ',
    "line\nbreak\ttab",
    "0",
    "the old town of night and day",
)
WORDS = (
    ("complaint", "praise", "other"),
    ("no", "no complaint", "no complaint at all"),
    ("да", "да нет", "нет"),
    ("two_words", "Two", "two words!"),
    ("1", "10", "2"),
)
TEXT_COLUMNS = ("message", "text", "Tweet text", "input_ids", "length", "labels", "Ünï cödé", "label", "__index__")
LABEL_COLUMNS = ("label", "Label", "labels", "label_ids", "target", "input_ids", "length", "attention_mask")
KINDS = ("text", "int", "bool", "float", "names", "digits")
SOURCES = ("Message : {} Label :", "{}", "{} ?\n", "Q: {} A: ", "{{literal}} {}")


@dataclass(frozen=True)
class Table:
    """Rows, as they are drawn.

    Attributes:
        texts: of each row, its place in `TEXTS`.
        labels: of each row, the number of its label, or -1 for none.
        count: of labels.
        kind: the type of the label column: one of `KINDS`; `names` and `digits` are ClassLabels.
        words: which of `WORDS` stand for the labels.
        given: whether the template has `label_words`; where not, they are read from the data.
        text_column, label_column: their names.
        source: which of `SOURCES`.
    """

    texts: tuple[int, ...]
    labels: tuple[int, ...]
    count: int
    kind: str
    words: int
    given: bool
    text_column: str
    label_column: str
    source: int

    @property
    def values(self) -> list[Any]:
        """What stands in the label column for each label."""
        if self.kind == "text":
            return list(WORDS[self.words][: self.count])
        if self.kind == "bool":
            return [False, True][: self.count]
        return [float(i) if self.kind == "float" else i for i in range(self.count)]

    @property
    def names(self) -> list[str]:
        """Of a ClassLabel; digits stand for other numbers than their places."""
        return ["2", "1", "0"][-self.count :] if self.kind == "digits" else list(WORDS[self.words][: self.count])

    def words_of(self, prompt: int = 0) -> list[str]:
        """The words of each label; other prompts have others."""
        if not self.given:
            return [name.replace("_", " ") for name in self.names] if self.kind in ("names", "digits") else self.values
        return list(WORDS[(self.words + prompt) % len(WORDS)][: self.count])

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        found = []
        for text, label in zip(self.texts, self.labels, strict=True):
            row = {self.text_column: TEXTS[text], "other": [1, 2]}
            found.append(row | {self.label_column: None if label < 0 else self.values[label]})
        return found

    def dataset(self) -> Dataset:
        """The rows as a Dataset."""
        kinds = {"text": "string", "int": "int64", "bool": "bool", "float": "float64"}
        feature = Value(kinds[self.kind]) if self.kind in kinds else ClassLabel(names=self.names)
        rows = [{name: value for name, value in row.items() if name != "other"} for row in self.rows()]
        features = Features({self.text_column: Value("string"), self.label_column: feature})
        return Dataset.from_list(rows, features=features)

    def template(self, prompt: int = 0, **options: Any) -> PromptTemplate:
        """A classification template."""
        keys = self.names if self.kind in ("names", "digits") else [self._key(value) for value in self.values]
        words = dict(zip(keys, self.words_of(prompt), strict=True)) if self.given else None
        source = SOURCES[self.source].replace("{}", "{" + self.text_column + "}")
        return PromptTemplate(source=source, label_column=self.label_column, label_words=words, **options)

    @staticmethod
    def _key(value: Any) -> str:
        return str(int(value)) if isinstance(value, float) else str(value)

    def source_text(self, row: int) -> str:
        """A row's source by hand."""
        return SOURCES[self.source].replace("{}", TEXTS[self.texts[row]]).replace("{{", "{").replace("}}", "}")


@st.composite
def tables(draw: Any, most: int = 6, labelled: bool = False, given: bool | None = None) -> Table:
    texts = draw(st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=most))
    kind = draw(st.sampled_from(KINDS))
    count = 2 if kind == "bool" else draw(st.integers(2, 3))
    text_column = draw(st.sampled_from(TEXT_COLUMNS))
    return Table(
        texts=tuple(texts),
        labels=tuple(draw(st.integers(0 if labelled else -1, count - 1)) for _ in texts),
        count=count,
        kind=kind,
        words=draw(st.integers(0, len(WORDS) - 1)),
        given=draw(st.booleans()) if given is None else given,
        text_column=text_column,
        label_column=draw(st.sampled_from([name for name in LABEL_COLUMNS if name != text_column])),
        source=draw(st.integers(0, len(SOURCES) - 1)),
    )


def source_ids(family_name: str, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """A source's token ids by hand: white space at its end belongs to the target, and so does the end of the text."""
    family = FAMILIES[family_name]
    if family.is_encoder_decoder:
        return torch.tensor(tokenizer(text)["input_ids"])
    words = tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
    return torch.tensor([*(i % VOCAB for i in family.start), *words])


def target_ids(family_name: str, tokenizer: PreTrainedTokenizerBase, source: str, text: str) -> Tensor:
    """A target's token ids by hand, the end of the text behind them."""
    if FAMILIES[family_name].is_encoder_decoder:
        return torch.tensor(tokenizer(text)["input_ids"])
    between = source[len(source.rstrip()) :] or " "
    words = tokenizer(between + text, add_special_tokens=False)["input_ids"]
    return torch.tensor([*words, tokenizer.eos_token_id])
