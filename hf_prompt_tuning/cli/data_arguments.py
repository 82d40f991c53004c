"""Define the command-line arguments of the data and the template."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from ..data.chat_format import ChatFormat
from ..data.chat_template import ChatTemplate
from ..data.chat_tokenization import RowTemplate
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..hub.files import hub_id


@dataclass
class DataArguments:
    """Arguments of the data and the template."""

    dataset_name: str | None = HfArg(default=None, help="Hub id of a data set.")
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the data set.")
    dataset_revision: str | None = HfArg(
        default=None, help="Revision of the data set. For one that is a script: refs/convert/parquet."
    )
    train_file: str | None = HfArg(default=None, help="Training rows: a csv, tsv, json, jsonl, parquet or arrow file.")
    validation_file: str | None = HfArg(default=None, help="Validation rows.")
    test_file: str | None = HfArg(default=None, help="Test rows, for --do_predict.")
    transfer_file: list[str] | None = HfArg(
        default=None,
        help="NAME=FILE …: also evaluate on these files, without training on them.",
        metadata={"action": "extend"},
    )
    transfer_columns: list[str] | None = HfArg(
        default=None,
        help="NAME.COLUMN=FIELD …: read the template's FIELD from COLUMN of the transfer_file NAME.",
        metadata={"action": "extend"},
    )
    column_names: list[str] | None = HfArg(default=None, help="Columns of csv and tsv files without a header line.")
    image_columns: list[str] | None = HfArg(
        default=None,
        help="Columns of pictures: names of their files, absolute or relative to the data's folder, or bytes. Columns "
        "that the datasets library has as pictures need no mention.",
    )
    validation_split_percentage: int | None = HfArg(
        default=None,
        help="Percentage of the training rows to use for validation, if the data set has no validation rows. Not "
        "beside --validation_file.",
    )
    max_train_samples: int | None = HfArg(default=None, help="Number of training rows to sample, by --seed.")
    max_eval_samples: int | None = HfArg(default=None, help="Number of validation rows to sample, by --seed.")
    source_template: str | None = HfArg(
        default=None, help='Source text, e.g. "Tweet text : {Tweet text} Label :". Default: that of --init_prompt.'
    )
    pair_template: str | None = HfArg(
        default=None,
        help='With task_type SEQ_CLS, a second text, e.g. "{sentence2}", which the tokenizer joins to the source.',
    )
    target_template: str | None = HfArg(default=None, help='Target of free text, e.g. "{summary}".')
    label_column: str | None = HfArg(default=None, help="Column of the labels, for classification.")
    label_words: str | None = HfArg(
        default=None, help='Words of each label as JSON, e.g. {"0": "negative", "1": "positive"}.'
    )
    words_column: str | None = HfArg(
        default=None, help="With task_type TOKEN_CLS, the column of the words; label_column has a tag for each."
    )
    problem_type: str | None = HfArg(
        default=None,
        help="With task_type SEQ_CLS: regression, single_label_classification or multi_label_classification. Default: "
        "as the type of the label column tells.",
    )
    question_column: str | None = HfArg(
        default=None, help="With task_type QUESTION_ANS, the column of the questions. Default: question."
    )
    context_column: str | None = HfArg(
        default=None, help="The column of the texts that have the answers. Default: context."
    )
    answers_column: str | None = HfArg(
        default=None,
        help='The column of the answers, {"text": […], "answer_start": […]} as in SQuAD, empty lists for none. '
        "Default: answers.",
    )
    stride: int | None = HfArg(
        default=None,
        help="Tokens that two windows of a long context share. Default: 128, or a third of a window if that is less.",
    )
    longest_answer: int | None = HfArg(default=None, help="Tokens of an answer that is found, at most. Default: 30.")
    messages_column: str | None = HfArg(
        default=None, help="Column of conversations, e.g. messages, in place of source_template."
    )
    completion_column: str | None = HfArg(
        default=None, help="Column of what the assistant answers, if messages_column holds only what comes before."
    )
    chat: bool | None = HfArg(
        default=None, help="Put the source template in the user's turn of a chat, and the target in the assistant's."
    )
    system_message: str | None = HfArg(
        default=None, help="System turn of chats that have none of their own; an empty text for an empty turn."
    )
    chat_template: str | None = HfArg(
        default=None, help="File of a chat template (Jinja). Default: the tokenizer's own."
    )
    chat_template_kwargs: str | None = HfArg(
        default=None, help='Variables of the chat template as JSON, e.g. {"enable_thinking": false}.'
    )
    assistant_loss: str | None = HfArg(
        default=None, help="Which turns of the assistant are targets: all or last. Default: all."
    )
    max_source_length: int | None = HfArg(
        default=None,
        help="Cut longer sources to so many tokens, chats by whole turns from the front. Default: 512. With task_type "
        "QUESTION_ANS, the tokens of a window; default: 384, or the positions that the backbone has.",
    )
    max_target_length: int | None = HfArg(
        default=None, help="Refuse longer targets, and generate at most so many tokens."
    )

    def described(self) -> dict[str, str]:
        """Return the card's description of the data: its Hub id, or the names of the files without their paths."""
        names = {}
        if hub_id(self.dataset_name) is not None:  # a local path is private
            names = {
                "dataset": self.dataset_name,
                "dataset_configuration": self.dataset_config_name,
                "dataset_revision": self.dataset_revision,
            }
        files = {name: getattr(self, name) for name in ("train_file", "validation_file")}
        names |= {name: Path(file).name for name, file in files.items() if file}
        return {name: value for name, value in names.items() if value}

    def template(self, saved: RowTemplate | None = None) -> RowTemplate:
        """Return the template that these arguments describe. They replace the values of a saved one, if given.

        Raise PromptTuningError if neither a source template nor a column of conversations is given, or arguments of
        both; if the label words or the variables of the chat template are no JSON object, or its file is unreadable.
        """
        if self.messages_column is not None or isinstance(saved, ChatTemplate):
            return self._chat_template(saved if isinstance(saved, ChatTemplate) else None)
        values = {
            "source": self.source_template,
            "target": self.target_template,
            "label_column": self.label_column,
            "label_words": self._object("label_words", '{"0": "negative", "1": "positive"}'),
            "max_source_length": self.max_source_length,
            "max_target_length": self.max_target_length,
        }
        values = {name: value for name, value in values.items() if value is not None}
        chat = self._told_as_chat(None if saved is None else saved.chat)
        if saved is not None:
            values |= {"label_names": None} if "label_words" in values else {}
            return replace(saved, **values, chat=chat)
        if self.source_template is None:
            raise PromptTuningError(
                'source_template is not given; e.g. --source_template "Text : {text} Label :", or for conversations '
                "--messages_column messages."
            )
        return PromptTemplate(**{"max_source_length": 512} | values, chat=chat)

    def _chat_template(self, saved: ChatTemplate | None) -> ChatTemplate:
        of_texts = ("source_template", "target_template", "label_column", "label_words", "chat")
        if given := [name for name in of_texts if getattr(self, name) is not None]:
            raise PromptTuningError(
                f"{given[0]} is given for conversations, which have no source template; leave out {given[0]}, or "
                "messages_column."
            )
        names = ("messages_column", "completion_column", "max_source_length", "max_target_length")
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        chat = replace(ChatFormat() if saved is None else saved.chat, **self._format())
        if saved is not None:
            return replace(saved, **values, chat=chat)
        return ChatTemplate(**{"max_source_length": 512} | values, chat=chat)

    def _told_as_chat(self, saved: ChatFormat | None) -> ChatFormat | None:
        """Return how rows of a source template are told as chats; None for plain text."""
        values = self._format()
        if self.completion_column is not None:
            raise PromptTuningError(
                "completion_column is given without messages_column, what comes before it; give it."
            )
        if self.chat or (self.chat is None and saved is not None):
            return replace(saved or ChatFormat(), **values)
        if values:
            raise PromptTuningError(
                f"{next(iter(values))} is given, and the rows are no chats; give chat true with a source_template, or "
                "the messages_column of conversations."
            )
        return None

    def _format(self) -> dict[str, Any]:
        """Return the values of `ChatFormat` that are given."""
        values = {
            "chat_template": None if self.chat_template is None else _read(self.chat_template),
            "system_message": self.system_message,
            "chat_template_kwargs": self._object("chat_template_kwargs", '{"enable_thinking": false}'),
            "assistant_loss": self.assistant_loss,
        }
        return {name: value for name, value in values.items() if value is not None}

    def _object(self, name: str, example: str) -> dict[str, Any] | None:
        """Return the JSON object of an argument."""
        text = getattr(self, name)
        if text is None:
            return None
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise PromptTuningError(
                f"{name} is {text!r}, not a JSON object ({error}); write e.g. {example}."
            ) from error
        return values


def _read(file: str) -> str:
    """Return the text of a chat template's file."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptTuningError(
            f"chat_template {file!r} cannot be read: {getattr(error, 'strerror', None) or error}. Give the file of a "
            "chat template."
        ) from error
