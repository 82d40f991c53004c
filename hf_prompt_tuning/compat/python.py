"""What differs between versions of Python."""

import csv
import sys
from collections.abc import Iterable, Iterator
from typing import Any

NUL, STAND_IN = "\0", "\udc00"
"""A NUL, which the csv module of Python 3.10 refuses, and what stands for it there. No decoded file has the latter."""


class CsvReader:
    """Read rows as `csv.reader` does, NULs included."""

    def __init__(self, lines: Iterable[str], **options: Any):
        self._refuses_nul = sys.version_info < (3, 11)
        if self._refuses_nul:
            lines = (line.replace(NUL, STAND_IN) for line in lines)
        self._reader = csv.reader(lines, **options)

    @property
    def line_num(self) -> int:
        """The number of lines that have been read."""
        return self._reader.line_num

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        values = next(self._reader)
        return [value.replace(STAND_IN, NUL) for value in values] if self._refuses_nul else values
