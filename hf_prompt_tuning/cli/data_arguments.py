"""Define the command-line arguments of the data and the template."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.hf_argparser import HfArg

from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..hub.files import hub_id


@dataclass
class DataArguments:
    """Arguments of the data and the template."""

    dataset_name: str | None = HfArg(default=None, help="Hub id of a data set.")
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the data set.")
    dataset_revision: str | None = HfArg(
        default=None, help="Revision of the data set. For one that is a script: refs/convert/parquet."
    )
    train_file: str | None = HfArg(default=None, help="Training rows: a csv, tsv, json, jsonl or parquet file.")
    validation_file: str | None = HfArg(default=None, help="Validation rows.")
    test_file: str | None = HfArg(default=None, help="Test rows, for --do_predict.")
    transfer_file: list[str] | None = HfArg(
        default=None,
        help="NAME=FILE …: also evaluate on these files, without training on them.",
        metadata={"action": "extend"},
    )
    transfer_columns: list[str] | None = HfArg(
        default=None,
        help="NAME.COLUMN=FIELD …: read the template's FIELD from COLUMN of the transfer_file NAME.",
        metadata={"action": "extend"},
    )
    column_names: list[str] | None = HfArg(default=None, help="Columns of csv and tsv files without a header line.")
    validation_split_percentage: int | None = HfArg(
        default=None, help="Percentage of the training rows to use for validation, if there are no validation rows."
    )
    max_train_samples: int | None = HfArg(default=None, help="Number of training rows to sample, by --seed.")
    max_eval_samples: int | None = HfArg(default=None, help="Number of validation rows to sample, by --seed.")
    source_template: str | None = HfArg(
        default=None, help='Source text, e.g. "Tweet text : {Tweet text} Label :". Default: that of --init_prompt.'
    )
    target_template: str | None = HfArg(default=None, help='Target of free text, e.g. "{summary}".')
    label_column: str | None = HfArg(default=None, help="Column of the labels, for classification.")
    label_words: str | None = HfArg(
        default=None, help='Words of each label as JSON, e.g. {"0": "negative", "1": "positive"}.'
    )
    max_source_length: int | None = HfArg(default=None, help="Cut longer sources to so many tokens. Default: 512.")
    max_target_length: int | None = HfArg(
        default=None, help="Refuse longer targets, and generate at most so many tokens."
    )

    def described(self) -> dict[str, str]:
        """Return the card's description of the data: its Hub id, or the names of the files without their paths."""
        names = {}
        if hub_id(self.dataset_name) is not None:  # a local path is private
            names = {
                "dataset": self.dataset_name,
                "dataset_configuration": self.dataset_config_name,
                "dataset_revision": self.dataset_revision,
            }
        files = {name: getattr(self, name) for name in ("train_file", "validation_file")}
        names |= {name: Path(file).name for name, file in files.items() if file}
        return {name: value for name, value in names.items() if value}

    def template(self, saved: PromptTemplate | None = None) -> PromptTemplate:
        """Return the template that these arguments describe. They replace the values of a saved one, if given.

        Raise PromptTuningError if the source template is missing, or the label words are not a JSON object.
        """
        values = {
            "source": self.source_template,
            "target": self.target_template,
            "label_column": self.label_column,
            "label_words": self._label_words(),
            "max_source_length": self.max_source_length,
            "max_target_length": self.max_target_length,
        }
        values = {name: value for name, value in values.items() if value is not None}
        if saved is not None:
            return replace(saved, **values | ({"label_names": None} if "label_words" in values else {}))
        if self.source_template is None:
            raise PromptTuningError('source_template is not given; e.g. --source_template "Text : {text} Label :".')
        return PromptTemplate(**{"max_source_length": 512} | values)

    def _label_words(self) -> dict[str, str] | None:
        if self.label_words is None:
            return None
        try:
            words = json.loads(self.label_words)
            if not isinstance(words, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise PromptTuningError(
                f"label_words is {self.label_words!r}, not a JSON object ({error}); "
                'write e.g. {"0": "negative", "1": "positive"}.'
            ) from error
        return words
