"""Write rows with their targets as the text that a prompt starts from, as a few-shot prompt has examples."""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, count
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from .continuation import continuation_ids
from .encoded_rows import has_transform
from .encoding import check_kind, from_list, is_text
from .files import ORIGIN
from .heads import leading_ids
from .labels import LabelReader
from .origins import naming
from .picture_columns import picture_columns
from .template import PromptTemplate
from .tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

BETWEEN = "\n\n"
"""What stands behind each example."""


@dataclass(frozen=True)
class StartRows:
    """Rows that prompts may start from.

    Attributes:
        rows: a Dataset of raw columns, or a list of rows.
        numbers: the numbers of the rows that may be drawn; None for all.
        name: the name of the data in messages.
    """

    rows: Any
    numbers: Sequence[int] | None = None
    name: str = "training"


def example_ids(
    rows: Any, template: Any, tokenizer: PreTrainedTokenizerBase, length: int, text: str | None = None
) -> list[int]:
    """Return `length` tokens of a text and examples: rows, each as it is read in training, without special tokens.

    A row is written as plain text, also where the template tells it as a chat. torch's generator draws the rows, so
    the run's seed decides; of a classification one of each label in turn. The last turn is complete, if there is room
    for it; the first example lacks its beginning. Where all rows of a label are there, they follow again. Rows for
    which there is no room are passed over, unless a label has no others. The log says how many examples are whole, and
    which labels have none.

    Args:
        rows: a Dataset of raw columns, a list of rows, or `StartRows`.
        template: the rows' `PromptTemplate`.
        text: what stands before the examples.

    Raises:
        PromptTuningError: the rows are a stream, of token ids, or without any target; the template is of another kind,
            does not fit the rows, or has pictures; or the text leaves no room.
    """
    start = rows if isinstance(rows, StartRows) else StartRows(rows)
    rows = rows_of_examples(start.rows, template, start.name)
    # The limit of a target is one of its own tokens; here a separator may be among them.
    template = replace(template.with_label_words(rows), chat=None, max_target_length=None)
    between = _plain_ids(continuation_ids(tokenizer, BETWEEN), tokenizer)
    ids_of = _row_encoder(rows, template, tokenizer, between, start.name)
    first = [*tokenizer(text, add_special_tokens=False)["input_ids"], *between] if text else []
    if (room := length - len(first)) < 1:
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the text before them, {text!r:.80}, takes {len(first)} tokens of "
            f"{length}; raise num_virtual_tokens, or leave prompt_tuning_init_text out."
        )
    ids: list[int] = []
    whole: list[int] = []
    all_kinds = target_kinds(rows, template, start.name)
    kinds = {row: all_kinds[row] for row in (range(len(rows)) if start.numbers is None else start.numbers)}
    turns = _turns(_groups(kinds), lambda row: len(ids_of(row)) <= room)
    last = next(turns)
    for row in chain(reversed(last), chain.from_iterable(turns)):
        ids = ids_of(row) + ids
        if len(ids) <= room:
            whole.append(kinds[row])
        if len(ids) >= room:
            break
    _report(whole, set(kinds.values()), template, len(first) + sum(len(ids_of(row)) for row in last), length)
    return first + ids[-room:]


