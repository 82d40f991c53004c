"""Find the tokens that a tokenizer or a chat template writes in front of every text: a prompt may stand there."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import PromptTuningError
from .chat_format import ChatFormat
from .content_forms import ContentForms
from .messages import Message

PROBES = ("the", "You", "x1", "{", "é")
"""Texts that have no first token in common in any vocabulary."""
DATES = ("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%Y-%m-%d")


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text: usually BOS or none."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    first_word = probe["special_tokens_mask"].index(0)
    return probe["input_ids"][:first_word]


def without_head(ids: list[int], head: Sequence[int], tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
    """Return a row's token ids without the head with which they may begin. The tokenizer is for the error.

    Raises:
        PromptTuningError: the row begins with the first of several tokens of the head, and not with all of them.
    """
    if ids[: len(head)] == list(head):
        return ids[len(head) :]
    if len(head) > 1 and ids[:1] == list(head[:1]):
        raise PromptTuningError(
            f"the row begins with {ids[: len(head)]}, and the prompt stands behind {list(head)}: "
            f"{why_part_of_head(ids, head, tokenizer)}"
        )
    return ids


def why_part_of_head(ids: Sequence[int], head: Sequence[int], tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """Return in words why a row begins with a part of a chat's head alone, and what to do.

    The tokenizer, if given, tells the texts of tokens.
    """
    last, no_turn = len(head) - 1, "a chat without a system turn, perhaps. Give it one, with a text if the template "
    no_turn += "leaves out an empty one."
    if len(ids) <= last or list(ids[:last]) != list(head[:last]):
        return no_turn
    merged, perhaps = f"token {ids[last]}", ", perhaps"
    if tokenizer is not None:
        whole, end = (tokenizer.decode([token]) for token in (ids[last], head[last]))
        if not whole.startswith(end):
            return no_turn
        merged, perhaps = f"token {ids[last]} ({whole!r})", ""
    return (
        f"the {merged} holds the head's end together with what follows it{perhaps}, so nothing can stand between "
        "them. Remove the line break with which the system text begins; if there is no system text, give one (the "
        "template writes line breaks behind an empty one, as before tools)."
    )


def chat_head_ids(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, options: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the tokens that a chat template writes before the system text, or before the first turn's text.

    The first turn's, if the template has no system role. A last token that would merge with some texts, as a space
    does, is left out.

    Args:
        tokenizer: the tokenizer.
        chat_template: the template; default the tokenizer's own.
        options: other variables of the template.

    Raises:
        PromptTuningError: there is no template, it writes nothing before the text, or it writes today's date there.
    """
    if chat_template is None and not tokenizer.chat_template:
        raise PromptTuningError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, before whose system text the prompt "
            "should stand; set tokenizer.chat_template, or give another prompt_position."
        )
    write = _writer(tokenizer, chat_template, options or {})
    heads = [_head(write, text) for text in PROBES]
    if dated := next((date for date in map(datetime.now().strftime, DATES) if date in heads[0]), None):
        raise PromptTuningError(
            f"the chat template writes today's date ({dated}) before the system text, so no prompt could stand behind "
            "it tomorrow; fix it by a variable of the template (chat_template_kwargs, such as date_string)."
        )
    rows = [
        tokenizer(head + text, add_special_tokens=False)["input_ids"] for head, text in zip(heads, PROBES, strict=True)
    ]
    shared = next((i for i, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1), min(map(len, rows)))
    while shared and not tokenizer.decode([rows[0][shared - 1]]).strip(" "):
        shared -= 1
    if not shared:
        raise PromptTuningError(
            "the chat template writes no token before the first text, behind which the prompt could stand; give "
            "another prompt_position."
        )
    return rows[0][:shared]


def marks_turns(token: int, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> bool:
    """Tell whether a chat template, default the tokenizer's own, writes a token in every turn of a chat."""
    if chat_template is None and not tokenizer.chat_template:
        return False
    turns = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user")]
    text = _writer(tokenizer, chat_template, {})(turns)
    return tokenizer(text, add_special_tokens=False)["input_ids"].count(token) >= len(turns)


def needs_system_turn(
    position: str | None,
    chat: ChatFormat | None,
    tokenizer: PreTrainedTokenizerBase,
    head: Sequence[int] | None = None,
) -> bool:
    """Tell whether a prompt stands in the system turn, and chats begin with its head only if they have that turn.

    Args:
        position: the prompt's `prompt_position`.
        chat: how conversations become text; None for texts that are no chats.
        tokenizer: the tokenizer.
        head: the head that the template must write; None for any.

    Raises:
        PromptTuningError: the template writes another head, or none (see `chat_head_ids`); or it does not write the
            head before the system message, whose beginning merges with the head's end.
    """
    if position != "system" or chat is None:
        return False
    options = dict(chat.chat_template_kwargs or {})
    written = chat_head_ids(tokenizer, chat.chat_template, options)
    if head is not None and list(head) != written:
        raise PromptTuningError(
            f"the chat template writes the tokens {written} before the system text, and the prompt stands behind "
            f"{list(head)}; give the chat template that it was trained with."
        )
    write = _writer(tokenizer, chat.chat_template, options)

    def first_ids(*messages: Message) -> list[int]:
        return tokenizer(write(messages), add_special_tokens=False)["input_ids"][: len(written)]

    user = {"role": "user", "content": "user"}
    if first_ids(user) == written:
        return False
    if chat.system_message is not None:
        begins = first_ids({"role": "system", "content": chat.system_message}, user)
        if begins != written:
            why = why_part_of_head(begins, written, tokenizer)
            raise PromptTuningError(f"a chat with the system_message {chat.system_message!r:.80}: {why}")
    return True


def _writer(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, options: Mapping[str, Any]
) -> Callable[[Sequence[Message]], str]:
    """Return a function of messages that returns what the template writes: nothing of a chat that it refuses."""
    write = partial(tokenizer.apply_chat_template, chat_template=chat_template, tokenize=False, **options)
    forms = ContentForms(write)

    def written(messages: Sequence[Message]) -> str:
        try:
            return write(forms.given(messages))
        except Exception:  # a template may fail in any way that Python has
            return ""

    return written


def _head(write: Callable[[Sequence[Message]], str], text: str) -> str:
    """Return what the template writes before the text of a system turn, or of a user's turn if that is not written."""
    marked, user = f"{text}-marked", {"role": "user", "content": "user"}
    with_system = [{"role": "system", "content": marked}, user]
    for messages in (with_system, [user | {"content": marked}]):
        before, found, _ = write(messages).partition(marked)
        if found:
            return before
    raise PromptTuningError(
        "the chat template writes neither a system turn's text nor a user's; give a chat template, or another "
        "prompt_position."
    )
