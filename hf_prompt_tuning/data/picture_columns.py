"""Columns of pictures in data: find them, read them from names of files, and keep them as files or bytes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, IterableDataset, LargeList, List, Value

from ..errors import PromptTuningError
from .files import ORIGIN
from .labels import is_missing
from .picture_values import PICTURE_KEYS

STORED = {"bytes": Value("binary"), "path": Value("string")}
"""The type of a picture as datasets keeps it."""
NAMES, BYTES = ("string", "large_string", "null"), ("binary", "large_binary")
"""The types of columns of file names, and of the contents of files."""


def undecoded_features(features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the types of those columns that are pictures, or lists of pictures, as files or bytes."""
    kinds: dict[str, Any] = {}
    for name, feature in (features or {}).items():
        if isinstance(feature, Image):
            kinds[name] = Image(decode=False)
        elif isinstance(feature, List | LargeList) and isinstance(feature.feature, Image):
            kinds[name] = List(Image(decode=False))
    return kinds


def modes(features: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the modes ("RGB") that columns of pictures are to be read in, by the columns' names."""
    kinds = {name: _element(feature) for name, feature in (features or {}).items()}
    return {name: kind.mode for name, kind in kinds.items() if isinstance(kind, Image) and kind.decode and kind.mode}


def undecoded(data: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return data whose pictures are the bytes or files that they are read from."""
    for name, feature in undecoded_features(data.features).items():
        data = data.cast_column(name, feature)
    return data


def picture_columns(features: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the columns that are pictures, lists of pictures, or what datasets keeps of pictures."""
    found = undecoded_features(features)
    return [name for name, kind in (features or {}).items() if name in found or _is_stored(_element(kind))]


def _element(feature: Any) -> Any:
    return feature.feature if isinstance(feature, List | LargeList) else feature


def _is_stored(feature: Any) -> bool:
    return isinstance(feature, dict) and {*feature} == PICTURE_KEYS


def read_columns(data: Dataset, columns: Sequence[str], what: str, folder: Path | None) -> Dataset:
    """Return data in which these columns are pictures.

    A column may have pictures already, the bytes of each, the names of their files, or for each row a list of
    pictures. A row whose name is empty has no picture.

    Args:
        data: rows of a file or of a data set.
        columns: their names.
        what: the data, for messages ("data file 'train.csv'").
        folder: the folder that names are relative to; None if there is none on this machine.

    Raises:
        PromptTuningError: a column is missing or holds something else, or a file is not there. The message names the
            row and the file.
    """
    order = data.column_names
    for column in columns:
        if column not in order:
            names = ", ".join(repr(name) for name in order if name != ORIGIN)
            raise PromptTuningError(
                f"image_columns names {column!r}, which is no column of the {what}; it has {names}. Correct the name."
            )
        feature = data.features[column]
        if column in undecoded_features({column: feature}):
            continue
        kind = getattr(_element(feature), "dtype", None)
        if kind not in (*NAMES, *BYTES) and not _is_stored(_element(feature)):
            raise PromptTuningError(
                f"image_columns names {column!r}, which has the type {feature} in the {what}; give a column of file "
                "names, of pictures (bytes and path, as the datasets library keeps them), or of lists of these."
            )
        if kind not in BYTES:
            data = _Column(data, column, what, folder).with_files()
        picture = Image(decode=False)
        data = data.cast_column(column, picture if _element(feature) is feature else List(picture))
    return data.select_columns(order)


@dataclass(frozen=True)
class _Column:
    """A column of file names, or of pictures that may be names of files."""

    data: Dataset
    name: str
    what: str
    folder: Path | None

    def with_files(self) -> Dataset:
        """Return the data with the full names of files in this column."""
        values = [self._value(value, row) for row, value in enumerate(self.data[self.name], 1)]
        feature = self.data.features[self.name]
        kept = STORED if _is_stored(_element(feature)) else Value("string")
        kept = kept if _element(feature) is feature else List(kept)
        return self.data.remove_columns(self.name).add_column(self.name, values, feature=kept)

    def _value(self, value: Any, row: int) -> Any:
        if isinstance(value, list):
            pictures = [self._picture(one, row) for one in value]
            if None in pictures:
                raise self._fault(row, f"picture {pictures.index(None) + 1} of its {self.name!r} has no name")
            return pictures
        return self._picture(value, row)

    def _picture(self, value: Any, row: int) -> Any:
        """Return a name, or a stored picture, with the full name; None without a picture."""
        if not isinstance(value, Mapping):
            return None if is_missing(value) or value == "" else self._file(value, row)
        if value["bytes"] is not None:
            return dict(value)
        return {"bytes": None, "path": self._file(value["path"], row)} if value["path"] else None

    def _file(self, name: str, row: int) -> str:
        names = f"its {self.name!r} names the picture {name!r:.200}"
        path = Path(name) if self.folder is None else self.folder / name
        if "://" in name or (self.folder is None and not path.is_absolute()):
            raise self._fault(row, f"{names}, and only files of this machine are read")
        if not os.path.isfile(path):  # Path.is_file raises errors for names that are too long
            raise self._fault(row, f"{names}, and there is no file {str(path)!r:.300}")
        return str(path.absolute())

    def _fault(self, row: int, fault: str) -> PromptTuningError:
        return PromptTuningError(
            f"row {row} of the {self.what} cannot be used: {fault}. Names are absolute, or relative to the data's "
            "folder; correct it, or remove the row."
        )
