"""Write JSON that every reader takes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """Return a tree of values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that are finite numbers, as Python numbers. A prompt's files and its card hold no others.

    An array or tensor of one number counts as a number. Lists, texts, NaN and infinity are left out.
    """
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
        if size == 1 and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool | int | float) and math.isfinite(value):
            numbers[name] = int(value) if isinstance(value, int) and abs(value) < 2**63 else float(value)
    return numbers


def points_of(curve: Sequence[Sequence[Any]]) -> list[list[float]]:
    """Return a curve's points [update step, value] whose values are finite numbers."""
    points = [[step, *numbers_of({"value": value}).values()] for step, value in curve]
    return [point for point in points if len(point) == 2]


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write values as JSON, with null for NaN and infinity."""
    text = json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")
