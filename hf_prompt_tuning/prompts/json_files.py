"""Write JSON that every reader takes."""

import json
import math
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """Return a tree of values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write values as JSON, with null for NaN and infinity."""
    text = json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")
