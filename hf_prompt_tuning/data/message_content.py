"""The content of messages as rows have it: a text, or a list of text parts."""

from collections.abc import Mapping, Sequence
from typing import Any

Content = str | list[dict[str, str]]


def text_part(text: str) -> dict[str, str]:
    """Return a text as a part of a message's content."""
    return {"type": "text", "text": text}


def is_text_part(part: Any) -> bool:
    """Tell whether a part of a message's content is text, and not a picture or sound."""
    return (
        isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in ("text", None)
    )


def is_plain_part(value: Mapping[str, Any]) -> bool:
    """Tell whether a mapping is a text, or the place of a picture, as a part of a message's content, and no more."""
    return value.get("type") in ("text", "image") and value.keys() <= {"type", "text", "index"}


def joined(content: Content) -> str:
    """Return a content as a text. Parts are joined without anything between them; pictures have no text."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def of_one_kind(column: Sequence[Any]) -> list[Any]:
    """Return the values of a column; of messages of which some have a text and others a list, all with a list.

    Arrow has no type for a column of both.
    """
    chats = [value for value in column if isinstance(value, list | tuple)]
    kinds = {type(m.get("content")) for chat in chats for m in chat if isinstance(m, Mapping)}
    if not {str, list} <= kinds:
        return list(column)
    return [[_with_parts(m) for m in value] if isinstance(value, list | tuple) else value for value in column]


def _with_parts(message: Any) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [text_part(message["content"])]}
