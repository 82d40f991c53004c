"""Tokenize conversations: leave out old turns, render the rest, and label what the assistant writes."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from ..layouts.base import IGNORED
from .chat_targets import last_run, tokens, with_targets
from .chat_template import ChatTemplate
from .contents import Content
from .conversation import Conversation
from .labels import LabelReader
from .messages import ASSISTANT, read_messages
from .processors import is_processor, own_chat_template
from .roles import check_roles
from .rows import series_row
from .template import PromptTemplate
from .tokenization import PromptTokenizer

logger = logging.getLogger(__name__)

RowTemplate = PromptTemplate | ChatTemplate


def row_tokenizer(
    template: RowTemplate,
    tokenizer: PreTrainedTokenizerBase,
    is_encoder_decoder: bool,
    always_system: bool = False,
) -> PromptTokenizer:
    """Return what turns rows into token ids with a template, of text or of conversations.

    Arguments are those of `PromptTokenizer`. In place of a tokenizer, a processor also reads pictures.
    """
    kind = ChatTokenizer if isinstance(template, ChatTemplate) else PromptTokenizer
    if not is_processor(tokenizer):
        return kind(template, tokenizer, is_encoder_decoder, always_system)
    from .pictures import PictureProcessor  # it needs Pillow

    pictures, template = PictureProcessor(tokenizer), with_own_chat_template(template, tokenizer)
    return kind(template, tokenizer.tokenizer, is_encoder_decoder, always_system, pictures)


def with_own_chat_template(template: RowTemplate | None, processing_class: Any) -> RowTemplate | None:
    """Return a template of chats without a chat template with that which a processor has beside its tokenizer."""
    own = own_chat_template(processing_class)
    chat = None if template is None else template.chat
    if own is None or chat is None or chat.chat_template is not None:
        return template
    return replace(template, chat=replace(chat, chat_template=own))


class ChatTokenizer(PromptTokenizer):
    """Turn conversations into token ids for a causal backbone.

    `input_ids` are those of `tokenizer.apply_chat_template`, and `labels` is `IGNORED` but for what the assistant
    writes, with the end of its turn. Arguments are those of `PromptTokenizer`, with a `ChatTemplate`.
    """

    takes = ChatTemplate
    cut = "Of %d of %d %s rows the first turns were left out, to max_source_length=%d tokens."
    first_cut = "Row %d is the first of the %s stream whose first turns are left out, to max_source_length=%d tokens."
    template: ChatTemplate

    def _read(self, row: Mapping[str, Any]) -> Conversation:
        return self._checked(self.template.conversation(row))

    def _checked(self, chat: Conversation) -> Conversation:
        """Return a conversation with the system turn that every one gets. Raise as `with_system` and `check_roles`."""
        chat = self.chats.with_system(chat)
        check_roles(chat, self.chats.template_for(chat))
        return chat

    def _with_weight(self, chat: Conversation) -> Conversation:
        """Return a conversation. Raise PromptTuningError if all turns that could be targets have the weight 0."""
        if chat.is_weightless:
            raise PromptTuningError(
                "all turns of the assistant have the weight 0, so the row has nothing to learn and nothing to compare "
                "an answer with; give one the weight 1, or remove the row."
            )
        return chat

    def _cut(self, chat: Conversation) -> tuple[Conversation, bool]:
        """Return a conversation without its first turns, and whether turns were left out.

        Whole turns are left out from the front, so that it begins with a user's turn, until the tokens before the last
        target are at most `max_source_length`. The system turn is kept. Raise PromptTuningError if it is too long
        without its earlier turns, too.
        """
        if not chat.question().messages:
            return chat, False
        start = self._start(chat, lambda kept: self.chats.source_ids(kept.question()))
        return chat.without(start), start > 0

    def _start(self, chat: Conversation, ids_of: Callable[[Conversation], list[int]]) -> int:
        """Return how many messages to leave out after the system turn, until the rest has few enough ids."""
        limit = self.template.max_source_length
        if limit is None:
            return 0
        starts = chat.starts()
        lengths = cache(lambda start: len(ids_of(chat.without(start))))
        kept = bisect_left(starts, True, key=lambda start: lengths(start) <= limit)
        if kept == len(starts):
            raise PromptTuningError(
                f"the last turn of the conversation takes {lengths(starts[-1])} tokens, with the system turn, and "
                f"max_source_length is {limit}. Turns are never cut: raise max_source_length, or shorten or remove it."
            )
        return starts[kept]

    def source_ids(self, row: Mapping[str, Any]) -> tuple[list[int], bool]:
        """Return the tokens that the assistant's last turn follows, and whether turns were left out.

        A conversation whose last message is not the assistant's is one to answer. Raise PromptTuningError if the row
        holds none, it is too long without its earlier turns, or no message stands before the assistant's.
        """
        question, was_cut = self.question(row)
        return self.chats.source_ids(question), was_cut

    def conversation(self, row: Mapping[str, Any], has_targets: bool) -> Conversation:
        """Return the conversation that the tokens of a row are of: with its targets, or what is to be answered."""
        return self._cut(self._to_learn(row))[0] if has_targets else self.question(row)[0]

    def _to_answer(self, row: Mapping[str, Any]) -> Conversation:
        """Return the conversation of a row; with no targets if the assistant does not have its last message."""
        return self._with_weight(self._read(row).to_answer())

    def _to_learn(self, row: Mapping[str, Any]) -> Conversation:
        """Return the conversation of a row, without what comes after its last target if only that is one.

        Some templates write a turn otherwise if others follow.
        """
        chat = self._with_weight(self._read(row))
        return chat.up_to_target() if self.template.chat.assistant_loss == "last" else chat

    def question(self, row: Mapping[str, Any]) -> tuple[Conversation, bool]:
        """Return the conversation whose tokens `source_ids` returns, and whether turns were left out of it."""
        chat, was_cut = self._cut(self._to_answer(row))
        question = chat.question()
        if not question.messages:
            raise PromptTuningError(
                "the conversation begins with the assistant's turn; begin it with a user's, or with a system turn."
            )
        return question, was_cut

    def read_content(self, content: Any) -> Content:
        """Return the tokens of a conversation as a caller holds it, and what the chat template leaves out of it.

        It is a list of messages, which the model answers, or of which it continues the last one if that is the
        assistant's; a row of columns, as `source_ids` takes it; or the text of a user's turn. Raise PromptTuningError
        if it is none of these, or the chat template refuses it.
        """
        column = self.template.messages_column
        content = series_row(content, [column])
        if self.pictures is not None:
            return self._read_seen(content if isinstance(content, Mapping) else {column: content}, content)
        return self._read_text(content)

    def _read_seen(self, row: Mapping[str, Any], content: Any) -> Content:
        """Return what `read_content` does, with the pictures of a row."""
        placed = self.pictures.placed(row, self.template)
        column = self.template.messages_column
        found = self._read_text(placed.row if isinstance(content, Mapping) else placed.row[column])
        return found._replace(columns=self.pictures.columns(found.ids, placed))

    def _read_text(self, content: Any) -> Content:
        column = self.template.messages_column
        if isinstance(content, Mapping) and column in content:
            question, _ = self.question(content)
            return self._content(question, self.chats.text(question, generation_prompt=True))
        if isinstance(content, Mapping) or not isinstance(content, str | list | tuple):
            raise PromptTuningError(
                f"inputs hold {content!r:.80}; give a list of messages, a row with the column {column!r}, or the text "
                "of a user's turn."
            )
        messages = read_messages(content, "the chat", role="user")
        is_continued = messages[-1]["role"] == ASSISTANT
        # The last message is no target here, so that no turn is taken off.
        chat = self._checked(Conversation(messages, len(messages), kwargs=self.template.kwargs()))

        def text_of(kept: Conversation) -> str:
            return self.chats.text(kept, not is_continued, prefill=is_continued)

        if start := self._start(chat, lambda kept: self.chats.ids(text_of(kept))):
            limit = self.template.max_source_length
            logger.warning("%d turns of a chat were left out, to max_source_length=%d tokens.", start, limit)
        chat = chat.without(start)
        return self._content(chat, text_of(chat))

    def _content(self, chat: Conversation, text: str) -> Content:
        return Content(self.chats.ids(text), self.chats.unwritten(chat, text))

    def encode(
        self, row: Mapping[str, Any], require_target: bool = True, reader: LabelReader | None = None
    ) -> dict[str, Any]:
        """Return the `input_ids`, `labels`, `length` and `was_cut` of one row, and what is `unwritten`, or None.

        A row without a target gets the `input_ids` of `source_ids` and no labels. It is rejected if `require_target`
        is set; else, a row whose last message is not the assistant's is such a row, whatever turns stand before.
        `reader` is not used. Raise PromptTuningError if the row holds no conversation, or the chat template cannot
        tell its targets.
        """
        if self.reads_targets:
            chat, was_cut = self._cut(self._to_learn(row) if require_target else self._to_answer(row))
        else:
            chat, was_cut = self.question(row)
        if not chat.targets():
            if require_target:
                roles = ", ".join(dict.fromkeys(message["role"] for message in chat.messages))
                what = "completion" if self.template.completion_column else "turn of the assistant"
                raise PromptTuningError(f"the row has no {what} (roles: {roles}); training rows need one.")
            text = self.chats.text(chat, generation_prompt=True)
            ids = self.chats.ids(text)
            mask = [False] * len(ids)
        else:
            text, spans = with_targets(self.chats, chat, self.template.chat.assistant_loss)
            ids, mask = tokens(self.chats, text, spans)
        limit, target = self.template.max_target_length, len(last_run(mask))
        if limit is not None and target > limit:
            raise PromptTuningError(
                f"the last target takes {target} tokens and max_target_length is {limit}. Targets are never cut: "
                "raise max_target_length or remove the row."
            )
        labels = [i if labelled else IGNORED for i, labelled in zip(ids, mask, strict=True)]
        encoded = {"input_ids": ids, "labels": labels, "length": len(ids), "was_cut": was_cut}
        return encoded | {"unwritten": self.chats.unwritten(chat, text)}

    def readable(self, encoded: Mapping[str, Any], longest: int = 500) -> dict[str, str]:
        """Return what stands before the last target as `source`, and this target, each cut to `longest` characters."""
        ids = encoded["input_ids"]
        target = last_run([label != IGNORED for label in encoded["labels"]])
        parts = {"source": ids[: target.start], "target": ids[target.start : target.stop]}
        texts = {name: self.tokenizer.decode(part, skip_special_tokens=True) for name, part in parts.items()}
        return {name: text[:longest] for name, text in texts.items()}

    def encode_dataset(
        self, data: Dataset | IterableDataset, name: str, require_target: bool = True
    ) -> Dataset | IterableDataset:
        """Encode every row as `PromptTokenizer` does. Log how many of several are to be answered."""
        encoded = super().encode_dataset(data, name, require_target)
        if not require_target and isinstance(encoded, Dataset):
            asked = sum(all(label == IGNORED for label in labels) for labels in encoded["labels"])
            if 0 < asked < len(encoded):
                logger.warning(
                    "%d of %d %s rows have no answer at their end: they get one, and are compared with nothing.",
                    asked,
                    len(encoded),
                    name,
                )
        return encoded
