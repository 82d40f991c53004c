"""A conversation: its messages, which of them are targets, and what may be left out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .messages import ASSISTANT, SYSTEM, Message


@dataclass(frozen=True)
class Conversation:
    """The messages of a row, and what the chat template is given beside them.

    Attributes:
        messages: the messages.
        first_target: the index of the first message that may be a target. Those before are a prompt's.
        tools: JSON schemas, or None.
        kwargs: variables of the template.
        row: the messages as the row has them, whose numbers errors and warnings name. Default: `messages`.
    """

    messages: list[Message]
    first_target: int = 0
    tools: list[Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    row: list[Message] | None = None

    def __post_init__(self):
        if self.row is None:
            object.__setattr__(self, "row", self.messages)

    def name_of(self, index: int) -> str:
        """Return in words which message of the row it is, counted from 1, or that it was put in front of them."""
        number = next((n for n, own in enumerate(self.row, 1) if own is self.messages[index]), None)
        return "the message in front of the row's own" if number is None else f"message {number}"

    def targets(self, which: str = "all") -> list[int]:
        """Return the indices of the assistant's messages that are targets: "all" of them, or the "last".

        A message with the weight 0 is none.
        """
        found = [i for i, m in enumerate(self.messages) if m["role"] == ASSISTANT and m.get("weight", 1) != 0]
        found = [i for i in found if i >= self.first_target]
        return found[-1:] if which == "last" else found

    @property
    def is_weightless(self) -> bool:
        """Whether the assistant has messages that could be targets, and all have the weight 0."""
        could_be = (message["role"] == ASSISTANT for message in self.messages[self.first_target :])
        return any(could_be) and not self.targets()

    def question(self) -> "Conversation":
        """Return the messages before the last target, which the assistant answers; all of them without a target."""
        targets = self.targets()
        return self.beginning(targets[-1]) if targets else self

    def up_to_target(self) -> "Conversation":
        """Return the messages up to the last target, with it; all of them without a target."""
        targets = self.targets()
        return self.beginning(targets[-1] + 1) if targets else self

    def beginning(self, messages: int) -> "Conversation":
        """Return this conversation with so many of its first messages alone."""
        return replace(self, messages=self.messages[:messages])

    def to_answer(self) -> "Conversation":
        """Return this conversation with no targets if its last message is not the assistant's, who answers it."""
        if self.messages and self.messages[-1]["role"] == ASSISTANT:
            return self
        return replace(self, first_target=len(self.messages))

    def with_system(self, text: str | None) -> "Conversation":
        """Return this conversation with a system turn in front, unless it has one or `text` is None."""
        if text is None or (self.messages and self.messages[0]["role"] in SYSTEM):
            return self
        messages = [{"role": "system", "content": text}, *self.messages]
        return replace(self, messages=messages, first_target=self.first_target + 1)

    def starts(self) -> list[int]:
        """Return how many messages may be left out: none, or those before a user's turn. The system turn is kept."""
        head = self.head
        last = (self.targets() or [len(self.messages)])[-1]
        users = [i for i in range(head + 1, last) if self.messages[i]["role"] == "user"]
        return [0, *(i - head for i in users)]

    def without(self, messages: int) -> "Conversation":
        """Return this conversation without so many messages after the system turn."""
        kept = [*self.messages[: self.head], *self.messages[self.head + messages :]]
        return replace(self, messages=kept, first_target=max(self.first_target - messages, 0))

    @property
    def head(self) -> int:
        """1 if the first message is a system turn, else 0."""
        return int(bool(self.messages) and self.messages[0]["role"] in SYSTEM)
