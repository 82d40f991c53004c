"""Tokenize rows: cut the source, start the target after it, and end the target with EOS."""

import copy
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

from datasets import Dataset, Features, IterableDataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .chat_format import ChatFormat
from .chat_rendering import ChatRenderer
from .chat_targets import answer_ids
from .contents import Content, model_inputs
from .continuation import continuation_ids
from .encoded_rows import FEATURES, as_stored, columns_of, has_transform
from .files import ORIGIN
from .heads import leading_ids
from .labels import LabelReader, warn_of_names
from .origins import naming
from .row_reports import RowReports
from .rows import row_columns
from .template import PromptTemplate

LONG = 16
"""Characters per token. A text longer than this times the limit is cut before all of it is tokenized.

Tokenizing takes seconds per megabyte.
"""


class PromptTokenizer:
    """Turn rows into token ids with a template, for a causal or an encoder-decoder backbone.

    Causal: `input_ids` is source + target, and `labels` is `IGNORED` on the source. Source and target are tokenized
    separately, so no token spans both. White space at the end of the source moves to the start of the target.
    Encoder-decoder: `input_ids` is the source with the tokenizer's special tokens, and `labels` is the target.
    Both: the target ends with EOS.
    A template that is told as a chat: the source is the user's turn up to where the assistant's begins, and the target
    is the assistant's turn with its end, both as the chat template writes them.

    Args:
        template: the template; it must have label words if it classifies.
        tokenizer: the backbone's tokenizer.
        is_encoder_decoder: whether the backbone is an encoder-decoder model.
        always_system: begin every chat with a system turn, an empty one if there is no text for it.
        pictures: what the backbone's processor makes of pictures; None for rows of texts alone.
    """

    takes: type = PromptTemplate
    cut = "%d of %d %s rows were cut to max_source_length=%d tokens."
    """What is logged of a data set: how many of how many of its rows were cut, to how many tokens (`RowReports`)."""
    first_cut = "Row %d is the first of the %s stream that is cut to max_source_length=%d tokens."
    """What is logged of a stream: which row is the first that is cut."""

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        is_encoder_decoder: bool,
        always_system: bool = False,
        pictures: Any = None,
    ):
        if not isinstance(template, self.takes):
            raise PromptTuningError(
                f"template is a {type(template).__name__}, and {type(self).__name__} takes a {self.takes.__name__}; "
                "model.row_encoder(tokenizer, template) returns what takes it."
            )
        if tokenizer.eos_token_id is None:
            raise PromptTuningError(
                f"the tokenizer {tokenizer.name_or_path!r} has no EOS token, which ends every target; "
                "set tokenizer.eos_token."
            )
        if template.is_classification and template.label_words is None:
            raise PromptTuningError(
                f"the template has no label words; give label_words, or template.with_label_words(data) with data "
                f"whose column {template.label_column!r} has labels."
            )
        self.template = template
        self.tokenizer = tokenizer
        self.is_encoder_decoder = is_encoder_decoder
        self.pictures = pictures
        self.chats = None if template.chat is None else self._renderer(template.chat, always_system)
        self.reads_targets = True
        self._reports: dict[str, RowReports] = {}
        self.label_token_ids  # noqa: B018  (labels with the same tokens raise here, before training)

    def _renderer(self, format: ChatFormat, always_system: bool) -> ChatRenderer:
        """Return what renders the chats, and keep the tokenizer's own chat template in the template, for others."""
        if self.is_encoder_decoder:
            raise PromptTuningError("chats are given to an encoder-decoder model; they are for causal models alone.")
        chats = ChatRenderer(self.tokenizer, format, always_system)
        if isinstance(chats.template, str):
            self.template = replace(self.template, chat=replace(format, chat_template=chats.template))
        return chats

    def of_sources(self) -> "PromptTokenizer":
        """Return a copy that reads no targets: each row is one to answer, whatever answer it has."""
        encoder = copy.copy(self)
        encoder.reads_targets = False
        return encoder

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end a chat's turn; empty for plain text, which ends with the tokenizer's EOS."""
        return [] if self.chats is None else [self.chats.end_id]

    @cached_property
    def _leading_special_ids(self) -> list[int]:
        return leading_ids(self.tokenizer)

    @cached_property
    def label_token_ids(self) -> list[list[int]]:
        """The target tokens of each label of the template, with EOS at the end."""
        if not self.template.is_classification:
            return []
        ids: list[list[int]] = []
        for label, words in self.template.label_words.items():
            tokens = self.target_ids(words)
            if tokens in ids:
                raise PromptTuningError(
                    f"the words of labels {self.template.labels[ids.index(tokens)]!r} and {label!r} "
                    f"are the same tokens ({words!r}); give them words that this tokenizer tells apart."
                )
            ids.append(tokens)
        return ids

    def _source_ids(self, text: str) -> list[int]:
        if self.is_encoder_decoder:
            return self.tokenizer(text)["input_ids"]
        if self.chats is not None:
            return self.chats.source_ids(self.chats.user_turn(text))
        # Leave out trailing special tokens: an EOS would end the text before its target.
        ids = self.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
        return self._leading_special_ids + ids

    def source_ids(self, row: Mapping[str, Any]) -> tuple[list[int], bool]:
        """Return the tokens of the source, and whether it was cut.

        The longest fields are cut first, at their ends. The template's own words are not cut. Raise PromptTuningError
        if the text is empty, or the template's words alone are longer than `max_source_length`.
        """
        return self._fitted(row)[1:]

    def source_text(self, row: Mapping[str, Any]) -> str:
        """Return the text that `source_ids` tokenizes; of a chat, the user's turn. Errors are the same."""
        return self._fitted(row)[0]

    def _fitted(self, row: Mapping[str, Any]) -> tuple[str, list[int], bool]:
        """Return the text of the source, cut to `max_source_length`, with its tokens, and whether it was cut."""
        limit = self.template.max_source_length
        self.template.check_fields(row)
        text = self.template.source_text(row)
        if self.template.source and not text.strip():
            raise PromptTuningError(f"the source {self.template.source!r} is empty here; remove the row or fill it.")
        if limit is None or len(text) <= LONG * limit:
            ids = self._source_ids(text)
            if not ids and self.template.source:
                raise PromptTuningError(f"the source {text[:60]!r} tokenizes to nothing; remove the row.")
            if limit is None or len(ids) <= limit:
                return text, ids, False
        # Find the largest limit on each field's characters at which the source fits: double it, then bisect.
        text_at = partial(self.template.source_text, row)
        ids_at = cache(lambda characters: self._source_ids(text_at(characters)))
        if (words := len(ids_at(0))) > limit:
            raise PromptTuningError(
                f"the template's own words take {words} tokens and max_source_length is {limit}; "
                f"raise it above {words}."
            )
        low, high = 0, limit
        while len(ids_at(high)) <= limit:
            if high >= len(text):
                return text, ids_at(high), False
            low, high = high, 2 * high
        fitting = low + bisect_right(range(low, high), limit, key=lambda characters: len(ids_at(characters))) - 1
        return text_at(fitting), ids_at(fitting), True

    def content_ids(self, content: Any) -> list[int]:
        """Return the tokens of a row as a caller holds it. Raise as `read_content` does."""
        return self.read_content(content).ids

    def read_content(self, content: Any) -> Content:
        """Return the tokens of a row's source as a caller holds it, and what the chat template leaves out of it.

        The row is a dict of columns, or the text of the one column. Raise PromptTuningError if it is neither, or lacks
        a column; or as `source_ids` does.
        """
        row = row_columns(content, self.template.source_columns)
        if self.pictures is None:
            text, ids, _ = self._fitted(row)
            return Content(ids, self._unwritten(text))
        placed = self.pictures.placed(row, self.template)
        text, ids, _ = self._fitted(placed.row)
        return Content(ids, self._unwritten(text), self.pictures.columns(ids, placed))

    def inputs(self, rows: Iterable[Any]) -> BatchEncoding:
        """Return what the model takes of rows, as `read_content` takes them, to answer them.

        Returns `input_ids` and `attention_mask`, [B, T] long, padded at the tokenizer's side, and with a processor
        what it makes of the rows' pictures. Errors are those of `read_content`.
        """
        return model_inputs([self.read_content(row) for row in rows], self.tokenizer, self.pictures)

    def _unwritten(self, text: str) -> str | None:
        """Return in words what a chat template leaves out of a source that is told as a chat, or None."""
        if self.chats is None:
            return None
        chat = self.chats.user_turn(text)
        return self.chats.unwritten(chat, self.chats.text(chat, generation_prompt=True))

    def target_ids(self, text: str) -> list[int]:
        """Return the tokens of the target with EOS at the end, of a chat with the end of its turn.

        mBART's tokenizer adds a language token after EOS. Raise PromptTuningError if the target is empty, or longer
        than `max_target_length`.
        """
        eos = self.tokenizer.eos_token_id
        if self.is_encoder_decoder:
            encoded = self.tokenizer(text_target=text, return_special_tokens_mask=True)
            ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
            words = [i for i, is_special in zip(ids, special, strict=True) if not is_special]
            ended = eos in ids[len(special) - special[::-1].index(0) :] if words else False
        elif self.chats is not None:
            words = ids = answer_ids(self.chats, text) if text.strip() else []
            ended = True
        else:
            words = ids = continuation_ids(self.tokenizer, self._separator(text) + text)
            ended = ids[-1:] == [eos]
        if not text.strip() or not words:
            raise PromptTuningError(f"the target {text!r} tokenizes to nothing; give the row a target or remove it.")
        if not ended:
            ids = [*ids, eos]
        limit = self.template.max_target_length
        if limit is not None and len(ids) > limit:
            raise PromptTuningError(
                f"the target {text[:60]!r} takes {len(ids)} tokens and max_target_length is {limit}. "
                "Targets are never cut: raise max_target_length or remove the row."
            )
        return ids

    def _separator(self, text: str) -> str:
        """Return the white space to add before a causal target.

        It is "" if the target starts with white space, else the white space that ends the source template, else the
        separator.
        """
        source = self.template.source
        if text[:1].isspace():
            return ""
        return source[len(source.rstrip()) :] or self.template.separator

    def encode(
        self, row: Mapping[str, Any], require_target: bool = True, reader: LabelReader | None = None
    ) -> dict[str, Any]:
        """Return the `input_ids`, `labels`, `length` and `was_cut` of one row, and for classification its `label`.

        Of a row that is told as a chat, also return what is `unwritten`, in words or None. `label` is the index of the
        right label, or -1 if the row has none. A row without a label or target gets the
        `input_ids` of the source and no labels to predict. It is rejected if `require_target` is set. `reader` reads
        the label in the form that the row's dataset uses.
        """
        source_text, source, was_cut = self._fitted(row)
        template, index = self.template, None
        if template.is_classification:
            index = template.label_index(row, reader)
            text = None if index is None else template.label_words[template.labels[index]]
        else:
            text = template.target_text(row) if self.reads_targets else None
        if text is None and require_target:
            column = template.label_column or ", ".join(template.target_columns)
            raise PromptTuningError(
                f"the row has no {'label' if template.is_classification else 'target'} (column {column!r} holds "
                f"{row.get(column)!r}); training rows need one."
            )
        target = [] if text is None else self.target_ids(text)
        encoded: dict[str, Any] = {"was_cut": was_cut}
        if self.chats is not None:
            encoded["unwritten"] = self._unwritten(source_text)
        if self.is_encoder_decoder:
            encoded |= {"input_ids": source, "labels": target, "length": len(source)}
        else:
            encoded |= {"input_ids": source + target, "labels": [IGNORED] * len(source) + target}
            encoded["length"] = len(encoded["input_ids"])
        if self.template.is_classification:
            encoded["label"] = -1 if index is None else index
        return encoded

    def _encoded_row(self, row: Mapping[str, Any], require_target: bool, reader: LabelReader | None) -> dict[str, Any]:
        """Return what `encode` does, with the columns of pictures if there is a processor for them."""
        if self.pictures is None:
            return self.encode(row, require_target, reader)
        placed = self.pictures.placed(row, self.template)
        encoded = self.encode(placed.row, require_target, reader)
        return encoded | self.pictures.columns(encoded["input_ids"], placed)

    def readable(self, encoded: Mapping[str, Any], longest: int = 500) -> dict[str, str]:
        """Return the `source` and `target` of an encoded row as texts, each cut to `longest` characters."""
        target = [i for i in encoded["labels"] if i != IGNORED]
        source = encoded["input_ids"]
        if not self.is_encoder_decoder:
            source = source[: len(source) - len(target)]
        texts = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (source, target))
        return dict(zip(("source", "target"), (text[:longest] for text in texts), strict=True))

    def encode_dataset(
        self, data: Dataset | IterableDataset, name: str, require_target: bool = True
    ) -> Dataset | IterableDataset:
        """Encode every row of `data`, whose columns are all removed. Errors name the row and the data.

        Rows without a label are rejected if `require_target` is set. Log once how many rows were cut.
        """
        data = self._plain(data, name, require_target)
        if self.pictures is not None:
            data = self.pictures.undecoded(data, name)
        template = self.template
        reader = template.label_reader(data.features or {}) if template.is_classification else None
        # Names of a ClassLabel that have no label words, such as RAFT's `Unlabeled`, count as no label.
        without = set() if require_target or reader is None else reader.names_without_words()

        def encode(row: Mapping[str, Any]) -> dict[str, Any]:
            if without and reader.name(row.get(template.label_column)) in without:
                row = {**row, template.label_column: None}
            return self._encoded_row(row, require_target, reader)

        kinds = {key: kind for key, kind in FEATURES.items() if key != "label" or template.is_classification}
        kinds |= {} if self.pictures is None else self.pictures.features
        if without and isinstance(data, Dataset):
            warn_of_names([reader.name(value) for value in data[template.label_column]], without, name)
        return self._mapped(data, name, encode, kinds)

    def _plain(self, data: Dataset | IterableDataset, name: str, require_target: bool) -> Dataset | IterableDataset:
        """Return data of plain values, not tensors. Raise PromptTuningError if a column of the template is missing."""
        if not has_transform(data):
            data = data.with_format(None)
        columns = [column for column in columns_of(data) if column != ORIGIN]
        self.template.check_columns(columns, name, require_target)
        return data

    def _mapped(
        self,
        data: Dataset | IterableDataset,
        name: str,
        encode: Callable[[Mapping[str, Any]], dict[str, Any]],
        kinds: Mapping[str, Any],
    ) -> Dataset | IterableDataset:
        """Return data with the columns of `kinds` alone, as `encode` makes them of a row, and what reports read.

        Raise PromptTuningError, which names the row and the data, where `encode` does.
        """
        is_stream = isinstance(data, IterableDataset)
        # One for each name: a stream that is encoded again, for another evaluation, is not told of again.
        limit, are_chats = self.template.max_source_length, self.chats is not None
        reports = self._reports.setdefault(name, RowReports(name, self.cut, self.first_cut, limit, are_chats))

        def encode_row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
            with naming(row, index, name):
                encoded = as_stored(encode(row))
            if is_stream:
                reports.see(encoded, index)
            return encoded

        # Pass features: without them a new column would take the type of a raw column with the same name. They also
        # mark a stream as rows of token ids.
        features = Features({**kinds, **reports.columns})
        options = {"with_indices": True, "remove_columns": columns_of(data), "features": features}
        if is_stream:
            return data.map(encode_row, **options).select_columns(list(kinds))
        encoded = data.map(encode_row, load_from_cache_file=False, desc=f"Tokenizing {name}", **options)
        encoded = encoded.with_format(None)  # a transform is of raw rows
        reports.tell(encoded)
        return encoded.remove_columns(list(reports.columns))
