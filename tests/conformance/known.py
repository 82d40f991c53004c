"""Faults that are known and not yet mended: which cases they spoil, and what they are. To be empty in a release."""

from collections.abc import Callable
from typing import Any

KNOWN: list[tuple[Callable[[str, Any], bool], str]] = [
    (
        lambda entry, case: case.setting.before in ("a merged LoRA", "an edited weight"),
        "edits through .data are not seen (case 14)",
    ),
]


def known_fault(entry: str, case: Any) -> str | None:
    """What is known to be wrong with such a case; None where nothing is."""
    return next((what for spoils, what in KNOWN if spoils(entry, case)), None)
