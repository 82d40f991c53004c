"""Write rows with their targets as the text that a prompt starts from, as a few-shot prompt has examples."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, count
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
from .origins import naming
from .template import PromptTemplate
from .tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

BETWEEN = "\n\n"
"""What stands behind each example."""


def example_ids(
    rows: Any, template: Any, tokenizer: PreTrainedTokenizerBase, length: int, text: str | None = None
) -> list[int]:
    """Return `length` tokens of a text and examples: rows, each as it is read in training, without special tokens.

    A row is written as plain text, also where the template tells it as a chat. torch's generator draws the rows, so
    the run's seed decides; of a classification one of each label in turn. The last turn is complete, if there is room
    for it; the first example lacks its beginning. Where all rows of a label are there, they follow again. The log says
    how many examples are whole, and which labels have none.

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
    ids_of = _row_encoder(rows, template, tokenizer)
    first = tokenizer(text + BETWEEN, add_special_tokens=False)["input_ids"] if text else []
    if (room := length - len(first)) < 1:
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the text before them, {text!r:.80}, takes {len(first)} tokens of "
            f"{length}; raise num_virtual_tokens, or leave prompt_tuning_init_text out."
        )
    ids: list[int] = []
    whole: list[int] = []
    kinds = target_kinds(rows, template)
    turns = _turns(_groups(kinds))
    last = next(turns)
    for row in chain(reversed(last), chain.from_iterable(turns)):
        ids = ids_of(row) + ids
        if len(ids) <= room:
            whole.append(kinds[row])
        if len(ids) >= room:
            break
    _report(whole, kinds, template, len(first) + sum(len(ids_of(row)) for row in last), length)
    return first + ids[-room:]


def _row_encoder(
    rows: Dataset, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase
) -> Callable[[int], list[int]]:
    """Return what gives the tokens of a row by its number: source, target and what stands behind an example."""
    encoder = PromptTokenizer(template, tokenizer, is_encoder_decoder=False)
    reader = _reader(rows, template)
    leading, between = leading_ids(tokenizer), continuation_ids(tokenizer, BETWEEN)

    @cache
    def ids_of(number: int) -> list[int]:
        with naming(rows[number], number, "training"):
            encoded = encoder.encode(rows[number], reader=reader)["input_ids"]
        return [*encoded[len(leading) : -1], *between]  # without EOS

    return ids_of


def _report(whole: Sequence[int], kinds: Sequence[int], template: PromptTemplate, needed: int, length: int) -> None:
    """Log how many examples are whole, with a warning if there is none, or none of a label that rows have.

    `needed` is the number of tokens with one whole example of each label.
    """
    _tell(logging.INFO, f"The prompt starts from training rows, of which {len(whole)} are whole.")
    words = list((template.label_words or {}).values())
    missing = [words[kind] for kind in sorted(set(kinds) - {-1} - set(whole))] if words else []
    if missing or not whole:
        named = f"of {', '.join(map(repr, missing[:5]))}{', …' if missing[5:] else ''} " if missing else ""
        _tell(
            logging.WARNING,
            f"num_virtual_tokens is {length}, and of the examples that the prompt starts from none {named}is whole; "
            f"{'one of each label' if missing else 'one'} takes about {needed} tokens.",
        )


@cache
def _tell(level: int, message: str) -> None:
    """Log a message once: the prompts of a field start from the same rows."""
    logger.log(level, message)


def rows_of_examples(rows: Any, template: Any) -> Dataset:
    """Return the rows as a Dataset. Raise PromptTuningError if examples cannot be made of them (see `example_ids`)."""
    if not isinstance(template, PromptTemplate):
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the template is a {type(template).__name__}; examples are made of "
            "rows with a source and a target (PromptTemplate), not of conversations, of rows for a head, or without a "
            "template. Give another start."
        )
    check_kind(rows, "training")
    rows = from_list(rows, "training") if isinstance(rows, list) else rows
    if not isinstance(rows, Dataset) or is_of_token_ids(rows):
        what = "rows of token ids" if isinstance(rows, Dataset) else f"of the type {type(rows).__name__}"
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


def _turns(groups: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield row numbers without end: one of each group, the groups in a new order each time."""
    orders = [torch.randperm(len(group)).tolist() for group in groups]
    for turn in count():
        drawn = torch.randperm(len(groups)).tolist()
        yield [groups[group][orders[group][turn % len(orders[group])]] for group in drawn]
