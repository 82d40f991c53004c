"""Turn a trainer's data into token ids, and check that no column that the backbone reads is lost silently."""

import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel

from ..data.collator import DataCollatorForPromptTuning
from ..data.encoded_rows import TEACHER, columns_of, count_padded, is_encoded
from ..data.encoding import check_kind, encode_data, from_list, is_text, vocabulary_of
from ..data.files import ORIGIN
from ..data.processors import tokenizer_in
from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from ..models.soft_prompts import SoftPrompts
from ..prompts.info import PromptInfo

logger = logging.getLogger(__name__)

OURS = ("input_ids", "attention_mask", "labels", "label", "length", ORIGIN)
"""Columns that make a batch, and columns that only samplers and messages use."""
TEXTS = (*OURS, "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask")
"""Columns that a backbone reads and that a template creates from text."""


def is_ours(column: str) -> bool:
    """Tell whether a column makes a batch, or is read by this package alone."""
    return column in OURS or TEACHER.fullmatch(column) is not None


@dataclass(frozen=True)
class ColumnCheck:
    """Check for columns that would be lost.

    Attributes:
        backbone: the backbone of the prompt.
        removes: whether unused columns are removed (`remove_unused_columns`).
        batched: whether the collator is this package's. It batches every column and cannot create labels.
        alone: whether only one prompt trains; batches of several prompts hold only text.
        made: columns beside texts that the template makes, so that rows which it has encoded may have them.
    """

    backbone: nn.Module
    removes: bool
    batched: bool
    alone: bool
    made: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, backbone: nn.Module, args: Any, collator: Any, alone: bool) -> "ColumnCheck":
        """Return the check for a run with these training arguments. `collator` is None for the default one."""
        ours = isinstance(collator, DataCollatorForPromptTuning | None)
        return cls(backbone, args.remove_unused_columns, ours, alone)

    def __call__(self, data: Any, name: str, template: PromptTemplate | None) -> None:
        """Raise PromptTuningError for a column that the backbone reads and that would be lost.

        Rows of token ids are also refused if they lack labels or have an input that the backbone does not take. The
        data (columns that the template turns into text, token ids, a dict of such, or None) is called `name` in
        messages.
        """
        if isinstance(data, dict):
            for key, rows in data.items():
                self(rows, key, template)
            return
        columns, first, texts = _look(data, name, template)
        if texts:
            lost = [c for c in self._read(columns) if c not in TEXTS and c not in template.columns]
            if lost:
                raise PromptTuningError(
                    f"the {name} data has the column {lost[0]!r}, which {self._named} reads, and a template makes "
                    "rows of text alone. Give rows of token ids with it, without a template, or remove it."
                )
        elif "input_ids" in columns:
            self._check_token_ids(columns, first, name)
            read = [c for c in self._read(columns) if not is_ours(c) and c not in self.made]
            if read and (template is not None or not self.alone):
                raise PromptTuningError(
                    f"the {name} data has the column {read[0]!r}, which {self._named} reads; rows with a template, "
                    "and batches of several prompts, hold texts alone. Leave the template out, train this prompt in a "
                    "run of its own, or remove the column."
                )

    @property
    def _named(self) -> str:
        return type(self.backbone).__name__

    def _read(self, columns: Iterable[str]) -> list[str]:
        known = inspect.signature(self.backbone.forward).parameters
        return [column for column in columns if column in known]

    def _check_token_ids(self, columns: list[str], first: Mapping[str, Any], name: str) -> None:
        if self.batched and "labels" not in columns:
            raise PromptTuningError(
                f"the {name} data has the columns {', '.join(map(repr, columns))} and no 'labels'; give each row the "
                "token ids that are to be predicted, -100 where none is, or a data_collator that makes them."
            )
        unread = [c for c in columns if not is_ours(c) and c not in self._read(columns)]
        inputs = [c for c in unread if (self.batched and not self.removes) or _could_be_input(first.get(c))]
        if inputs:
            raise PromptTuningError(
                f"the {name} data has the column {inputs[0]!r}, and {self._named}.forward takes no such argument; "
                "remove it, or call it what the backbone calls it."
            )
        if unread:
            # A column that cannot be an input (a text, a number) is left out, as `Trainer` does.
            names = ", ".join(map(repr, unread))
            logger.warning("The %s data's columns %s are left out: %s takes none.", name, names, self._named)


@dataclass
class PadWarning:
    """Warning of rows of token ids that have pads and no attention_mask: the pads are read as text, as in `forward`.

    Attributes:
        pad: the pad token; None if there is none.
        may_be_text: whether it is also the token that begins or ends a text.
        was_given: whether the warning was logged, which is done once.
    """

    pad: int | None
    may_be_text: bool
    was_given: bool = False

    @classmethod
    def of(cls, backbone: PreTrainedModel, tokenizer: Any) -> "PadWarning":
        """Return the warning for a tokenizer's pad token, or without one for the backbone's."""
        own = backbone.config.get_text_config() if tokenizer is None else tokenizer
        ends = [getattr(own, name, None) for name in ("bos_token_id", "eos_token_id")]
        pad = getattr(own, "pad_token_id", None)
        return cls(pad, any(pad in end if isinstance(end, list) else pad == end for end in ends))

    def __call__(self, data: Any, name: str) -> None:
        """Log the warning if a dataset, or one of a dict of them, has such rows."""
        if isinstance(data, dict):
            for key, rows in data.items():
                self(rows, key)
        elif not self.was_given and self.pad is not None and isinstance(data, Dataset) and not is_encoded(data):
            if "attention_mask" in data.column_names or "input_ids" not in data.column_names:
                return
            if padded := count_padded(data, self.pad, self.may_be_text):
                self.was_given = True
                logger.warning(
                    "The %s data has no attention_mask, and %d of %d rows begin or end with the pad token %d, which "
                    "is read as text. Give the tokenizer's attention_mask, or rows without pads.",
                    name,
                    padded,
                    len(data),
                    self.pad,
                )


