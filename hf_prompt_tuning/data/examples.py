"""Write rows with their targets as the text that a prompt starts from, as a few-shot prompt has examples."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from .continuation import continuation_ids
from .encoded_rows import is_of_token_ids
from .encoding import check_kind, from_list
from .heads import leading_ids
from .labels import LabelReader
from .template import PromptTemplate
from .tokenization import PromptTokenizer

BETWEEN = "\n\n"
"""What stands behind each example."""


def example_ids(
    rows: Any, template: Any, tokenizer: PreTrainedTokenizerBase, length: int, text: str | None = None
) -> list[int]:
    """Return `length` tokens of a text and examples: rows, each as it is read in training, without special tokens.

    A row is written as plain text, also where the template tells it as a chat. torch's generator draws the rows, so
    the run's seed decides; of a classification each label in turn. Where all rows are there, they follow again. The
    last example is whole, if it has no more than `length` tokens; the first one lacks its beginning.

    Args:
        rows: a Dataset of raw columns, or a list of rows.
        template: the rows' `PromptTemplate`.
        text: what stands before the examples.

    Raises:
        PromptTuningError: the rows are a stream, of token ids, or without any target; the template is of another kind,
            or does not fit the rows; or the text leaves no room.
    """
    rows = rows_of_examples(rows, template)
    template = replace(template.with_label_words(rows), chat=None)
    encoder = PromptTokenizer(template, tokenizer, is_encoder_decoder=False)
    reader = _reader(rows, template)
    leading, between = leading_ids(tokenizer), continuation_ids(tokenizer, BETWEEN)
    first = tokenizer(text + BETWEEN, add_special_tokens=False)["input_ids"] if text else []
    if (room := length - len(first)) < 1:
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the text before them, {text!r:.80}, takes {len(first)} tokens of "
            f"{length}; raise num_virtual_tokens, or leave prompt_tuning_init_text out."
        )
    ids: list[int] = []
    for row in _drawn(_groups(target_kinds(rows, template))):
        encoded = encoder.encode(rows[row], reader=reader)["input_ids"]
        ids += [*encoded[len(leading) : -1], *between]  # without EOS
        if len(ids) >= room:
            return first + ids[-room:]
    raise AssertionError("rows are drawn without end")


def rows_of_examples(rows: Any, template: Any) -> Dataset:
    """Return the rows as a Dataset. Raise PromptTuningError if examples cannot be made of them (see `example_ids`)."""
    if not isinstance(template, PromptTemplate):
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the template is a {type(template).__name__}; examples are written "
            "with a PromptTemplate. Give one, or another start."
        )
    check_kind(rows, "training")
    rows = from_list(rows, "training") if isinstance(rows, list) else rows
    if not isinstance(rows, Dataset) or is_of_token_ids(rows):
        what = "of token ids" if isinstance(rows, Dataset) else f"a {type(rows).__name__}"
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the training data is {what}; examples are drawn from a Dataset or "
            "a list of rows with the template's columns. Give these, or another start."
        )
    template.check_columns(rows.column_names, "training", labelled=True)
    return rows


def target_kinds(rows: Dataset, template: PromptTemplate) -> list[int]:
    """Return the index of each row's label, 0 for a row with free text, and -1 for a row without a target."""
    reader = _reader(rows, template)
    needed = [template.label_column] if template.is_classification else template.target_columns
    kinds = []
    for row in rows.select_columns(needed or rows.column_names):
        if template.is_classification:
            label = template.label_index(row, reader)
            kinds.append(-1 if label is None else label)
        else:
            kinds.append(-1 if template.target_text(row) is None else 0)
    return kinds


def _reader(rows: Dataset, template: PromptTemplate) -> LabelReader | None:
    return template.label_reader(rows.features) if template.is_classification else None


def _groups(kinds: Sequence[int]) -> list[list[int]]:
    """Return the numbers of the rows of each kind of target. Raise PromptTuningError if no row has one."""
    groups: dict[int, list[int]] = {}
    for number, kind in enumerate(kinds):
        if kind >= 0:
            groups.setdefault(kind, []).append(number)
    if not groups:
        raise PromptTuningError(
            "prompt_tuning_init is EXAMPLES, and no training row has a target; give rows with one, or another start."
        )
    return [groups[kind] for kind in sorted(groups)]


def _drawn(groups: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield row numbers without end: one of each group in turn, the groups in a new order each time."""
    orders = [torch.randperm(len(group)).tolist() for group in groups]
    turn = 0
    while True:
        for group in torch.randperm(len(groups)).tolist():
            order = orders[group]
            yield groups[group][order[turn % len(order)]]
        turn += 1
