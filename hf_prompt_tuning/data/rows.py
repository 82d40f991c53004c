"""Read rows as a caller holds them: tables of pandas, pyarrow or polars, dicts of columns, or texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from ..errors import PromptTuningError


def is_table(data: Any) -> bool:
    """Tell whether the data is a table of pandas, pyarrow or polars. Iterating or indexing one gives its columns."""
    return isinstance(data, pd.DataFrame | pa.Table) or hasattr(data, "to_dicts")  # polars' name


def table_rows(data: Any) -> Any:
    """Return the rows of a table as a list of dicts, a pyarrow array as a list, and other data unchanged.

    A missing value of a DataFrame (NaN, NaT, NA) becomes None.
    """
    if isinstance(data, pd.DataFrame):
        return data.astype(object).where(data.notna(), None).to_dict("records")
    to_list = getattr(data, "to_pylist", None) or getattr(data, "to_dicts", None)  # pyarrow's name, polars' name
    return to_list() if to_list else data


def series_row(data: Any, columns: Sequence[str]) -> Any:
    """Return a row of a DataFrame (a Series with a column's name in its index) as a dict; other data unchanged."""
    is_row = isinstance(data, pd.Series) and any(name in data.index for name in columns)
    return table_rows(data.to_frame().T)[0] if is_row else data


def column_names(columns: Sequence[str]) -> str:
    """Return column names for a message."""
    return ", ".join(map(repr, columns))


def row_columns(content: Any, columns: Sequence[str]) -> Mapping[str, Any]:
    """Return a row as a dict of the columns that the template's source names. A text is the value of the one column.

    Raise PromptTuningError if it is a chat, a text for several columns, neither a dict nor a text, or lacks a column.
    """
    needed = column_names(columns)
    content = series_row(content, columns)
    if isinstance(content, str):
        if len(columns) != 1:
            raise PromptTuningError(f"got a text, and the template has the columns {needed}; give a dict of them.")
        return {columns[0]: content}
    if isinstance(content, list | tuple) or (
        isinstance(content, Mapping)
        and not set(columns) <= content.keys()
        and ("messages" in content or {"role", "content"} <= content.keys())
    ):
        raise PromptTuningError(
            "inputs hold a chat (messages of a role and a content), and a prompt's template makes text of columns; "
            f"give a dict of {needed}."
        )
    if not isinstance(content, Mapping):
        text = ", or a text" if len(columns) == 1 else ""
        raise PromptTuningError(
            f"inputs hold a row that is a {type(content).__name__}; give a dict of {needed}{text}."
        )
    if missing := [name for name in columns if name not in content]:
        raise PromptTuningError(
            f"the template's field {{{missing[0]}}} is not in the row, which has {column_names([*content])}."
        )
    return content
