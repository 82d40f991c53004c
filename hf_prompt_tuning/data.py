"""From files and Hub data sets to rows."""

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset

from .errors import PromptTuningError, first_line

if TYPE_CHECKING:
    from .arguments import DataArguments

logger = logging.getLogger(__name__)

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def split_names(dataset_name: str | None, config_name: str | None, revision: str | None) -> list[str]:
    """The splits that a Hub data set has; none where no data set is named."""
    if dataset_name is None:
        return []
    try:
        return datasets.get_dataset_split_names(dataset_name, config_name, revision=revision)
    except Exception as error:  # datasets raises many kinds, its own and the Hub client's
        raise _not_loaded(dataset_name, error) from error


def load_splits(args: "DataArguments", seed: int) -> DatasetDict:
    """The splits that the arguments name, under "train", "validation" and "test".

    `max_train_samples` and `max_eval_samples` draw rows by the seed (files are often sorted by their label).

    Raises:
        PromptTuningError: no data, a file that is not there, is empty, or is not what its name says.
    """
    splits = DatasetDict()
    if args.dataset_name is not None:
        try:
            splits = load_dataset(args.dataset_name, args.dataset_config_name, revision=args.dataset_revision)
        except Exception as error:  # as above
            raise _not_loaded(args.dataset_name, error) from error
    for split in ("train", "validation", "test"):
        file = getattr(args, f"{split}_file")
        if file is not None:
            splits[split] = read_file(file, args.column_names)
    if not splits:
        raise PromptTuningError("there is no data; give train_file, validation_file, test_file or dataset_name.")
    percentage = args.validation_split_percentage
    if percentage is not None and "validation" not in splits:
        if "train" not in splits or not 1 <= percentage <= 99:
            raise PromptTuningError(
                f"validation_split_percentage is {percentage}; give 1 to 99, together with training data."
            )
        halves = splits["train"].train_test_split(test_size=percentage / 100, seed=seed)
        splits["train"], splits["validation"] = halves["train"], halves["test"]
    for split, limit in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if limit is not None and split in splits:
            if limit < 1:
                raise PromptTuningError(f"the limit on {split} samples is {limit}; give 1 or more.")
            splits[split] = splits[split].shuffle(seed=seed).select(range(min(limit, len(splits[split]))))
    return splits


def read_file(file: str | Path, column_names: list[str] | None = None) -> Dataset:
    """The rows of a csv, tsv, json, jsonl or parquet file.

    Values stay as they are written: "NA" and "null" are words, not missing values, and a tsv file's quotation marks
    are text (they are in most tsv files: a stray one would swallow the lines up to the next).

    Args:
        file: its name's ending tells what it is.
        column_names: for a csv or tsv file that has no header line.

    Raises:
        PromptTuningError: it is not there, empty, or not what its name says.
    """
    path = Path(file)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptTuningError(
            f"the data file {str(file)!r} ends in {path.suffix!r}; give one of {', '.join(READERS)}."
        )
    if not path.is_file():
        raise PromptTuningError(f"the data file {str(file)!r} is not there; check the path.")
    if path.stat().st_size == 0:
        raise PromptTuningError(f"the data file {str(file)!r} is empty.")
    if column_names is not None and reader != "csv":
        raise PromptTuningError(f"column_names are for csv and tsv files, and the data file is {str(file)!r}.")
    options: dict[str, Any] = {}
    if reader == "csv":
        options = {"keep_default_na": False, "names": column_names}
        if path.suffix.lower() == ".tsv":
            options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
        if column_names is not None:
            options["header"] = None
    try:
        return load_dataset(reader, data_files={"data": str(path)}, split="data", **options)
    except Exception as error:  # pandas, pyarrow and datasets each raise their own
        if "corresponds to no data" in str(error):
            raise PromptTuningError(f"the data file {str(file)!r} has no rows.") from error
        cause = error.__cause__ or error
        raise PromptTuningError(
            f"the data file {str(file)!r} cannot be read as {path.suffix[1:]}: {first_line(cause)}"
        ) from error


def _not_loaded(dataset_name: str, error: Exception) -> PromptTuningError:
    mend = "Check the name, its configuration and your access to it."
    if "script" in str(error).lower():
        mend = "It is a script, which datasets no longer runs: give dataset_revision refs/convert/parquet."
    return PromptTuningError(f"the data set {dataset_name!r} cannot be loaded: {first_line(error)} {mend}")
