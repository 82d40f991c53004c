"""Find what the assistant writes in a rendered conversation, as text and as tokens.

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

from ..errors import PromptTuningError
from .chat_rendering import ChatRenderer, Span, common_prefix
from .continuation import continuation_ids
from .conversation import Conversation
from .message_content import joined
from .messages import ASSISTANT
from .picture_parts import has_pictures

MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def answer_ids(chats: ChatRenderer, text: str) -> list[int]:
    """Return the tokens of an assistant's turn behind a user's: all that the template writes, up to its end."""
    chat = chats.user_turn("Hi")
    chat.messages.append({"role": ASSISTANT, "content": text})
    turn, whole = len(chat.messages) - 1, _whole(chats, chat, "last")
    start, end = _span(chats, chat, turn, whole)
    before, both = chats.ids(whole[:start]), chats.ids(whole[:end])
    # A source is tokenized without its answer, so no token may stand in both.
    return (
        both[len(before) :] if both[: len(before)] == before else continuation_ids(chats.tokenizer, whole[start:end])
    )


def labelled_tokens(chats: ChatRenderer, chat: Conversation, which: str) -> tuple[list[int], list[bool]]:
    """Return the tokens of a conversation, and whether each is a target: of "all" or the "last" assistant's turn.

    There is one target at least. Raise PromptTuningError if the template renders a beginning of the conversation
    otherwise than within the whole (with "last": what stands before the last turn), or marks no text as the
    assistant's.
    """
    return tokens(chats, *with_targets(chats, chat, which))


def with_targets(chats: ChatRenderer, chat: Conversation, which: str) -> tuple[str, list[Span]]:
    """Return the text of a conversation, and where its targets stand in it.

    Raise as `labelled_tokens` does, or if a target has a picture.
    """
    for turn in chat.targets(which):
        if has_pictures(chat.messages[turn].get("content", "")):
            raise PromptTuningError(
                f"{chat.name_of(turn)}, the assistant's, has a picture, and the model learns to write texts; put it "
                "into a user's turn, or give this turn the weight 0."
            )
    if MARKER.search(chats.template_for(chat)):
        return _marked(chats, chat, which)
    text = _whole(chats, chat, which)
    return text, [_span(chats, chat, i, text) for i in chat.targets(which)]


def _marked(chats: ChatRenderer, chat: Conversation, which: str) -> tuple[str, list[Span]]:
    """Return the text of a conversation, and where the template marks it as the assistant's."""
    text, spans = chats.marks(chat)
    first = chat.targets(which)[0]
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == ASSISTANT]
    if weightless := [i for i in turns if i > first and chat.messages[i].get("weight") == 0]:
        raise PromptTuningError(
            f"{chat.name_of(weightless[0])}, the assistant's, has the weight 0 behind a target, and the chat template "
            "has generation markers, which do not tell turns apart; give a chat_template without them, or end the row "
            "before it."
        )
    if turns[0] < first:
        before, earlier = chats.marks(chat.beginning(first))
        end = earlier[-1][1] if earlier else 0
        if spans[: len(earlier)] != earlier or text[:end] != before[:end]:
            advice = "assistant_loss 'last', or " if which == "all" else ""
            raise PromptTuningError(
                f"the chat template renders the conversation before {chat.name_of(first)} otherwise than within the "
                f"whole ({_difference(before[:end], '', text)}), so its earlier turns cannot be told from the "
                f"targets. Give {advice}a chat_template that renders each turn in one way."
            )
        spans = spans[len(earlier) :]
    _check_marked(chats, chat, which)
    if not spans:
        raise PromptTuningError(
            "the chat template marks no text of this conversation as the assistant's ({% generation %}); correct "
            "the template, or the messages."
        )
    return text, spans


def _check_marked(chats: ChatRenderer, chat: Conversation, which: str) -> None:
    """Raise PromptTuningError if a target has no text, and the template marks none for it but the end of the turn.

    Markers do not tell turns apart: what it marks for a turn is what it marks up to that turn, and not before it.
    """
    for turn in chat.targets(which):
        if joined(chat.messages[turn].get("content", "")).strip():
            continue
        has_earlier = any(message["role"] == ASSISTANT for message in chat.messages[:turn])
        before = _marked_text(chats, chat.beginning(turn)) if has_earlier else ""
        marked = _marked_text(chats, chat.beginning(turn + 1)).removeprefix(before)
        _check_written(chats, chat, turn, marked.rstrip())


