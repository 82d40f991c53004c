"""Tell what a chat template leaves out of a conversation that it rendered."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .conversation import Conversation
from .messages import ASSISTANT

logger = logging.getLogger(__name__)

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message in which data sets have an assistant's reasoning."""

REASONING_END = re.compile(r"</\w*(?:think|thought|reasoning)\w*>|\[/THINK\]|◁/think▷")
REASONING_START = re.compile(r"^\s*(?:<\w*(?:think|thought|reasoning)\w*>|\[THINK\]|◁think▷)")


def unwritten(chat: Conversation, text: str, template: str) -> str | None:
    """Return in words the first part of a conversation that is not in its rendered text, or None if all is there.

    White space does not count, and neither does the reasoning of earlier turns, which templates drop on purpose.

    Args:
        chat: the conversation.
        text: what the chat template made of it.
        template: the chat template.
    """
    found = _without_space(text)
    parts = list(_parts(chat))
    joined = "\0".join(_without_space(part) for _, part in parts)
    for what, part in parts:
        # Counting, and not looking for it: a short text may stand in another message.
        bare = _without_space(part)
        if found.count(bare) < joined.count(bare) and not _stands_escaped(part, found):
            return what
    for index, message in enumerate(chat.messages):
        names = _names(message.get("tool_calls"))
        if names and not _are_written(names, "tool_calls", found, template):
            return f"the tool calls of {chat.name_of(index)}, the {message['role']}'s"
    return "the tools" if chat.tools and not _are_written(_names(chat.tools), "tools", found, template) else None


class UnwrittenWarning:
    """Warn of the first row of which a chat template leaves something out, and of no other.

    Args:
        rows: the rows, with a verb: "the inputs hold".
    """

    def __init__(self, rows: str):
        self._rows, self._is_given = rows, False

    def see(self, number: int | None, what: str | None) -> None:
        """Warn if a row is the first that is not whole.

        `number` is the row's, counted from 1, or None for a single row. `what` is what `unwritten` returned for it.
        """
        if what is None or self._is_given:
            return
        self._is_given = True
        logger.warning(
            "%s what the chat template does not write, so that the model never sees it: %s. Give a chat_template "
            "that writes it, or remove it from the rows.",
            self._rows,
            what if number is None else f"first row {number}, {what}",
        )


def warn_of_unwritten(unwritten: Sequence[str | None], name: str) -> None:
    """Warn of all rows of a data set of which a chat template leaves something out: how many, and which is the first.

    `unwritten` is what the function of this name returned for each row.
    """
    found = [(number, what) for number, what in enumerate(unwritten, 1) if what is not None]
    if found:
        UnwrittenWarning(f"{len(found)} of {len(unwritten)} {name} rows hold").see(*found[0])


def _parts(chat: Conversation) -> Iterator[tuple[str, str]]:
    """Return the texts of messages that a template is expected to write, each with its name."""
    for index, message in enumerate(chat.messages):
        whose = f"{chat.name_of(index)}, the {message['role']}'s"
        is_last = index == len(chat.messages) - 1
        content = message.get("content", "")
        for part in [content] if isinstance(content, str) else (part.get("text", "") for part in content):
            pieces = REASONING_END.split(part) if message["role"] == ASSISTANT else [part]
            for piece in pieces if is_last else pieces[-1:]:
                piece = REASONING_START.sub("", piece) if len(pieces) > 1 else piece
                if piece.strip():
                    yield f"the text of {whose}", piece
        for key in REASONING if is_last and message["role"] == ASSISTANT else ():
            if isinstance(message.get(key), str) and message[key].strip():
                yield f"{key!r} of {whose}", message[key]


def _without_space(text: str) -> str:
    return "".join(text.split())


def _stands_escaped(part: str, text: str) -> bool:
    """Tell whether a text stands as JSON in another, as some templates write a tool's result."""
    escaped = (json.dumps(part, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True))
    return any(form != part and _without_space(form) in text for form in escaped)


def _names(tools: Any) -> list[str]:
    """Return the names of tools, or of calls of tools."""
    return [_name(tool) for tool in tools] if isinstance(tools, list | tuple) else []


def _name(tool: Any) -> str:
    if not isinstance(tool, Mapping):
        return getattr(tool, "__name__", "")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def _are_written(names: Iterable[str], variable: str, text: str, template: str) -> bool:
    return variable in template and all(_without_space(name) in text for name in names)