@dataclass(frozen=True)
class RowEncoder:
    """Turn the data of one prompt into token ids.

    Attributes:
        tokenizer: applies the template; None if the rows are token ids already.
        limit: the largest number of tokens in a row; None for no limit.
        vocabulary: the number of rows in the backbone's embedding; None skips the check of the ids.
        columns: the check for columns that would be lost.
        head: the tokens that the prompt stands behind.
        teaching: the teachers, for which rows are written, too; None without a teacher.
        pads: the warning of pads that are read as text.
        sources_only: whether rows are written without their targets, because the teacher writes them.
    """

    tokenizer: PromptTokenizer | None
    limit: int | None
    vocabulary: int | None
    columns: ColumnCheck
    head: tuple[int, ...] = ()
    teaching: Any = None
    pads: PadWarning = field(default_factory=lambda: PadWarning(None, False))
    sources_only: bool = False

    def __call__(self, data: Any, name: str, require_target: bool, may_be_several: bool = False) -> Any:
        """Return the token ids of a dataset, or of each in a dict if it `may_be_several`, as `encode_data` does.

        Raise PromptTuningError if a column would be lost, or `check_kind` or `encode_data` rejects the data.
        """
        check_kind(data, name, may_be_several)
        self.columns(data, name, None if self.tokenizer is None else self.tokenizer.template)
        # Another collator may make labels of its own.
        labels = require_target and self.columns.batched
        options = self.limit, require_target, self.vocabulary, labels, self.head
        tokenizer = self.tokenizer.of_sources() if self.sources_only else self.tokenizer
        encoded = encode_data(data, name, tokenizer, *options)
        self.pads(encoded, name)
        return encoded if self.teaching is None else self.teaching.added_to(encoded, data, name, self.sources_only)

    @property
    def sees(self) -> bool:
        """Whether rows may have pictures, which a processor reads."""
        return self.tokenizer is not None and self.tokenizer.pictures is not None

    @classmethod
    def behind(
        cls, model: SoftPrompts, tokenizer: Any, template: Any, columns: ColumnCheck, name: str | None = None
    ) -> "RowEncoder":
        """Return what encodes rows behind the prompt `name` of a model, default the active one."""
        encoder = None if template is None else model.row_encoder(tokenizer, template, name)
        head = model.peft_config[model.active_adapter if name is None else name].head
        pads = PadWarning.of(model.base_model, tokenizer_in(tokenizer))
        return cls(encoder, model.room(name), vocabulary_of(model), columns, head, pads=pads)

    def with_missing_labels(self, data: Any) -> Any:
        """Return rows of token ids to predict, which may have no labels, with a column of them (`with_labels`)."""
        return with_labels(data)

    def describe(self, info: PromptInfo, data: Any) -> None:
        """Record the template and an example row in a prompt's description.

        They are recorded once and not in each save, so that a user who may not publish a row can remove it.
        """
        if self.sees:
            pictures = self.tokenizer.pictures
            info.data["processor"] = pictures.name
            if pictures.columns_read:
                info.data["picture_columns"] = ", ".join(pictures.columns_read)
        if self.tokenizer is not None:
            info.template = self.tokenizer.template
            if isinstance(data, Dataset):
                info.example = self.tokenizer.readable(data[0])


def with_labels(data: Any) -> Any:
    """Return rows of token ids with a column of labels. If there is none, add one in which no token is labelled."""
    if not isinstance(data, Dataset | IterableDataset) or "labels" in columns_of(data):
        return data
    options = {} if isinstance(data, IterableDataset) else {"load_from_cache_file": False}
    return data.map(lambda row: {"labels": [IGNORED] * len(row["input_ids"])}, **options)


def _look(data: Any, name: str, template: PromptTemplate | None) -> tuple[list[str], Mapping[str, Any], bool]:
    """Return the columns of the data, its first row, and whether a template turns it into text.

    If the columns are unknown, the list of columns is empty.
    """
    if isinstance(data, list) and data:
        data = from_list(data[:1], name)
    if isinstance(data, Dataset | IterableDataset):
        if is_encoded(data):
            return [], {}, False
        first = next(iter(data), {})
        return columns_of(data), first, template is not None and is_text(data, template)
    first = data[0] if hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) else None
    return (list(first), first, False) if isinstance(first, Mapping) else ([], {}, False)


def _could_be_input(value: Any) -> bool:
    """Tell whether a value may be a model input: an array of floats, or an array with several dimensions."""
    if value is None or isinstance(value, str | bytes | bool | int | float | Mapping):
        return False
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return False
    return array.dtype.kind == "f" or (array.dtype.kind in "iub" and array.ndim > 1)
