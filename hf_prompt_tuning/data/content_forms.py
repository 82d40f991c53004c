"""Give messages the form of content that a chat template reads: a text, or a list of text parts.

Templates of models that take pictures (Idefics, SmolVLM, LLaVA) read lists of parts alone, and write nothing of a
text. Templates of other models read texts alone, and fail for a list or write it as Python does. Some read both.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

from ..errors import PromptTuningError
from .message_content import Content, joined, text_part
from .messages import ASSISTANT, SYSTEM, Message
from .picture_parts import has_pictures


class ContentForms:
    """Give messages the form of content that a chat template reads, for each role.

    A text stays a text, and parts stay parts, where the template reads them so. It is tried with a probe: a word that
    the template must write, and not as Python or JSON writes a list.

    Args:
        render: returns the text of messages.
    """

    WORD = "thank you"

    def __init__(self, render: Callable[[list[Message]], str]):
        self._render = render

    def given(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages, each with a content that the template reads. Others stay as they are."""
        return [self._given(message) if "content" in message else message for message in messages]

    def _given(self, message: Message) -> Message:
        content = message["content"]
        as_text, as_parts = self._read_by.get(message["role"], self._read_by["user"])
        if isinstance(content, str):
            return {**message, "content": [text_part(content)]} if as_parts and not as_text else message
        if has_pictures(content) and not as_parts:
            raise PromptTuningError(
                f"the chat template reads no parts in the {message['role']}'s turn, and it has a picture; give the "
                "chat_template of the backbone's processor."
            )
        return message if as_parts else {**message, "content": joined(content)}

    @cached_property
    def _read_by(self) -> dict[str, tuple[bool, bool]]:
        """Whether the template reads a text, and whether it reads parts, for each role."""
        forms: tuple[Content, ...] = (self.WORD, [text_part(self.WORD)])
        user = tuple(self._reads([_message("user", form)]) for form in forms)
        asked = _message("user", [text_part("Hi")] if user == (False, True) else "Hi")
        read = {"user": user}
        read[ASSISTANT] = tuple(self._reads([asked, _message(ASSISTANT, form)]) for form in forms)
        for role in SYSTEM:
            read[role] = tuple(self._reads([_message(role, form), asked]) for form in forms)
        return read

    def _reads(self, messages: list[Message]) -> bool:
        try:
            text = self._render(messages)
        except Exception:  # a template may fail in any way that Python has
            return False
        return self.WORD in text and "'type'" not in text and '"type"' not in text


def _message(role: str, content: Content) -> Message:
    return {"role": role, "content": content}
