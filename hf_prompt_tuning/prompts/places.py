"""Texts that name a place on this machine, which is nobody else's business."""

import os
import re
from pathlib import Path
from typing import Any

PATH = re.compile(r"/|~[\w.-]*[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:")


def is_place(value: Any) -> bool:
    """Whether a value is a path: by its look, or because something is there."""
    if not isinstance(value, str) or "\n" in value:
        return False
    return PATH.match(value) is not None or (os.sep in value and _exists(value))


def without_place(value: Any) -> Any:
    """A path as its last name alone, also within lists and dicts; anything else as it is."""
    if isinstance(value, dict):
        return {name: without_place(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_place(one) for one in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_place(value) else value


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long, or with a NUL: no path
        return False
