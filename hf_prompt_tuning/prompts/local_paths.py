"""Remove local paths from text that is published, because they are private."""

import os
import re
from pathlib import Path
from typing import Any

PATH = re.compile(r"/|~[\w.-]*[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:")


def is_local_path(value: Any) -> bool:
    """Tell whether a value is a local path: it looks like one, or it exists."""
    if not isinstance(value, str) or "\n" in value:
        return False
    return PATH.match(value) is not None or (os.sep in value and _exists(value))


def without_local_paths(value: Any) -> Any:
    """Return only the last name of a path, also within lists and dicts. Return any other value unchanged."""
    if isinstance(value, dict):
        return {name: without_local_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_local_path(value) else value


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long or with a NUL, so not a path
        return False
