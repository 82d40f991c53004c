"""Load the rows of files and Hub datasets, by split."""

import logging
import math
import re
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, load_dataset
from transformers import TrainingArguments

from ..data.chat_tokenization import RowTemplate
from ..data.class_names import MULTI, SINGLE, inner, names_of
from ..data.files import ORIGIN, read_file
from ..data.head_template import HeadTemplate
from ..data.labels import UNLABELLED, check_label_column, label_name
from ..errors import PromptTuningError
from ..hub.errors import words
from .data_arguments import DataArguments
from .pictures import pictures_of_file, pictures_of_split

logger = logging.getLogger(__name__)


def split_names(
    dataset_name: str | None, config_name: str | None, revision: str | None, token: str | None = None
) -> list[str]:
    """Return the names of a Hub dataset's splits, or an empty list if no dataset is named.

    Raise PromptTuningError if they cannot be told, or the dataset is a folder whose path would be read as a pattern.
    """
    if dataset_name is None:
        return []
    _check_folder(dataset_name)
    try:
        return datasets.get_dataset_split_names(dataset_name, config_name, revision=revision, token=token)
    except Exception as error:  # datasets raises its own errors and the Hub client's
        raise _not_loaded(dataset_name, error) from error


def load_splits(args: DataArguments, seed: int, token: str | None = None) -> DatasetDict:
    """Load the splits that the arguments name, as "train", "validation" and "test".

    The rows of a file get one more column, `ORIGIN`. Sampling and splitting change row numbers, so messages take the
    row's origin from this column. Samples are drawn at random, by `seed`, because files are often sorted. Raise
    PromptTuningError if there is no data, some could not be loaded, a number of samples or a percentage is out of
    range, or there are two sources of validation rows.
    """
    if args.validation_split_percentage is not None and args.validation_file is not None:
        raise PromptTuningError(
            "validation_split_percentage and validation_file are both given, and each gives the validation rows; "
            "leave one of them out."
        )
    splits = DatasetDict()
    if args.dataset_name is not None:
        _check_folder(args.dataset_name)
        try:
            splits = load_dataset(
                args.dataset_name, args.dataset_config_name, revision=args.dataset_revision, token=token
            )
        except Exception as error:  # see split_names
            raise _not_loaded(args.dataset_name, error) from error
        splits = DatasetDict({name: pictures_of_split(data, args, name) for name, data in splits.items()})
    for split in ("train", "validation", "test"):
        file = getattr(args, f"{split}_file")
        if file is not None:
            data = pictures_of_file(read_file(file, args.column_names, token), args.image_columns, file)
            splits[split] = _with_origin(data, file)
    if not splits:
        raise PromptTuningError("there is no data; give train_file, validation_file, test_file or dataset_name.")
    if args.validation_split_percentage is not None and "validation" not in splits:
        splits = _split(splits, args.validation_split_percentage, seed)
    for split, limit in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if limit is not None and split in splits:
            if limit < 1:
                raise PromptTuningError(f"the limit on {split} samples is {limit}; give 1 or more.")
            splits[split] = splits[split].shuffle(seed=seed).select(range(min(limit, len(splits[split]))))
    return splits


def _check_folder(dataset_name: str) -> None:
    """Raise PromptTuningError if a folder's path has the characters of a pattern, for which load_dataset takes it."""
    path = Path(dataset_name).expanduser().resolve()
    if path.is_dir() and set("*?[") & set(str(path)):
        raise PromptTuningError(
            f"dataset_name is {dataset_name!r}, the folder {str(path)!r}, and the datasets library takes its path for "
            "a pattern; give a folder whose path is without *, ? and [."
        )


def _split(splits: DatasetDict, percentage: int, seed: int) -> DatasetDict:
    """Return the splits with a percentage of the training rows as validation rows."""
    if "train" not in splits or not 1 <= percentage <= 99:
        raise PromptTuningError(f"validation_split_percentage is {percentage}; give 1 to 99, and training data.")
    rows, share = len(splits["train"]), percentage / 100
    if math.ceil(rows * share) >= rows:  # as train_test_split counts them
        there = "is 1 training row" if rows == 1 else f"are {rows} training rows"
        raise PromptTuningError(
            f"validation_split_percentage is {percentage} and there {there}, of which it would leave none; give fewer "
            "percent, more rows, or a validation_file."
        )
    halves = splits["train"].train_test_split(test_size=share, seed=seed)
    return DatasetDict({**splits, "train": halves["train"], "validation": halves["test"]})


def check_rows(args: TrainingArguments, *splits: DatasetDict) -> None:
    """Raise PromptTuningError if none of the data has rows for what the run is to do: train, evaluate or predict."""
    found = {name for data in splits for name in data}
    if args.do_train and "train" not in found:
        raise PromptTuningError(
            "do_train is true, and there are no training rows; give a train_file, or leave do_train out."
        )
    if args.do_eval and "validation" not in found:
        strategy = args.eval_strategy.value
        what = "do_eval is true" if strategy == "no" else f"eval_strategy is {strategy}"
        raise PromptTuningError(
            f"{what}, and there are no validation rows; give a validation_file or validation_split_percentage, or "
            f"leave {what.split()[0]} out."
        )
    if args.do_predict and not found & {"test", "validation"}:
        raise PromptTuningError(
            "do_predict is true, and there are neither test nor validation rows; give a test_file, or leave "
            "do_predict out."
        )


