"""Read the messages of a conversation, and its tools, as data sets hold them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PromptTuningError
from .labels import is_missing
from .message_content import Content, is_text_part, text_part
from .picture_parts import has_pictures, is_picture_part

Message = dict[str, Any]

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
"""Names that data sets of `from` and `value` have for roles. Other names stay as they are."""

FUNCTION_CALL = "function_call"
"""The name of an assistant's turn that is calls of tools, in data sets of `from` and `value`."""

ASSISTANT = "assistant"
SYSTEM = ("system", "developer")


def is_message(value: Any) -> bool:
    """Tell whether a value is a mapping that has a role, or what data sets of `from` and `value` call it."""
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= value.keys())


def is_chat(value: Any) -> bool:
    """Tell whether a value is a list of messages."""
    return isinstance(value, list | tuple) and bool(value) and all(is_message(message) for message in value)


def is_sharegpt(value: Any) -> bool:
    """Tell whether a value is messages of `from` and `value`."""
    first = next(iter(value), None) if not isinstance(value, str) and len(value) else None
    return isinstance(first, Mapping) and first.get("from") is not None and first.get("role") is None


def read_messages(value: Any, column: str, role: str | None = None) -> list[Message]:
    """Return the messages of a row, each with its `role` and `content`. Keys that are None are left out.

    A content is a text, or a list of text parts if there are several. `value` is a list of messages: `role` and
    `content` (a text, or a list of text parts), or `from` and `value`; or, if a `role` is given for it, a text. Raise
    PromptTuningError if it is neither, or a message has no role, or no text.
    """
    if isinstance(value, str) and role is not None:
        return [{"role": role, "content": value}]
    if hasattr(value, "tolist"):  # NumPy's array, as pandas reads parquet
        value = value.tolist()
    if not isinstance(value, list | tuple) or not value:
        what = "missing" if is_missing(value) else f"{value!r:.80}"
        raise PromptTuningError(f"{{{column}}} is {what}; give a list of messages, each with a role and a content.")
    return [_message(message, f"message {number} of {{{column}}}") for number, message in enumerate(value, 1)]


def _message(value: Any, where: str) -> Message:
    if not is_message(value):
        raise PromptTuningError(f"{where} is {value!r:.80}; give a mapping with 'role' and 'content'.")
    message = {key: without_none(item) for key, item in value.items() if item is not None}
    if "role" not in message and "from" in message:
        role, content = message.pop("from"), message.pop("value", None)
        if role == FUNCTION_CALL:
            message = {"role": ASSISTANT, "tool_calls": _calls(content, where)} | message
        else:
            role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role  # a list has no hash
            message = {"role": role, "content": content} | message
    if not isinstance(message.get("role"), str):
        raise PromptTuningError(f"{where} has the role {message.get('role')!r:.80}; give a text.")
    if message.get("content") is not None:
        message["content"] = _content(message["content"], where)
    elif message["role"] != ASSISTANT:
        raise PromptTuningError(f"{where} has no content; give it a text, or remove it.")
    else:
        message.pop("content", None)
    if message["role"] == ASSISTANT and message.get("weight", 1) not in (0, 1):
        raise PromptTuningError(
            f"{where} has the weight {message['weight']!r:.80}; give 0, so that this turn is no target, or 1."
        )
    if not message.get("tool_calls", True):
        del message["tool_calls"]
    return message


def _calls(content: Any, where: str) -> list[dict[str, Any]]:
    """Return calls of tools from JSON text of a name and arguments, or a list of these."""
    try:
        calls = json.loads(content)
    except (TypeError, ValueError):
        calls = None
    calls = [calls] if isinstance(calls, dict) else calls
    if not calls or not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise PromptTuningError(
            f"{where} is a function_call of {content!r:.80}; give JSON text of the call, "
            '{"name": …, "arguments": {…}}, or of a list of calls.'
        )
    return [{"type": "function", "function": call} for call in calls]


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, dict)
        and call.keys() == {"name", "arguments"}
        and isinstance(call["name"], str)
        and isinstance(call["arguments"], dict)
    )


def _content(content: Any, where: str) -> Content:
    """Return a message's content: a text, or a list of parts. A list of one text part is its text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    for part in parts:
        if not is_text_part(part) and not is_picture_part(part):
            raise PromptTuningError(
                f"{where} has the content {part!r:.80}; a prompt is tuned on text: give a text, or a list of "
                '{"type": "text", "text": …}. Pictures are read with a processor as the trainer\'s processing_class, '
                'from the column "images", and their parts are {"type": "image"}.'
            )
    if has_pictures(parts):
        return [part if is_picture_part(part) else text_part(part["text"]) for part in parts]
    texts = [part["text"] for part in parts]
    return [text_part(text) for text in texts] if len(texts) > 1 else "".join(texts)


def read_tools(value: Any) -> list[Any] | None:
    """Return the tools of a row or None: a list of JSON schemas, or JSON text of it, else PromptTuningError."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise PromptTuningError(f"{{tools}} is {value!r:.80}, not JSON: {error}.") from error
    if hasattr(value, "tolist"):
        value = value.tolist()
    if is_missing(value) or value in ("", [], ()):
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) or callable(tool) for tool in value):
        raise PromptTuningError(f"{{tools}} is {value!r:.80}; give a list of JSON schemas, or JSON text of it.")
    return [tool if callable(tool) else without_none(tool) for tool in value]


def without_none(value: Any) -> Any:
    """Return a tree of values without the keys that are None, which a data set adds if rows have different keys.

    Arrays, as pandas has lists in what it reads from parquet, become lists.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list | tuple) else value
