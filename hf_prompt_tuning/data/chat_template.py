"""Read a row of data as a conversation: messages, or a prompt and its completion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PromptTuningError
from .chat_format import ChatFormat, read_kwargs
from .conversation import Conversation
from .labels import is_missing
from .messages import ASSISTANT, Message, is_sharegpt, read_messages, read_tools

TOOLS, KWARGS = "tools", "chat_template_kwargs"
"""Columns that a row may have: TRL's names."""

SYSTEM_COLUMN = "system"
"""A column beside messages of `from` and `value`, in which many such data sets have the system message."""


@dataclass(frozen=True)
class ChatTemplate:
    """Template that reads a row of data as a conversation, which the tokenizer's chat template turns into text.

    A row has a column of messages: `role` and `content` (a text or a list of text parts), or `from` and `value`. With
    `completion_column`, that column holds the targets, and `messages_column` what stands before them; each is a list
    of messages or a text, which is the user's or the assistant's turn. The columns `tools` (a list of JSON schemas)
    and `chat_template_kwargs` (a mapping), or JSON text of these, are read if a row has them,
    and `system`, a text, beside messages of `from` and `value`. An assistant's message with the `weight` 0 is no
    target.

    Args:
        messages_column: the column of the messages, e.g. "messages", "conversations" or "prompt".
        completion_column: the column of the completion, if there is one.
        chat: how the conversation becomes text, and which turns are targets.
        max_source_length: leave out whole turns from the front, after the system turn, until what stands before the
            last target has at most this number of tokens. None never does.
        max_target_length: reject a longer last target, and generate at most this number of tokens. None sets no
            limit for targets, and generates at most as many tokens as the longest target in training.

    Raises:
        PromptTuningError: a value has another type, or a limit is below 1.
    """

    messages_column: str = "messages"
    completion_column: str | None = None
    chat: ChatFormat = field(default_factory=ChatFormat)
    max_source_length: int | None = None
    max_target_length: int | None = None

    is_classification = False
    label_column = label_words = label_names = None

    def __post_init__(self):
        for name in ("messages_column", "completion_column"):
            value = getattr(self, name)
            if (value is not None or name == "messages_column") and (not isinstance(value, str) or not value):
                raise PromptTuningError(f"{name} is {value!r:.80}; give a column's name.")
        if not isinstance(self.chat, ChatFormat):
            raise PromptTuningError(f"chat is a {type(self.chat).__name__}; give a ChatFormat.")
        for name in ("max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PromptTuningError(f"{name} is {value}; give 1 or more tokens, or leave it out.")

    @property
    def columns(self) -> list[str]:
        """The columns that a training row must have."""
        return [*self.source_columns, *self.target_columns]

    @property
    def source_columns(self) -> list[str]:
        """The column of the messages. Prediction needs only this one."""
        return [self.messages_column]

    @property
    def target_columns(self) -> list[str]:
        """The column of the completion, if there is one."""
        return [] if self.completion_column is None else [self.completion_column]

    @property
    def source(self) -> str:
        """What a row's text is made of, in the notation of `PromptTemplate`."""
        return f"{{{self.messages_column}}}"

    @property
    def target(self) -> str:
        """What a row's targets are made of, in the notation of `PromptTemplate`."""
        return f"{{{self.completion_column or self.messages_column}}}"

    @property
    def labels(self) -> list[str]:
        """No labels: a conversation is not classified."""
        return []

    def check_columns(self, column_names: Iterable[str], data: str, labelled: bool = False) -> None:
        """Raise PromptTuningError if a needed column, also of targets if `labelled`, is missing in the data."""
        missing = [name for name in (self.columns if labelled else self.source_columns) if name not in column_names]
        if missing:
            which = "messages_column" if missing[0] == self.messages_column else "completion_column"
            raise PromptTuningError(
                f"{which} {missing[0]!r} is no column of the {data} data, "
                f"which has {', '.join(map(repr, column_names))}. Correct its name."
            )

    def with_label_words(self, train: Any, other: Any = None) -> "ChatTemplate":
        """Return this template: there are no labels to read from the data."""
        return self

    def conversation(self, row: Mapping[str, Any]) -> Conversation:
        """Return the conversation of a row, with the system turn of the format if it has none of its own.

        Raise PromptTuningError if the messages, the tools or the variables of the row are missing or invalid.
        """
        column, completion = self.messages_column, self.completion_column
        messages = read_messages(row[column], column, role=None if completion is None else "user")
        first_target = 0
        if completion is not None:
            first_target = len(messages)
            if not is_missing(row.get(completion)):
                messages = [*messages, *read_messages(row[completion], completion, role=ASSISTANT)]
        kwargs = self.kwargs() | read_kwargs(row.get(KWARGS))
        found = Conversation(messages, first_target, read_tools(row.get(TOOLS)), kwargs)
        return found.with_system(self._system(row))

    def _system(self, row: Mapping[str, Any]) -> str | None:
        """Return the system message for a row without a system turn: the format's, or else a ShareGPT row's own."""
        own = row.get(SYSTEM_COLUMN)
        if self.chat.system_message is not None or not isinstance(own, str) or not own.strip():
            return self.chat.system_message
        return own if is_sharegpt(row[self.messages_column]) else None

    def shown(self, row: Mapping[str, Any]) -> list[Message]:
        """Return a row's input for people, in a file of predictions: the messages that the assistant answers."""
        return self.conversation(row).to_answer().question().messages

    def kwargs(self) -> dict[str, Any]:
        """Return the variables of the chat template that all rows have."""
        return dict(self.chat.chat_template_kwargs or {})
