"""Read the rows of csv, tsv, json, jsonl, parquet and arrow files. Errors name the file and the row."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DownloadConfig, DownloadManager, load_dataset
from datasets.data_files import DataFilesList
from pyarrow import parquet

from ..compat.python import CsvReader
from ..errors import PromptTuningError, first_line, sentence
from ..hub.errors import words
from .changed_values import ChangeWarning
from .message_content import of_one_kind

csv.field_size_limit(2**31 - 1)  # Some documents are longer than Python's default limit of 128 KB.
COLUMNAR = (".parquet", ".arrow")
READERS = (".csv", ".tsv", ".json", ".jsonl", *COLUMNAR)
ORIGIN = "__origin__"
"""The column that names the origin of a row ("row 3 of train.csv")."""
URL = "hf://"
"""The start of a Hub file's URL, e.g. hf://datasets/nyu-mll/glue/mrpc/validation-00000-of-00001.parquet."""
CHUNK = 10_000
"""The number of rows that are converted to columns at a time."""


def read_file(file: str | Path, column_names: list[str] | None = None, token: str | None = None) -> Dataset:
    """Return the rows of a csv, tsv, json, jsonl, parquet or arrow file.

    Values are not converted. Every value of a csv or tsv file is text ("007", "NA" and "null" too). A date in a json
    file stays text. Quotation marks in a tsv file are part of the text, as in most tsv files: otherwise an unpaired
    mark would join all lines up to the next mark.

    Args:
        file: a path, or the `hf://` URL of a file on the Hub. The file extension gives the format.
        column_names: the columns of a csv or tsv file that has no header line.
        token: a Hub token, for a private file.

    Raises:
        PromptTuningError: the file is missing, empty or not in the format of its extension, or a row is malformed.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in READERS:
        raise PromptTuningError(f"the data file {str(file)!r} ends in {suffix!r}; give one of {', '.join(READERS)}.")
    path = _downloaded(str(file), suffix, token) if str(file).startswith(URL) else Path(file)
    if not path.is_file():
        raise PromptTuningError(f"the data file {str(file)!r} is not there; check the path.")
    if path.stat().st_size == 0:
        raise PromptTuningError(f"the data file {str(file)!r} is empty; give one with rows, or leave it out.")
    if suffix in (".csv", ".tsv"):
        data = _dataset(path, _table_rows(path, column_names))
    elif column_names is not None:
        raise PromptTuningError(
            f"column_names are for csv and tsv files, and the data file is {str(file)!r}; leave them out."
        )
    else:
        data = _columnar(path, suffix) if suffix in COLUMNAR else _dataset(path, _json_rows(path))
    if len(data) == 0:
        raise PromptTuningError(f"the data file {str(file)!r} has no rows; give one with rows, or leave it out.")
    return data


def _downloaded(url: str, suffix: str, token: str | None) -> Path:
    """Download a file from the Hub and return the path of the local copy."""
    try:
        return Path(DownloadManager(download_config=DownloadConfig(token=token)).download(url))
    except Exception as error:  # datasets raises its own errors and the Hub client's
        raise PromptTuningError(
            f"the data file {url!r} cannot be read as {suffix[1:]}: {sentence(words(error))} Check its URL and "
            "your access."
        ) from error


def _fault(path: Path, what: Any, row: int, line: int | None = None) -> PromptTuningError:
    at = (f"row {row}" if row else "the header") + (f" (line {line})" if line is not None else "")
    return PromptTuningError(f"{at} of the data file {str(path)!r} cannot be used: {what}. Correct it or remove it.")


def _dataset(path: Path, rows: Iterator[dict[str, Any]]) -> Dataset:
    """Return the rows as a dataset; a column that a row lacks becomes a missing value.

    Warn of a column whose values are changed.
    """
    tables, warning = [], ChangeWarning(f"the data file {str(path)!r}")
    while chunk := list(islice(rows, CHUNK)):
        names = dict.fromkeys(name for row in chunk for name in row)
        first = sum(table.num_rows for table in tables) + 1
        with agreeing(f"rows {first} to {first + len(chunk) - 1} of the data file {str(path)!r}"):
            columns = {name: of_one_kind([row.get(name) for row in chunk]) for name in names}
            tables.append(pa.table({name: pa.array(values) for name, values in columns.items()}))
        for name, values in columns.items():
            warning.see(name, first, values, tables[-1].column(name))
    if not tables:
        return Dataset.from_dict({})
    with agreeing(f"the rows of the data file {str(path)!r}"):
        whole = _concatenated(tables)
    _see_promoted(tables, whole, warning)
    return Dataset(whole)


def _see_promoted(tables: list[pa.Table], whole: pa.Table, warning: ChangeWarning) -> None:
    """Warn of values that change where tables with other types are joined."""
    start = 0
    for table in tables:
        for name in table.column_names:
            if table.schema.field(name).type != whole.schema.field(name).type:
                joined = whole.column(name).slice(start, table.num_rows)
                warning.see(name, start + 1, table.column(name).to_pylist(), joined)
        start += table.num_rows


def _concatenated(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # messages may have texts in one table, and lists of parts in another
        rows = [row for table in tables for row in table.to_pylist()]
        names = dict.fromkeys(name for table in tables for name in table.column_names)
        return pa.table({name: pa.array(of_one_kind([row.get(name) for row in rows])) for name in names})


@contextmanager
def agreeing(rows: str) -> Iterator[None]:
    """Raise PromptTuningError if `rows` have values of different types in a column, such as lists and objects."""
    try:
        yield
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise PromptTuningError(
            f"{rows} do not agree on what a column holds: {sentence(first_line(error))} Write it alike in all, or as "
            "JSON text: tools, and a call of tools as a message {'from': 'function_call', 'value': TEXT}."
        ) from error


def _table_rows(path: Path, names: list[str] | None) -> Iterator[dict[str, str]]:
    """Yield the rows of a csv or tsv file with text values. Skip blank lines."""
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    # Invalid UTF-8 bytes are read as surrogates, so that the error can name their row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = CsvReader(file, strict=True, **options)
        row, line = 0 if names is None else 1, 1
        while True:
            try:
                values = next(reader, None)
                if values is None:
                    return
                _check_encoding("".join(values))
            except csv.Error as error:
                what = f"{error} (a quotation mark within a value is written twice)"
                raise _fault(path, what, row, line) from error
            except ValueError as error:
                raise _fault(path, error, row, line) from error
            line, start = reader.line_num + 1, line
            if not values:
                continue
            if names is None:
                names = [value or f"Unnamed: {i}" for i, value in enumerate(values)]
                if twice := [name for name in names if names.count(name) > 1]:
                    raise _fault(path, f"it names the column {twice[0]!r} twice", row, start)
                if nul := _with_nul(names):
                    raise _fault(path, f"the name {nul!r} has a NUL", row, start)
            elif len(values) != len(names):
                what = f"it has {len(values)} values for the {len(names)} columns {', '.join(map(repr, names))}"
                raise _fault(path, what, row, start)
            else:
                yield dict(zip(names, values, strict=True))
            row += 1


def _check_encoding(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = ord(text[error.start])
        what = f"the byte {character - 0xDC00:#04x} is" if 0xDC80 <= character <= 0xDCFF else f"\\u{character:04x} is"
        raise ValueError(f"{what} no UTF-8 (save the file in that encoding)") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a jsonl file, or of a json file: a list of objects, one object, or one object per line."""
    first: dict[str, tuple[str, int]] = {}  # by column: the kind of its first value, and that value's row
    for row, (line, text) in enumerate(_json_texts(path), 1):
        try:
            _check_encoding(text)
            value = json.loads(text, object_pairs_hook=_object)
            if not isinstance(value, dict):
                raise ValueError(f"it is {KINDS[type(value)]}, not an object of column names and values")
            if "\\u" in text:
                _check_encoding(json.dumps(value, ensure_ascii=False))
            for name, item in value.items():
                _check_kind(name, item, row, first)
        except json.JSONDecodeError as error:
            raise _fault(path, f"it is no JSON ({error.msg}; character {error.pos + 1})", row, line) from error
        except (ValueError, RecursionError) as error:
            raise _fault(path, error, row, line) from error
        yield value


