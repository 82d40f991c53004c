"""What the command does for rows with pictures: their columns, the template's limit, and the backbone's processor."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..data.chat_template import ChatTemplate
from ..data.chat_tokenization import RowTemplate
from ..data.files import URL
from ..data.head_template import HeadTemplate
from ..data.picture_columns import picture_columns, read_columns
from ..data.processors import own_chat_template
from ..errors import PromptLoadError, PromptTuningError
from ..hub.auto_classes import reads_pictures
from ..hub.backbones import load_processor, load_tokenizer
from .data_arguments import DataArguments

logger = logging.getLogger(__name__)


def pictures_of_file(data: Dataset, columns: Sequence[str] | None, file: str) -> Dataset:
    """Return a file's rows in which these columns are pictures. Raise PromptTuningError as `read_columns` does."""
    folder = None if str(file).startswith(URL) else Path(file).absolute().parent
    return read_columns(data, columns or (), f"data file {str(file)!r}", folder)


def pictures_of_split(data: Dataset, args: DataArguments, split: str) -> Dataset:
    """Return the rows of a split of the data set whose `image_columns` are pictures, as `read_columns` does.

    Names of files are relative to the data set if it is a folder.
    """
    folder = Path(args.dataset_name).absolute()
    what = f"{split} split of the data set {args.dataset_name!r}"
    return read_columns(data, args.image_columns or (), what, folder if folder.is_dir() else None)


def for_pictures(
    template: RowTemplate | HeadTemplate, splits: Mapping[str, Dataset], args: DataArguments
) -> tuple[RowTemplate | HeadTemplate, list[str]]:
    """Return the template, and the columns of pictures that it reads; of conversations, all columns of pictures.

    Rows with pictures are not cut, so the template has no `max_source_length` then, unless one is given. Raise
    PromptTuningError if a column is given as one of pictures, and the template has no place for it.
    """
    columns = list(dict.fromkeys(name for data in splits.values() for name in picture_columns(data.features)))
    if isinstance(template, HeadTemplate):
        if args.image_columns:
            raise PromptTuningError(
                f"image_columns is {', '.join(args.image_columns)}, and a classification head reads texts alone here; "
                "leave it out, or rank labels with a language model (no task_type)."
            )
        return template, []
    if not isinstance(template, ChatTemplate):
        if without := [name for name in args.image_columns or () if name not in template.columns]:
            raise PromptTuningError(
                f"image_columns names {without[0]!r}, and the source_template {template.source!r} has no place for "
                f"it; write {{{without[0]}}} where the picture stands, or leave it out."
            )
        columns = [name for name in columns if name in template.columns]
    return (replace(template, max_source_length=args.max_source_length) if columns else template), columns


def processing_class(
    backbone: PreTrainedModel, pictures: Sequence[str], template: Any, *place: Any, gguf_file: str | None
) -> PreTrainedTokenizerBase | ProcessorMixin:
    """Return the backbone's processor if rows have `pictures`, in columns of these names; else its tokenizer.

    `place` are the first arguments of `load_tokenizer`. Raise PromptTuningError if the backbone reads no pictures.
    """
    name, sees = type(backbone).__name__, gguf_file is None and reads_pictures(backbone.config)
    if not pictures:
        tokenizer = load_tokenizer(*place, gguf_file)
        if not sees:
            return tokenizer
        logger.warning(
            "%s reads pictures, and the template names no column of pictures, so texts alone are read. If a column "
            "names files, give it as image_columns.",
            name,
        )
        return _with_chat_template(tokenizer, template, place)
    if not sees:
        raise _unread(pictures, f"the backbone is a {name}, which reads texts alone")
    if (processor := load_processor(*place)) is None:
        raise _unread(pictures, f"the backbone, a {name}, has no processor in its files")
    return processor


def check_not_of_gguf(pictures: Sequence[str], gguf_file: str | None) -> None:
    """Raise PromptTuningError if rows have pictures, and the backbone is to be read from a GGUF file."""
    if pictures and gguf_file is not None:
        raise _unread(pictures, f"gguf_file is {gguf_file!r}, from which no part that sees is read")


def _unread(pictures: Sequence[str], fault: str) -> PromptTuningError:
    return PromptTuningError(
        f"the column {pictures[0]!r} has pictures, and {fault}; give a backbone that sees, with its processor "
        "(AutoModelForImageTextToText, AutoProcessor), or leave the column out of the template."
    )


def _with_chat_template(
    tokenizer: PreTrainedTokenizerBase, template: Any, place: tuple[Any, ...]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer that has the processor's chat template, if rows are chats and it has none of its own."""
    chat = getattr(template, "chat", None)
    if chat is None or chat.chat_template is not None or tokenizer.chat_template is not None:
        return tokenizer
    try:
        tokenizer.chat_template = own_chat_template(load_processor(*place))
    except PromptLoadError as error:  # texts need no processor
        logger.warning("The tokenizer has no chat template, and the processor's could not be read: %s", error)
    return tokenizer
