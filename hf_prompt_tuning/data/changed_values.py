"""Tell of values that a table changes: one column has one type, with one order of an object's names."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .message_content import is_plain_part

logger = logging.getLogger(__name__)


class ChangeWarning:
    """Warn of the first row of each column that a table changed in a way that a text of the row shows.

    An object's names are then in another order, or a whole number has a fraction (4 is 4.0). A template that writes
    them as text writes another text than the row has.

    Args:
        rows: the data, as messages name it: "the data file 'train.jsonl'".
    """

    def __init__(self, rows: str):
        self._rows, self._told = rows, set[str]()

    def see(self, name: str, first: int, before: Sequence[Any], after: pa.ChunkedArray) -> None:
        """Compare the values of a column before and after. `first` is the number of the first row."""
        if name in self._told or not _may_change(before, after.type):
            return
        for number, (old, new) in enumerate(zip(before, after.to_pylist(), strict=True), first):
            try:
                written, read = _text(old), _text(new)
            except (TypeError, ValueError):  # values that are no JSON have other types of their own
                return
            if written != read:
                self._tell(name, number, written, read)
                return

    def _tell(self, name: str, number: int, written: str, read: str) -> None:
        self._told.add(name)
        start = max(next((i for i, (a, b) in enumerate(zip(written, read, strict=False)) if a != b), 0) - 20, 0)
        logger.warning(
            "The column %r of %s is changed, because a column has one type: row %d is the first, with %s in place of "
            "%s. Write numbers alike, and the names of an object in one order. As JSON text they stay as they are: "
            "tools, and a call as a message {'from': 'function_call', 'value': TEXT}.",
            name,
            self._rows,
            number,
            read[start : start + 60],
            written[start : start + 60],
        )


def _may_change(before: Sequence[Any], kind: pa.DataType) -> bool:
    if pa.types.is_floating(kind):
        return any(type(value) is int for value in before)
    return pa.types.is_nested(kind) and any(_has_object(value) for value in before)


def _has_object(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_has_object, value)))


def _text(value: Any) -> str:
    """Return a value as JSON, without the keys that are None, which a table adds.

    The names of a message and of its parts are sorted: a chat template reads each by its name.
    """
    return json.dumps(_whole(value), ensure_ascii=False)


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        whole = {key: _whole(item) for key, item in value.items() if item is not None}
        is_read_by_name = "role" in value or "from" in value or is_plain_part(whole)
        return dict(sorted(whole.items())) if is_read_by_name else whole
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value
