"""Tell what encoding did to the rows of a data set: how many were cut, and what a chat template left out."""

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Value

from .unwritten import UnwrittenWarning, warn_of_unwritten

logger = logging.getLogger(__name__)


class RowReports:
    """What is told of the rows of one data set.

    Args:
        name: the data set, as messages name it.
        cut: says how many of how many rows of the data set were cut, to how many tokens (`logging`'s `%`, in this
            order).
        first_cut: says which row of a stream is the first that is cut, to how many tokens (`logging`'s `%`: the row's
            number, the data set and the tokens).
        limit: the tokens of a source at most; None if it is never cut.
        are_chats: whether the rows are told as chats.
    """

    def __init__(self, name: str, cut: str, first_cut: str, limit: int | None, are_chats: bool):
        self.name, self.cut, self.first_cut, self.limit, self.are_chats = name, cut, first_cut, limit, are_chats
        self._cut_is_told = False
        self._of_stream = UnwrittenWarning(f"the {name} data hold")

    @property
    def columns(self) -> dict[str, Value]:
        """The columns of encoded rows that only reports read, and their types."""
        return {"was_cut": Value("bool")} | ({"unwritten": Value("string")} if self.are_chats else {})

    def tell(self, encoded: Dataset) -> None:
        """Log what there is to tell of all rows."""
        if cut := sum(encoded["was_cut"]):
            logger.warning(self.cut, cut, len(encoded), self.name, self.limit)
        if self.are_chats:
            warn_of_unwritten(encoded["unwritten"], self.name)

    def see(self, encoded: Mapping[str, Any], index: int) -> None:
        """Log what there is to tell of a stream, at the first row that has it. `index` is the row's, from 0."""
        if encoded["was_cut"] and not self._cut_is_told:
            self._cut_is_told = True
            logger.warning(self.first_cut, index + 1, self.name, self.limit)
        if self.are_chats:
            self._of_stream.see(index + 1, encoded["unwritten"])
