"""Name a row in messages: its number, its data, and where it is in a file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import PromptTuningError
from .files import ORIGIN


def origin(row: Mapping[str, Any]) -> str:
    """Return the origin of a row in parentheses, or "" if it is unknown."""
    return f" ({row[ORIGIN]})" if row.get(ORIGIN) else ""


@contextmanager
def naming(row: Mapping[str, Any], index: int, name: str) -> Iterator[None]:
    """Within this context, a PromptTuningError names the row, its number from `index`, and the data."""
    try:
        yield
    except PromptTuningError as error:
        raise PromptTuningError(f"row {index + 1} of the {name} data{origin(row)}: {error}") from error