def _plain_ids(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that are not special: a tokenizer without a line break may write <unk> for one."""
    return [i for i in ids if i not in tokenizer.all_special_ids]


def _row_encoder(
    rows: Dataset, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, between: list[int], name: str
) -> Callable[[int], list[int]]:
    """Return what gives the tokens of a row by its number: source, target and what stands behind an example."""
    encoder = PromptTokenizer(template, tokenizer, is_encoder_decoder=False)
    reader, leading = _reader(rows, template), len(leading_ids(tokenizer))

    @cache
    def ids_of(number: int) -> list[int]:
        row = rows[number]
        with naming(row, number, name):
            encoded = encoder.encode(row, reader=reader)["input_ids"]
        return [*encoded[leading:-1], *between]  # without EOS

    return ids_of


def _report(whole: Sequence[int], kinds: set[int], template: PromptTemplate, needed: int, length: int) -> None:
    """Log how many examples are whole, with a warning if there is none, or none of a label that rows have.

    `needed` is the number of tokens with one whole example of each label.
    """
    logger.info("The prompt starts from training rows: %d examples are whole.", len(whole))
    words = list((template.label_words or {}).values())
    missing = [words[kind] for kind in sorted(kinds - {-1} - set(whole))] if words else []
    if missing or not whole:
        named = f"of {', '.join(map(repr, missing[:5]))}{', …' if missing[5:] else ''} " if missing else ""
        logger.warning(
            "num_virtual_tokens is %d, and of the examples that the prompt starts from none %sis whole; %s takes "
            "about %d tokens. Give so many, or shorter rows (max_source_length).",
            *(length, named, "one of each label" if missing else "one", needed),
        )


def rows_of_examples(rows: Any, template: Any, name: str = "training") -> Dataset:
    """Return the rows as a Dataset; `name` is that of the data in messages.

    Raise PromptTuningError if examples cannot be made of them (see `example_ids`).
    """
    if not isinstance(template, PromptTemplate):
        has = "no template" if template is None else f"a {type(template).__name__}"
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the {name} data has {has}; examples are made of rows with a source "
            "and a target (PromptTemplate), not of conversations or of rows for a head. Give "
            f"{'a template, or ' if template is None else ''}another start."
        )
    check_kind(rows, name)
    rows = from_list(rows, name) if isinstance(rows, list) else rows
    if not isinstance(rows, Dataset) or not is_text(rows, template):
        what = "rows of token ids" if isinstance(rows, Dataset) else f"of the type {type(rows).__name__}"
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and the {name} data is {what}; examples are drawn from a Dataset or "
            "a list of rows with the template's columns. Give these, or another start."
        )
    if not len(rows):
        raise PromptTuningError(f"prompt_tuning_init is EXAMPLES, and the {name} data has no rows; give some.")
    if not has_transform(rows):
        rows = rows.with_format(None)
    columns = [column for column in rows.column_names if column != ORIGIN]
    template.check_columns(columns, name, labelled=True)
    pictures = [name for name in picture_columns(rows.features) if name in template.columns]
    if pictures:
        raise PromptTuningError(
            f"prompt_tuning_init is EXAMPLES, and {{{pictures[0]}}} has pictures; examples are texts. Give another "
            "start."
        )
    # Others may be pictures, too, which would be decoded.
    needed = [name for name in (*template.columns, template.label_column, ORIGIN) if name in rows.column_names]
    return rows if has_transform(rows) else rows.select_columns(list(dict.fromkeys(needed)))


def target_kinds(rows: Dataset, template: PromptTemplate, name: str = "training") -> list[int]:
    """Return the index of each row's label, 0 for a row with free text, and -1 for a row without a target.

    Raise PromptTuningError, which names the row, if a label has no words.
    """
    if not template.is_classification:
        columns = template.target_columns
        if not columns:
            return [0] * len(rows)
        return [-1 if template.target_text(row) is None else 0 for row in _only(rows, columns)]
    reader, column = _reader(rows, template), template.label_column
    kinds: list[int] = []
    known: dict[Any, int] = {}
    for number, row in enumerate(_only(rows, [column])):
        value = row[column]
        key = value if isinstance(value, Hashable) else repr(value)
        if key not in known:
            with naming(rows[number], number, name):
                label = template.label_index(row, reader)
            known[key] = -1 if label is None else label
        kinds.append(known[key])
    return kinds


def _only(rows: Dataset, columns: Sequence[str]) -> Iterable[Mapping[str, Any]]:
    """Return rows of these columns alone, so that no others are decoded; all of a format that makes columns."""
    return rows if has_transform(rows) else rows.select_columns(list(columns))


def _reader(rows: Dataset, template: PromptTemplate) -> LabelReader | None:
    return template.label_reader(rows.features) if template.is_classification else None


def _groups(kinds: Mapping[int, int]) -> list[list[int]]:
    """Return the numbers of the rows of each kind of target. Raise PromptTuningError if no row has one."""
    groups: dict[int, list[int]] = {}
    for number, kind in kinds.items():
        if kind >= 0:
            groups.setdefault(kind, []).append(number)
    if not groups:
        raise PromptTuningError(
            "prompt_tuning_init is EXAMPLES, and no training row has a target; give rows with one, or another start."
        )
    return [groups[kind] for kind in sorted(groups)]


def _turns(groups: Sequence[Sequence[int]], fits: Callable[[int], bool]) -> Iterator[list[int]]:
    """Yield row numbers without end: one of each group, the groups in a new order each time.

    A row that does not fit is passed over, unless its group has no others.
    """
    orders = [[group[i] for i in torch.randperm(len(group)).tolist()] for group in groups]
    for turn in count():
        yield [_next(orders[group], turn, fits) for group in torch.randperm(len(groups)).tolist()]


def _next(order: list[int], turn: int, fits: Callable[[int], bool]) -> int:
    """Return the row of an order whose turn it is. Rows that do not fit leave the order, but for the last one."""
    while len(order) > 1 and not fits(order[turn % len(order)]):
        del order[turn % len(order)]
    return order[turn % len(order)]
