"""Tell pictures from other values of a row, and name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PICTURE_KEYS = {"bytes", "path"}
"""The keys of a picture as datasets has it."""
UNNAMED = "picture"
"""What stands for a picture of which no file is known."""


def is_picture(value: Any) -> bool:
    """Tell whether a value is a picture as Pillow or datasets has it."""
    if isinstance(value, Mapping):
        return {*value} == PICTURE_KEYS
    return is_of_pillow(value)


def is_of_pillow(value: Any) -> bool:
    """Tell whether a value is a picture as Pillow has it."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)  # Pillow is an extra


def pictures_in(value: Any) -> list[Any]:
    """Return the pictures of a column's value: one or several; else none."""
    if is_picture(value):
        return [value]
    return list(value) if isinstance(value, list | tuple) and value and all(map(is_picture, value)) else []


def stored_pictures(value: Any, where: str) -> Any:
    """Return a column's value with its pictures of Pillow, one or several, as they are stored.

    Raise PromptTuningError, which begins with `where`, if one cannot be.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not any(map(is_of_pillow, values)):
        return value
    from .picture_files import stored  # it needs Pillow

    found = [stored(picture, where) for picture in values]
    return found if values is value else found[0]


def with_lists(value: Any) -> Any:
    """Return a tree of values with lists in place of arrays of objects, which pandas reads from parquet files."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: with_lists(item) for key, item in value.items()}
    return [with_lists(item) for item in value] if isinstance(value, list | tuple) else value


def picture_name(value: Any) -> str:
    """Return the name of a picture's file without its folder; `UNNAMED` if none is known."""
    path = value["path"] if isinstance(value, Mapping) else getattr(value, "filename", None)
    return Path(path).name if path else UNNAMED
