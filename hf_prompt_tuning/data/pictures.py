"""Pictures of rows: what a processor writes for them in texts, and what it makes of their pixels.

A row's pictures are read twice: once for its token ids, which are checked and kept before training, and once for each
batch, because their pixels would fill the memory. They are kept as they are in the data, as files or bytes.
"""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Image, IterableDataset, List
from PIL import Image as Pillow
from torch import Tensor
from transformers import ProcessorMixin

from ..compat.transformers import picture_token
from ..errors import PromptTuningError, first_line, sentence
from .chat_template import ChatTemplate
from .encoded_rows import PICTURES, TYPES, TYPES_FEATURE, has_transform
from .labels import is_missing
from .origins import naming
from .picture_columns import modes, picture_columns, undecoded
from .picture_files import in_mode, opened
from .picture_parts import is_place, picture_part
from .picture_values import is_picture, pictures_in, with_lists
from .template import PromptTemplate, parse

logger = logging.getLogger(__name__)

COLUMNS = ("images", "image")
"""Columns of pictures beside a conversation's messages, which have their places."""


OPEN = "open a file by PIL.Image.open, and cast a column of file names: data.cast_column(…, datasets.Image())."
"""What to do with names of files."""


class Placed(NamedTuple):
    """A row with what is written for its pictures in their places, the pictures, and what is written for each."""

    row: dict[str, Any]
    pictures: list[Any]
    texts: list[str]