def warn_of_unlearned_labels(template: RowTemplate, splits: DatasetDict) -> None:
    """Warn once of the labels that validation rows have and no training row, as a split may leave them.

    Nothing is said of a template without labels to choose from, or of data that lack its label column.
    """
    chooses = template.is_classification or getattr(template, "problem_type", None) in (SINGLE, MULTI)
    data = [splits[name] for name in ("train", "validation") if name in splits]
    if not chooses or len(data) < 2 or any(template.label_column not in rows.column_names for rows in data):
        return
    learned, asked = (_labels_in(rows, template.label_column) for rows in data)
    unlabelled = set(UNLABELLED) - (template.label_words or {}).keys()
    if new := sorted(asked - learned - unlabelled):
        logger.warning(
            "no training row has the label %s, and validation rows do: the prompt cannot learn it. Give more rows, a "
            "validation_file or another seed.",
            ", ".join(map(repr, new)),
        )


def _labels_in(data: Dataset, column: str) -> set[str]:
    """Return the labels of a column of labels, or of lists of them: a ClassLabel's by their names."""
    names, is_list = names_of(data.features, column), inner(data.features[column]) is not None
    values = {value for row in data[column] for value in row or ()} if is_list else data.unique(column)
    return {label_name(value, names) for value in values}


def load_transfer(args: DataArguments, template: RowTemplate, token: str | None = None) -> dict[str, Dataset]:
    """Return the datasets of `transfer_file` by name, with the columns that the template reads.

    They are checked here, so that a fault does not show up only after training. Raise PromptTuningError if an argument
    is not NAME=FILE or NAME.COLUMN=FIELD, a name is repeated or unknown, a file cannot be read, a column is missing, a
    label has no words, or no row has a label.
    """
    files: dict[str, str] = {}
    for entry in args.transfer_file or ():
        name, _, file = entry.partition("=")
        if not re.fullmatch(r"[\w-]+", name) or not file or name in files:
            raise PromptTuningError(f"transfer_file has {entry!r}; give NAME=FILE, each NAME ([A-Za-z0-9_-]) once.")
        files[name] = file
    renamed: dict[str, dict[str, str]] = {name: {} for name in files}
    for entry in args.transfer_columns or ():
        parts = re.fullmatch(r"([\w-]+)\.(.+)=(.+)", entry)
        if parts is None or parts[1] not in files:
            raise PromptTuningError(
                f"transfer_columns has {entry!r}; give NAME.COLUMN=FIELD, with a NAME of transfer_file "
                f"({', '.join(files) or 'which is not given'})."
            )
        renamed[parts[1]][parts[2]] = parts[3]
    transfer = {}
    for name, file in files.items():
        data = _for_template(read_file(file, None, token), name, renamed[name], template)
        transfer[name] = _with_origin(pictures_of_file(data, args.image_columns, file), file)
    return transfer


def _for_template(data: Dataset, name: str, columns: dict[str, str], template: RowTemplate) -> Dataset:
    for column, field in columns.items():
        if column not in data.column_names:
            raise PromptTuningError(
                f"transfer_columns names {name}.{column}, and the transfer data {name!r} has the columns "
                f"{', '.join(map(repr, data.column_names))}."
            )
        data = data.remove_columns([field] if field in data.column_names else []).rename_column(column, field)
    template.check_columns(data.column_names, f"transfer ({name})", labelled=not template.is_classification)
    label = template.label_column
    if label is not None and not isinstance(template, HeadTemplate):
        if label not in data.column_names:
            raise PromptTuningError(
                f"the label's column {label!r} is no column of the transfer data {name!r}, which has "
                f"{', '.join(map(repr, data.column_names))}."
            )
        check_label_column(data, label)
        reader = template.label_reader(data.features)
        indices = [template.label_index({label: value}, reader) for value in data.unique(label)]
        if all(index is None for index in indices):
            raise PromptTuningError(f"no row of the transfer data {name!r} has a label to compare with.")
    return data


def _with_origin(data: Dataset, file: str) -> Dataset:
    return data.add_column(ORIGIN, [f"row {i} of {Path(file).name}" for i in range(1, len(data) + 1)])


def _not_loaded(dataset_name: str, error: Exception) -> PromptTuningError:
    advice = "Check the name, its configuration and your access to it."
    if "script" in str(error).lower():
        advice = "It is a script, which datasets no longer runs: give dataset_revision refs/convert/parquet."
    return PromptTuningError(f"the data set {dataset_name!r} could not be loaded: {words(error)} {advice}")
