"""Render conversations with a chat template."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import dropwhile, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import PromptTuningError, first_line
from .chat_border import warn_of_border
from .chat_format import ChatFormat
from .content_forms import ContentForms
from .conversation import Conversation
from .message_content import joined
from .messages import ASSISTANT
from .picture_parts import WrittenPictures
from .unwritten import unwritten

EMPTY_SYSTEM = {"role": "system", "content": ""}
Span = tuple[int, int]


class ChatRenderer:
    """Turn conversations into text and token ids, as transformers' `apply_chat_template` does.

    The template alone writes special tokens such as BOS; the tokenizer adds none. `always_system` writes a system turn
    in every conversation, an empty one if there is no text for it. Raise PromptTuningError if there is no chat
    template, it cannot render a conversation, or it writes no special token behind the assistant's turn. If the
    template leaves an empty system turn out, every conversation must have a system text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format: ChatFormat, always_system: bool = False):
        self.tokenizer = tokenizer
        self.template = format.chat_template if format.chat_template is not None else tokenizer.chat_template
        if self.template is None:
            raise PromptTuningError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; give one as chat_template, or tune "
                "an instruct model."
            )
        self.system = format.system_message
        self.kwargs = dict(format.chat_template_kwargs or {})
        self._forms = ContentForms(lambda messages: self._write(Conversation(messages, kwargs=self.kwargs)))
        self._needs_system = always_system and self.system is None and not self._writes_empty_system()
        if always_system and self.system is None and not self._needs_system:
            self.system = ""
        self._end_ids  # noqa: B018  (a template that cannot be used raises here, before training)

    def _writes_empty_system(self) -> bool:
        """Tell whether the template writes a system turn without a text."""
        without, empty = self._without_and_empty()
        return empty != without

    def writes_own_system(self) -> bool:
        """Tell whether a chat without a system turn gets a text of the template's, and one with an empty turn none."""
        without, empty = self._without_and_empty()
        return len(empty) < len(without)

    def _without_and_empty(self) -> tuple[str, str]:
        """Return the text of a chat without a system turn, and with an empty one: the same if it cannot be written."""
        user = [{"role": "user", "content": "Hi"}]
        chats = [Conversation(messages, kwargs=self.kwargs) for messages in (user, [EMPTY_SYSTEM, *user])]
        try:
            without, empty = map(self.text, chats)
        except PromptTuningError:  # a template that refuses an empty turn, or needs a text in one
            return "", ""
        return without, empty

    def with_system(self, chat: Conversation) -> Conversation:
        """Return a conversation with the system turn that every one gets which has none.

        Raise PromptTuningError if every chat must have one with a text, and there is none for this one.
        """
        if self._needs_system and not (chat.head and joined(chat.messages[0]["content"])):
            raise PromptTuningError(
                "the chat has no system text, and the prompt stands in the system turn, which the chat template "
                "leaves out without a text. Give the chat a system turn with a text, or all chats a system_message."
            )
        return chat.with_system(self.system)

    def text(self, chat: Conversation, generation_prompt: bool = False, prefill: bool = False) -> str:
        """Return the text of a conversation. Raise PromptTuningError if the template refuses it.

        It ends with what stands before the assistant's turn (`generation_prompt`), or within the last message, which
        the model continues (`prefill`).
        """
        try:
            chat = replace(chat, messages=self._forms.given(chat.messages))
            text = self._write(chat, add_generation_prompt=generation_prompt, continue_final_message=prefill)
        except Exception as error:  # a template may fail in any way that Python has
            raise self._refused(chat, error) from error
        return WrittenPictures(text, chat.messages).text

    def _write(self, chat: Conversation, **options: Any) -> str:
        template = self.template_for(chat)
        return self.tokenizer.apply_chat_template(
            chat.messages, tools=chat.tools, chat_template=template, tokenize=False, **options, **chat.kwargs
        )

    def template_for(self, chat: Conversation) -> str:
        """Return the chat template; of several that a tokenizer has, the one that transformers takes."""
        if isinstance(self.template, str):
            return self.template
        return self.tokenizer.get_chat_template(None, chat.tools)

    def unwritten(self, chat: Conversation, text: str) -> str | None:
        """Return in words what the template left out of a conversation that it turned into this text, or None."""
        return unwritten(chat, text, self.template_for(chat))

    def _refused(self, chat: Conversation, error: Exception) -> PromptTuningError:
        roles = ", ".join(str(message["role"]) for message in chat.messages)
        advice = "Correct the messages"
        if self.system and chat.head and joined(chat.messages[0]["content"]) == self.system:
            advice = "Leave out system_message if the template takes no system turn, or correct the messages"
        bare = next((i for i, message in enumerate(chat.messages) if "content" not in message), None)
        why = "" if bare is None else f" ({chat.name_of(bare)} has no content)"
        return PromptTuningError(
            f"the chat template cannot render a conversation of {roles or 'no messages'}: {first_line(error)}{why}. "
            f"{advice}, or give another chat_template."
        )

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a rendered text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def source_ids(self, chat: Conversation) -> list[int]:
        """Return the tokens of a conversation that the assistant is to answer."""
        return self.ids(self.text(chat, generation_prompt=True))

    def user_turn(self, text: str) -> Conversation:
        """Return a conversation of one user's turn, with the system turn before it.

        Raise PromptTuningError as `with_system` does.
        """
        return self.with_system(Conversation([{"role": "user", "content": text}], kwargs=self.kwargs))

    def _probe(self) -> Conversation:
        """Return a conversation of one user's turn, with the system turn before it if every chat gets the same."""
        return Conversation([{"role": "user", "content": "Hi"}], kwargs=self.kwargs).with_system(self.system)

    @cached_property
    def _end_ids(self) -> list[int]:
        """The special tokens that the template writes behind the assistant's content, whether a turn follows or not.

        Raise PromptTuningError if it writes none, so that a model could not learn where to stop.
        """
        word, chat = "thank you", self._probe()
        chat.messages.append({"role": ASSISTANT, "content": word})
        text = self.text(chat)
        self._check_border(text)
        behind = text[text.rindex(word) + len(word) :] if word in text else ""
        last = self._first_special(behind)
        if not last:
            raise PromptTuningError(
                f"the chat template writes {behind!r:.40} behind the assistant's turn, and no special token, at which "
                "a model stops. Give a chat_template that writes one."
            )
        chat.messages.append({"role": "user", "content": "Hi"})
        try:
            followed = self._first_special(self.text(chat).rpartition(word)[2])
        except PromptTuningError:  # a template of one exchange
            return last
        return last[: common_prefix(last, followed) or 1]

    def _first_special(self, text: str) -> list[int]:
        """Return the first special tokens of a text that follow each other."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.content.strip())}
        rest = dropwhile(lambda i: i not in special, self.ids(text))
        return list(takewhile(lambda i: i in special, rest))

    @property
    def end_id(self) -> int:
        """The special token that ends the assistant's turn, at which a model stops."""
        return self._end_ids[-1]

    def _check_border(self, text: str) -> None:
        """Warn if a token of a whole chat stands across the start of the answer: generation has other tokens there."""
        before = self.text(self._probe(), generation_prompt=True)
        source = self.ids(before)
        if text.startswith(before) and self.ids(text)[: len(source)] != source:
            warn_of_border(before[-20:])

    @cached_property
    def end_of_turn(self) -> str:
        """The text of the special tokens behind the assistant's content."""
        return "".join(self.tokenizer.convert_ids_to_tokens(self._end_ids))

    def marks(self, chat: Conversation) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and all that the template marks."""
        template = self.template_for(chat)
        values = {**self.tokenizer.special_tokens_map, **chat.kwargs}
        try:
            texts, spans = render_jinja_template(
                [self._forms.given(chat.messages)],
                tools=chat.tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **values,
            )
        except Exception as error:  # as in `text`
            raise self._refused(chat, error) from error
        pictures = WrittenPictures(texts[0], chat.messages)
        return pictures.text, pictures.moved([span for span in spans[0] if span[0] < span[1]])


def common_prefix(first: Sequence, second: Sequence) -> int:
    """Return how many characters, or tokens, two sequences have in common at their start."""
    pairs = enumerate(zip(first, second))  # noqa: B905  (up to the end of the shorter one)
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