KINDS = {
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    if nul := _with_nul(names):
        raise ValueError(f"its name {nul!r} has a NUL")
    return dict(pairs)


def _with_nul(names: list[str]) -> str | None:
    """Return the first name with a NUL, or None; Arrow would cut such a column name at the NUL."""
    return next((name for name in names if "\0" in name), None)


def _check_kind(name: str, value: Any, row: int, first: dict[str, tuple[str, int]]) -> None:
    """Raise ValueError if a value's kind differs from the column's values before it, or if it exceeds 64 bits."""
    if value is None:
        return
    kind, shown = first.setdefault(name, (KINDS[type(value)], row))
    if kind != KINDS[type(value)]:
        raise ValueError(f"its {name!r} is {KINDS[type(value)]} ({str(value)[:60]}), and row {shown} has {kind} there")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"its {name!r} is {value}, a number of more than 64 bits (write it as a text)")


def _json_texts(path: Path) -> Iterator[tuple[int | None, str]]:
    """Yield the line number (None within a list) and the text of each row."""
    content = path.read_bytes() if path.suffix.lower() == ".json" else b""
    text = content.decode("utf-8-sig", errors="surrogateescape").strip()
    if text.startswith("["):
        yield from ((None, item) for item in _items(text))
    elif text and _is_json(text):
        yield None, text
    else:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.decode("utf-8-sig", errors="surrogateescape").strip()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _items(text: str) -> Iterator[str]:
    """Yield the text of each item of a JSON list. From a fault on, yield the rest as one item that is invalid JSON."""
    decoder, between = json.JSONDecoder(), re.compile(r"\s*(,\s*|\]$)")
    start = len(text) - len(text[1:].lstrip())
    if text[start:] == "]":
        return
    while start < len(text):
        try:
            _, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            yield text[start:]
            return
        yield text[start:end]
        gap = between.match(text, end)
        if gap is None:
            yield text[end - 1 :]  # starts with the previous item's closing bracket, so it is invalid JSON
            return
        start = gap.end()
    if text[-1] != "]":
        yield ""