class _Recorder:
    """A tokenizer that keeps the texts that it is given."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.texts += [text] if isinstance(text, str) else list(text)
        return self._tokenizer(text, *args, **kwargs)


class PictureProcessor:
    """What a processor of transformers makes of the pictures of rows.

    Args:
        processor: of the backbone.

    Raises:
        PromptTuningError: it has no token for a picture, or writes no text for one.
    """

    def __init__(self, processor: ProcessorMixin):
        self._processor, self.name = processor, type(processor).__name__
        self._columns: dict[str, None] = {}
        self.token = picture_token(processor)
        if not isinstance(self.token, str) or getattr(processor, "image_processor", None) is None:
            raise PromptTuningError(
                f"processing_class is a {self.name}, which has no token for a picture; give the backbone's "
                "tokenizer, for texts alone."
            )
        self._token_id = processor.tokenizer.convert_tokens_to_ids(self.token)
        # A picture of one colour tells which columns are made of every other.
        made, _ = self._run(Pillow.new("RGB", (64, 64)))
        self.type_columns = [name for name in TYPES if name in made]
        ids = list(made["input_ids"][0])
        self._types = {
            name: {i: int(kind) for i, kind in zip(ids, made[name][0], strict=True) if kind}
            for name in self.type_columns
        }
        # Gemma 3 has a token for a picture in a text, and makes others of it, one for each feature.
        self._own_ids = list(dict.fromkeys([self._token_id, *chain.from_iterable(self._types.values())]))
        self.features = {PICTURES: List(Image()), **dict.fromkeys(self.type_columns, TYPES_FEATURE)}

    @property
    def columns_read(self) -> list[str]:
        """The columns of pictures in the data that were encoded, here or in training (`know`)."""
        return list(self._columns)

    def know(self, columns: Iterable[str]) -> None:
        """Note columns of pictures, so that a name of a file in one is not read as text."""
        self._columns |= dict.fromkeys(columns)

    def _run(self, picture: Pillow.Image) -> tuple[Mapping[str, Any], str]:
        """Return what the processor makes of one picture, and the text that it writes for it."""
        processor = copy.copy(self._processor)
        processor.tokenizer = recorder = _Recorder(self._processor.tokenizer)
        try:
            made = processor(text=[self.token], images=[[picture]], add_special_tokens=False)
        except Exception as error:  # a picture may fail in any way that its processor has
            raise PromptTuningError(
                f"a picture of {picture.size} pixels cannot be read by {self.name}: "
                f"{sentence(first_line(error))} Correct the picture, or the processor."
            ) from error
        if len(recorder.texts) != 1:
            raise PromptTuningError(
                f"{self.name} tokenizes {len(recorder.texts)} texts for a picture, and one was expected; give the "
                "backbone's tokenizer, for texts alone."
            )
        return made, recorder.texts[0]

    def _written(self, value: Any, where: str) -> str:
        """Return the text that stands for a picture. Raise PromptTuningError if the value is none."""
        return self._run(opened(value, where))[1]

    def undecoded(self, data: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
        """Return a dataset whose pictures are the bytes or files that they are read from. Note their columns.

        `name` is the data's in messages. Warn if none of its columns has pictures.
        """
        columns, wanted = picture_columns(data.features), modes(data.features)
        self.know(columns)
        if not has_transform(data):  # which reads pictures as Pillow has them
            data = undecoded(data)
            data = _in_modes(data, wanted, name) if wanted else data
        if data.features and not columns and self._columns.keys().isdisjoint(data.features):
            logger.warning(
                "%s reads pictures, and no column of the data has any (%s). If one names files, cast it: "
                'data.cast_column("…", datasets.Image()).',
                *(self.name, ", ".join(data.features)),
            )
        return data

    def placed(self, row: Mapping[str, Any], template: PromptTemplate | ChatTemplate) -> Placed:
        """Return a row with what is written for its pictures in their places.

        Raises:
            PromptTuningError: a picture has no place in the text, or a place no picture; or the template cuts texts,
                or tells a row as a chat, in which a picture has no place.
        """
        row = {name: with_lists(value) for name, value in row.items()}
        found = self._in_chat(row, template) if isinstance(template, ChatTemplate) else self._in_fields(row, template)
        if found.pictures and template.max_source_length is not None:
            raise PromptTuningError(
                f"max_source_length is {template.max_source_length}, and the row has pictures, which are not cut; "
                "leave it out, and shorten long texts in the data."
            )
        return found

    def _in_fields(self, row: Mapping[str, Any], template: PromptTemplate) -> Placed:
        seen = _seen(row)
        places = [name for is_field, name in parse(template.source) if is_field and name in seen]
        if lost := [name for name in seen if name not in places]:
            raise PromptTuningError(
                f"the column {lost[0]!r} has pictures, and the source {template.source!r} has no place for them; "
                f"write {{{lost[0]}}} where they stand, or remove the column."
            )
        if targets := [name for name in seen if name in template.target_columns]:
            raise PromptTuningError(f"the target is made of {{{targets[0]}}}, which has pictures; give a text.")
        if places and template.chat is not None:
            raise PromptTuningError(
                f"{{{places[0]}}} has pictures, and the template tells the row as a chat; give rows of messages with "
                "parts of the type 'image', and a ChatTemplate."
            )
        for name in places_of_names(row, [name for name in template.source_columns if name in self._columns]):
            raise PromptTuningError(f"{{{name}}} is {row[name]!r:.200}, and this column has pictures; {OPEN}")
        # A row without a picture, in a column that has some.
        row = {name: "" if self._is_empty(name, value) else value for name, value in row.items()}
        texts = {name: [self._written(picture, f"{{{name}}}") for picture in seen[name]] for name in set(places)}
        pictures = [picture for name in places for picture in seen[name]]
        joined = {name: "".join(written) for name, written in texts.items()}
        return Placed({**row, **joined}, pictures, [text for name in places for text in texts[name]])

    def _is_empty(self, name: str, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return not value
        return name in self._columns and (is_missing(value) or (isinstance(value, str) and not value))

    def _in_chat(self, row: Mapping[str, Any], template: ChatTemplate) -> Placed:
        seen = _seen(row)
        if lost := [name for name in seen if name not in COLUMNS] or list(seen)[1:]:
            raise PromptTuningError(
                f"the columns {', '.join(map(repr, seen))} have pictures, and those of a conversation are in one, "
                f"'images' or 'image'; call {lost[0]!r} so, or remove it."
            )
        for name in places_of_names(row, COLUMNS):
            raise PromptTuningError(f"the column {name!r} holds {row[name]!r:.200}, and not pictures; {OPEN}")
        column = next(iter(seen), COLUMNS[0])
        waiting = iter(seen.get(column, ()))
        taken, texts = [], []

        def with_text(part: Any) -> Any:
            if not is_place(part, len(taken)):
                return part
            taken.append(next(waiting, None))
            texts.append("" if taken[-1] is None else self._written(taken[-1], f"{{{column}}}"))
            return picture_part(self.token, texts[-1])

        messages = {
            name: [_with_parts(message, with_text) for message in row[name]]
            for name in template.columns
            if isinstance(row.get(name), list | tuple)
        }
        more = list(waiting)
        if more or None in taken:
            count = len([picture for picture in taken if picture is not None]) + len(more)
            raise PromptTuningError(
                f"the messages have {len(taken)} parts of the type 'image', and the row's column "
                f"{column!r} has {count} pictures; give a part for each picture, where it stands."
            )
        return Placed({**row, **messages}, taken, texts)

    def columns(self, ids: Sequence[int], placed: Placed) -> dict[str, Any]:
        """Return the columns of an encoded row that tell of its pictures: these, and the type of each token.

        Raise PromptTuningError if a text of the row has the token of a picture, too; or if the backbone could not tell
        two pictures apart.
        """
        tokenize = self._processor.tokenizer
        written = [tokenize(text, add_special_tokens=False)["input_ids"] for text in placed.texts]
        # Turns behind the last target may be left out, and an answer that is written anew, with their pictures.
        counts, found = [part.count(self._token_id) for part in written], list(ids).count(self._token_id)
        kept = next((n for n in range(len(counts), -1, -1) if sum(counts[:n]) == found), len(counts))
        written, pictures = written[:kept], placed.pictures[:kept]
        for own in self._own_ids:
            expected, found = sum(part.count(own) for part in written), list(ids).count(own)
            if found != expected:
                token = tokenize.convert_ids_to_tokens(own)
                raise PromptTuningError(
                    f"the row has {found} times the token {token!r} of pictures, and its {len(pictures)} "
                    f"pictures have {expected}; remove the token from the texts."
                )
        types = {name: [kinds.get(i, 0) for i in ids] for name, kinds in self._types.items()}
        for name, kinds in self._types.items():
            if _runs(types[name]) < sum(_runs([kinds.get(i, 0) for i in part]) for part in written):
                raise PromptTuningError(
                    f"two pictures of the row stand side by side, and the backbone of {self.name} tells pictures "
                    "apart by what is written between them; write a field for each, with the marks around it that "
                    "the model's chat template writes, or a text between two."
                )
        return {PICTURES: pictures, **types}

    def pixels(self, rows: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        """Return the processor's columns for the pictures of rows, beside the texts; empty without any picture.

        Rows without a picture get zeros where pictures stand row by row ([B, n, 3, height, width], Idefics).
        """
        having = [b for b, pictures in enumerate(rows) if pictures]
        if not having:
            return {}
        images = [[opened(picture, f"the column {PICTURES!r}") for picture in rows[b]] for b in having]
        texts = [self.token * len(rows[b]) for b in having]
        made = self._processor(text=texts, images=images, padding=True, return_tensors="pt")
        made = {name: v for name, v in made.items() if name not in ("input_ids", "attention_mask", *TYPES)}
        if made["pixel_values"].dim() == 5 and len(having) < len(rows):
            made = {name: _spread(values, having, len(rows)) for name, values in made.items()}
        return made


def _in_modes(data: Dataset | IterableDataset, wanted: Mapping[str, str], name: str) -> Dataset | IterableDataset:
    """Return data whose columns of pictures have the mode that is `wanted` of each, by its name."""

    def change(value: Any, mode: str, where: str) -> Any:
        if isinstance(value, list):
            return [change(picture, mode, where) for picture in value]
        return None if value is None else in_mode(value, mode, where)

    def change_row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        with naming(row, index, name):
            return {column: change(row[column], mode, f"{{{column}}}") for column, mode in wanted.items()}

    return data.map(change_row, with_indices=True, features=data.features)


def _seen(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the pictures of each column that has some. Raise PromptTuningError if something else is among them."""
    seen = {}
    for name, value in row.items():
        if found := pictures_in(value):
            seen[name] = found
        elif isinstance(value, list | tuple) and any(map(is_picture, value)):
            other = next(one for one in value if not is_picture(one))
            raise PromptTuningError(
                f"the column {name!r} has {other!r:.80} among its pictures; remove it, or put a picture in its place."
            )
    return seen


def _runs(values: Sequence[int]) -> int:
    """Return how many runs of numbers other than 0 there are."""
    return sum(bool(value) for value, _ in groupby(values))


def _spread(values: Tensor, rows: list[int], count: int) -> Tensor:
    spread = values.new_zeros(count, *values.shape[1:])
    spread[torch.tensor(rows)] = values
    return spread


def _with_parts(message: Any, change: Any) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    return {**message, "content": [change(part) for part in content]}


def places_of_names(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Return those columns of pictures in which a row has texts, names of files perhaps."""
    values = {name: row.get(name) for name in columns}
    firsts = {name: value[0] if isinstance(value, list | tuple) and value else value for name, value in values.items()}
    return [name for name, first in firsts.items() if isinstance(first, str) and first]
