"""Show rows with pictures to people: a picture is the name of its file."""

from collections.abc import Iterator, Mapping
from typing import Any

from .chat_template import ChatTemplate
from .picture_parts import WRITTEN, is_picture_part, picture_part
from .picture_values import UNNAMED, picture_name, pictures_in
from .template import PromptTemplate


def shown(template: PromptTemplate | ChatTemplate, row: Mapping[str, Any]) -> Any:
    """Return a row's input for people, in a file of predictions.

    A picture in a text is `[dog.png]`. In messages it is the part `{"type": "image", "path": "dog.png"}`.
    """
    names = {column: [picture_name(picture) for picture in pictures_in(value)] for column, value in row.items()}
    # In a field, an empty list can only be one of pictures.
    names = {column: found for column, found in names.items() if found or (_is_list(row[column]) and not row[column])}
    if not isinstance(template, ChatTemplate):
        return template.shown({**row, **{column: "".join(f"[{name}]" for name in names[column]) for column in names}})
    waiting = iter([name for found in names.values() for name in found])

    def named(message: Any) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):
            return message
        return {**message, "content": [_part(part, waiting) for part in content]}

    messages = {
        name: [named(message) for message in row[name]] for name in template.columns if _is_list(row.get(name))
    }
    return [_as_given(message) for message in template.shown({**row, **messages})]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _part(part: Any, names: Iterator[str]) -> Any:
    is_image = isinstance(part, Mapping) and part.get("type") == "image"
    return picture_part("", next(names, UNNAMED)) if is_image else part


def _as_given(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not _is_list(content):
        return message
    parts = [{"type": "image", "path": part[WRITTEN]} if is_picture_part(part) else part for part in content]
    return {**message, "content": parts}
