"""How a conversation becomes text: the chat template, and what it is given beside the messages."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from .labels import is_missing

LOSSES = ("all", "last")
OUR_ARGUMENTS = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
"""The names that `apply_chat_template` and every template take. `chat_template_kwargs` may not have these."""


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation becomes text.

    Args:
        chat_template: the chat template, as Jinja text; None for the tokenizer's own.
        system_message: the text of a system turn, for conversations that have none of their own. An empty text leaves
            the turn empty, where some templates would write a text of theirs.
        chat_template_kwargs: more variables of the template, e.g. `{"enable_thinking": False}`. They must be JSON.
        assistant_loss: which of a conversation's assistant turns are targets: "all" or "last".

    Raises:
        PromptTuningError: a value has another type, or a variable has a name that transformers uses itself.
    """

    chat_template: str | None = None
    system_message: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    assistant_loss: str = "all"

    def __post_init__(self):
        for name in ("chat_template", "system_message"):
            value = getattr(self, name)
            is_empty_turn = name == "system_message" and value == ""
            if value is not None and not is_empty_turn and (not isinstance(value, str) or not value.strip()):
                raise PromptTuningError(f"{name} is {value!r:.80}; give a text, or leave it out.")
        if self.assistant_loss not in LOSSES:
            raise PromptTuningError(
                f"assistant_loss is {self.assistant_loss!r:.80}; give 'all' for all assistant turns, or 'last'."
            )
        if self.chat_template_kwargs is not None:
            object.__setattr__(self, "chat_template_kwargs", checked_kwargs(self.chat_template_kwargs))


def checked_kwargs(values: Any) -> dict[str, Any]:
    """Check variables of a chat template and return them without those that are None.

    A data set of rows with different variables fills the missing ones with None. Raise PromptTuningError if they are
    no mapping of names to JSON values, or a name is one that transformers uses itself.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise PromptTuningError(
            f'chat_template_kwargs is {values!r:.80}; give variables by name, e.g. {{"enable_thinking": false}}.'
        )
    if used := sorted(OUR_ARGUMENTS & values.keys()):
        raise PromptTuningError(f"chat_template_kwargs has {used[0]!r}, which is set by this package; leave it out.")
    values = {name: value for name, value in values.items() if value is not None}
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise PromptTuningError(f"chat_template_kwargs is {values!r:.80}, which JSON cannot hold: {error}.") from error
    return values


def read_kwargs(value: Any) -> dict[str, Any]:
    """Return a row's variables of the chat template: a mapping, or JSON text of one. None or a blank text has none.

    Raise PromptTuningError as `checked_kwargs` does, or if a text is not JSON.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise PromptTuningError(
                f'{{chat_template_kwargs}} is {value!r:.80}, not JSON: {error}. Write {{"enable_thinking": false}}.'
            ) from error
    return {} if is_missing(value) else checked_kwargs(value)
