"""Render conversations with a chat template, and find the tokens that the assistant writes.

A template with generation markers says itself which text is the assistant's. For any other template it is told from
renderings of the conversation's beginnings:

    messages[:i], with the generation prompt   <|user|>Hi<|end|><|assistant|>
    messages[:i + 1]                           <|user|>Hi<|end|><|assistant|>Hello<|end|>…
    the whole conversation                     <|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>…
    the assistant's                                                          Hello<|end|>

This is right only if each beginning is rendered in the whole conversation as it is alone, which is checked.
"""

import re
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
from .continuation import continuation_ids
from .conversation import Conversation
from .message_content import joined
from .messages import ASSISTANT
from .roles import check_roles
from .unwritten import unwritten

MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
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
        user = [{"role": "user", "content": "Hi"}]
        chats = [Conversation(messages, kwargs=self.kwargs) for messages in (user, [EMPTY_SYSTEM, *user])]
        try:
            without, empty = map(self.text, chats)
        except PromptTuningError:  # a template that refuses an empty turn, or needs a text in one
            return False
        return empty != without

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
            return self._write(chat, add_generation_prompt=generation_prompt, continue_final_message=prefill)
        except Exception as error:  # a template may fail in any way that Python has
            raise self._refused(chat, error) from error

    def _write(self, chat: Conversation, **options: Any) -> str:
        template = self._template_for(chat)
        return self.tokenizer.apply_chat_template(
            chat.messages, tools=chat.tools, chat_template=template, tokenize=False, **options, **chat.kwargs
        )

    def _template_for(self, chat: Conversation) -> str:
        """Return the chat template; of several that a tokenizer has, the one that transformers takes."""
        if isinstance(self.template, str):
            return self.template
        return self.tokenizer.get_chat_template(None, chat.tools)

    def _refused(self, chat: Conversation, error: Exception) -> PromptTuningError:
        roles = ", ".join(str(message["role"]) for message in chat.messages)
        advice = "Correct the messages"
        if self.system and chat.head and joined(chat.messages[0]["content"]) == self.system:
            advice = "Leave out system_message if the template takes no system turn, or correct the messages"
        return PromptTuningError(
            f"the chat template cannot render a conversation of {roles or 'no messages'}: {first_line(error)}. "
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

    def answer_ids(self, text: str) -> list[int]:
        """Return the tokens of an assistant's turn behind a user's: all that the template writes, up to its end."""
        chat = self.user_turn("Hi")
        chat.messages.append({"role": ASSISTANT, "content": text})
        turn, whole = len(chat.messages) - 1, self._whole(chat, "last")
        start, end = self._span(chat, turn, whole)
        before, both = self.ids(whole[:start]), self.ids(whole[:end])
        # A source is tokenized without its answer, so no token may stand in both.
        return (
            both[len(before) :]
            if both[: len(before)] == before
            else continuation_ids(self.tokenizer, whole[start:end])
        )

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

    def labelled(self, chat: Conversation, which: str) -> tuple[list[int], list[bool]]:
        """Return the tokens of a conversation, and whether each is a target: of "all" or the "last" assistant's turn.

        There is one target at least. Raise PromptTuningError if the template renders a beginning of the conversation
        otherwise than within the whole (with "last": what stands before the last turn), or marks no text as the
        assistant's.
        """
        return self.tokens(*self.with_targets(chat, which))

    def check_roles(self, chat: Conversation) -> None:
        """Raise PromptTuningError if a message has a role that neither transformers nor the template names."""
        check_roles(chat.messages, self._template_for(chat))

    def with_targets(self, chat: Conversation, which: str) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and where its targets stand in it. Raise as `labelled` does."""
        if MARKER.search(self._template_for(chat)):
            return self._marked(chat, which)
        text = self._whole(chat, which)
        return text, [self._span(chat, i, text) for i in chat.targets(which)]

    def unwritten(self, chat: Conversation, text: str) -> str | None:
        """Return in words what the template did not write of a conversation in its text, or None."""
        return unwritten(chat, text, self._template_for(chat))

    def _marked(self, chat: Conversation, which: str) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and where the template marks it as the assistant's."""
        text, spans = self._marks(chat)
        first = chat.targets(which)[0]
        if any(message["role"] == ASSISTANT and message.get("weight") == 0 for message in chat.messages[first:]):
            raise PromptTuningError(
                "a message of the assistant has the weight 0 behind a target, and the chat template has generation "
                "markers, which do not tell turns apart; give a chat_template without them, or end the row before it."
            )
        if any(message["role"] == ASSISTANT for message in chat.messages[:first]):
            before, earlier = self._marks(_beginning(chat, first))
            end = earlier[-1][1] if earlier else 0
            if spans[: len(earlier)] != earlier or text[:end] != before[:end]:
                advice = "assistant_loss 'last', or " if which == "all" else ""
                raise PromptTuningError(
                    f"the chat template renders the conversation before message {first + 1} otherwise than within the "
                    f"whole ({_difference(before[:end], '', text)}), so its earlier turns cannot be told from the "
                    f"targets. Give {advice}a chat_template that renders each turn in one way."
                )
            spans = spans[len(earlier) :]
        if not spans:
            raise PromptTuningError(
                "the chat template marks no text of this conversation as the assistant's ({% generation %}); correct "
                "the template, or the messages."
            )
        return text, spans

    def _marks(self, chat: Conversation) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and all that the template marks."""
        template = self._template_for(chat)
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
        return texts[0], [span for span in spans[0] if span[0] < span[1]]

    def _before(self, chat: Conversation, turn: int) -> str:
        """Return the text before an assistant's turn. Raise PromptTuningError if no message stands before it."""
        if not turn:
            raise PromptTuningError(
                "the conversation begins with the assistant's turn; begin it with a user's, or with a system turn."
            )
        return self.text(_beginning(chat, turn), generation_prompt=True)

    def _whole(self, chat: Conversation, which: str) -> str:
        """Return the text of a conversation with its answer behind what a model is given for it in use.

        Some templates write the system text in the last turn, if that is a user's, and leave it out behind an answer.
        If the last message is the only target, it then stands behind its source. It is what the template writes of it
        without the system turn; and with this turn, it must write the same.
        """
        text, turn = self.text(chat), len(chat.messages) - 1
        if chat.targets(which) != [turn] or turn <= chat.head or not chat.head:
            return text
        before = self._before(chat, turn)
        if text.startswith(before):
            return text
        bare = replace(chat, messages=chat.messages[1:])
        try:
            source, whole = self._before(bare, turn - 1), self.text(bare)
        except PromptTuningError:  # a template that needs the system turn
            return text
        answer = whole.removeprefix(source)
        return before + answer if answer != whole and answer and text.endswith(answer) else text

    def _span(self, chat: Conversation, turn: int, text: str) -> Span:
        """Return where an assistant's turn, with its end, stands in the text of the conversation."""
        before = self._before(chat, turn)
        whole = text if turn == len(chat.messages) - 1 else self.text(_beginning(chat, turn + 1))
        end = whole.rfind(self.end_of_turn, len(before))
        end = len(whole.rstrip()) if end < 0 else end + len(self.end_of_turn)
        if not whole.startswith(before) or not text.startswith(whole[:end]):
            is_last = turn == chat.targets()[-1] == len(chat.messages) - 1
            advice = "chat_template_kwargs with which they agree" if is_last else "assistant_loss 'last'"
            raise PromptTuningError(
                f"the chat template renders the conversation up to message {turn + 1} otherwise than within the whole "
                f"({_difference(whole[:end], before, text)}), so what the assistant writes there cannot be told. Give "
                f"{advice}, or a chat_template with generation markers."
            )
        if not whole[len(before) : end].removesuffix(self.end_of_turn).strip():
            raise PromptTuningError(f"message {turn + 1}, the assistant's, is empty; give it a text, or remove it.")
        return len(before), end

    def tokens(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Return the tokens of a text, and whether each stands, at least partly, in one of the spans."""
        if not self.tokenizer.is_fast:
            return self._tokens_by_parts(text, spans)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask, before = [], 0
        for start, end in encoded["offset_mapping"]:
            # Some tokenizers leave a token's leading space out of its offsets.
            start, before = min(start, before), end
            mask.append(any(start < to and end > at for at, to in spans))
        return encoded["input_ids"], mask

    def _tokens_by_parts(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Return what `_tokens` does, for a tokenizer that does not tell where its tokens stand."""
        ids = self.ids(text)
        mask = [False] * len(ids)
        for span in spans:
            first, last = (len(self.ids(text[:place])) for place in span)
            if ids[:first] != self.ids(text[: span[0]]) or ids[:last] != self.ids(text[: span[1]]):
                raise PromptTuningError(
                    "a token stands across the border of the assistant's turn; use a fast tokenizer, which tells "
                    "where its tokens stand."
                )
            mask[first:last] = [True] * (last - first)
        return ids, mask


def last_run(mask: Sequence[bool]) -> range:
    """Return the positions of the last run of true values; an empty range at the end if there is none."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return range(start, end) if end else range(len(mask), len(mask))


def common_prefix(first: Sequence, second: Sequence) -> int:
    """Return how many characters, or tokens, two sequences have in common at their start."""
    pairs = enumerate(zip(first, second))  # noqa: B905  (up to the end of the shorter one)
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _beginning(chat: Conversation, messages: int) -> Conversation:
    return Conversation(chat.messages[:messages], chat.first_target, chat.tools, chat.kwargs)


def _difference(turn: str, before: str, text: str) -> str:
    """Return in words where a rendering differs from the whole."""
    wrong = before if not turn.startswith(before) else turn
    other = turn if wrong is before else text
    at = common_prefix(wrong, other)
    return f"{wrong[max(at - 10, 0) : at + 20]!r} in place of {other[max(at - 10, 0) : at + 20]!r}"
