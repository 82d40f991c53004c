"""Tell a processor of transformers, for pictures and texts, from a tokenizer."""

from collections.abc import Mapping
from typing import Any

from transformers import ProcessorMixin


def is_processor(value: Any) -> bool:
    """Tell whether a value is a processor."""
    return isinstance(value, ProcessorMixin)


def tokenizer_in(value: Any) -> Any:
    """Return the tokenizer of a processor; any other value unchanged."""
    return value.tokenizer if is_processor(value) else value


def own_chat_template(value: Any) -> str | None:
    """Return the chat template that a processor has beside its tokenizer's; None without one, or of a tokenizer."""
    template = value.chat_template if is_processor(value) else None
    return template.get("default") if isinstance(template, Mapping) else template
