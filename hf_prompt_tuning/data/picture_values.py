"""Tell pictures from other values of a row, and name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PICTURE_KEYS = {"bytes", "path"}
"""The keys of a picture as datasets has it."""
UNNAMED = "picture"
"""What stands for a picture of which no file is known."""


def is_picture(value: Any) -> bool:
    """Tell whether a value is a picture as Pillow or datasets has it."""
    if isinstance(value, Mapping):
        return {*value} == PICTURE_KEYS
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)  # Pillow is an extra


def pictures_in(value: Any) -> list[Any]:
    """Return the pictures of a column's value: one or several; else none."""
    if is_picture(value):
        return [value]
    return list(value) if isinstance(value, list | tuple) and value and all(map(is_picture, value)) else []


def picture_name(value: Any) -> str:
    """Return the name of a picture's file without its folder; `UNNAMED` if none is known."""
    path = value["path"] if isinstance(value, Mapping) else getattr(value, "filename", None)
    return Path(path).name if path else UNNAMED