def _marked_text(chats: ChatRenderer, chat: Conversation) -> str:
    text, spans = chats.marks(chat)
    return "".join(text[start:end] for start, end in spans)


def _check_written(chats: ChatRenderer, chat: Conversation, turn: int, text: str) -> None:
    """Raise PromptTuningError if nothing stands before the end of an assistant's turn, as the template writes it."""
    if text.removesuffix(chats.end_of_turn).strip():
        return
    if chat.messages[turn].get("tool_calls"):
        raise PromptTuningError(
            f"{chat.name_of(turn)}, the assistant's, is calls of tools, which the chat template does not write; "
            "give a chat_template with tools, or remove the row."
        )
    raise PromptTuningError(f"{chat.name_of(turn)}, the assistant's, is empty; give it a text, or remove it.")


def _before(chats: ChatRenderer, chat: Conversation, turn: int) -> str:
    """Return the text before an assistant's turn. Raise PromptTuningError if no message stands before it."""
    if not turn:
        raise PromptTuningError(
            "the conversation begins with the assistant's turn; begin it with a user's, or with a system turn."
        )
    return chats.text(chat.beginning(turn), generation_prompt=True)


def _whole(chats: ChatRenderer, chat: Conversation, which: str) -> str:
    """Return the text of a conversation with its answer behind what a model is given for it in use.

    Some templates write the system text in the last turn, if that is a user's, and leave it out behind an answer.
    If the last message is the only target, it then stands behind its source. It is what the template writes of it
    without the system turn; and with this turn, it must write the same.
    """
    text, turn = chats.text(chat), len(chat.messages) - 1
    if chat.targets(which) != [turn] or turn <= chat.head or not chat.head:
        return text
    before = _before(chats, chat, turn)
    if text.startswith(before):
        return text
    bare = replace(chat, messages=chat.messages[1:])
    try:
        source, whole = _before(chats, bare, turn - 1), chats.text(bare)
    except PromptTuningError:  # a template that needs the system turn
        return text
    answer = whole.removeprefix(source)
    return before + answer if answer != whole and answer and text.endswith(answer) else text


def _span(chats: ChatRenderer, chat: Conversation, turn: int, text: str) -> Span:
    """Return where an assistant's turn, with its end, stands in the text of the conversation."""
    before = _before(chats, chat, turn)
    whole = text if turn == len(chat.messages) - 1 else chats.text(chat.beginning(turn + 1))
    end = whole.rfind(chats.end_of_turn, len(before))
    end = len(whole.rstrip()) if end < 0 else end + len(chats.end_of_turn)
    if not whole.startswith(before) or not text.startswith(whole[:end]):
        is_last = turn == chat.targets()[-1] == len(chat.messages) - 1
        advice = "chat_template_kwargs with which they agree" if is_last else "assistant_loss 'last'"
        raise PromptTuningError(
            f"the chat template renders the conversation up to {chat.name_of(turn)} otherwise than within the whole "
            f"({_difference(whole[:end], before, text)}), so what the assistant writes there cannot be told. Give "
            f"{advice}, or a chat_template with generation markers."
        )
    _check_written(chats, chat, turn, whole[len(before) : end])
    return len(before), end


def tokens(chats: ChatRenderer, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """Return the tokens of a text, and whether each stands, at least partly, in one of the spans."""
    if not chats.tokenizer.is_fast:
        return _tokens_by_parts(chats, text, spans)
    encoded = chats.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask, before = [], 0
    for start, end in encoded["offset_mapping"]:
        # Some tokenizers leave a token's leading space out of its offsets.
        start, before = min(start, before), end
        mask.append(any(start < to and end > at for at, to in spans))
    return encoded["input_ids"], mask


def _tokens_by_parts(chats: ChatRenderer, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """Return what `tokens` does, for a tokenizer that does not tell where its tokens stand."""
    ids = chats.ids(text)
    mask = [False] * len(ids)
    for span in spans:
        first, last = (len(chats.ids(text[:place])) for place in span)
        if ids[:first] != chats.ids(text[: span[0]]) or ids[:last] != chats.ids(text[: span[1]]):
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


def _difference(turn: str, before: str, text: str) -> str:
    """Return in words where a rendering differs from the whole."""
    wrong = before if not turn.startswith(before) else turn
    other = turn if wrong is before else text
    at = common_prefix(wrong, other)
    return f"{wrong[max(at - 10, 0) : at + 20]!r} in place of {other[max(at - 10, 0) : at + 20]!r}"