def _columnar(path: Path, kind: str) -> Dataset:
    """Return the rows of a parquet file, or of an arrow file as the datasets library writes it.

    Check its texts, because a reader does not check their UTF-8.
    """
    try:
        if kind == ".arrow":
            data = Dataset.from_file(str(path))
            _check_texts(path, data.data.to_batches(CHUNK))
            return data
        with parquet.ParquetFile(path) as file:
            _check_texts(path, file.iter_batches(CHUNK))
        return load_dataset("parquet", data_files={"data": _exactly(path)}, split="data")
    except PromptTuningError:
        raise
    except Exception as error:  # pyarrow and datasets each raise their own errors
        cause = first_line(error.__cause__ or error)
        raise PromptTuningError(
            f"the data file {str(path)!r} cannot be read as {kind[1:]}: {sentence(cause)} Write the file again."
        ) from error


def _exactly(path: Path) -> DataFilesList:
    """Return one file for load_dataset, which takes a path for a pattern: "data[1].parquet" would name data1.parquet.

    Its time and size are for the cache of datasets, which keeps what it made of a file until they change.
    """
    found = path.stat()
    return DataFilesList([str(path.absolute())], [(str(found.st_mtime_ns), str(found.st_size))])


def _check_texts(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    before = 0
    for batch in batches:
        _check_batch(path, batch, before)
        before += batch.num_rows


def _check_batch(path: Path, batch: pa.RecordBatch, before: int) -> None:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for row in range(batch.num_rows):
            try:
                batch.slice(row, 1).validate(full=True)
            except pa.ArrowInvalid as error:
                raise _fault(path, first_line(error), before + row + 1) from error
