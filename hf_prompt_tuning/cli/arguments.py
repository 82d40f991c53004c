"""Define the command-line arguments: four groups, from a YAML or JSON file, from flags, or from both."""

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..hub.names import hub_id
from ..prompts.config import PromptTuningConfig
from ..training.arguments import PromptTuningArguments
from .splits import split_names


@dataclass
class ModelArguments:
    """Arguments of the frozen backbone."""

    model_name_or_path: str = field(metadata={"help": "The backbone's Hub id or folder."})
    model_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    gguf_file: str | None = field(default=None, metadata={"help": "Load this GGUF file of the backbone."})
    dtype: str = field(
        default="auto", metadata={"help": "auto, float32, bfloat16 or float16; the prompt is float32 all the same."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, …"})
    task_type: str | None = field(
        default=None, metadata={"help": "CAUSAL_LM or SEQ_2_SEQ_LM; read from the backbone's config by default."}
    )
    token: str | None = field(default=None, metadata={"help": "A Hub token, for private repositories."})


@dataclass
class DataArguments:
    """Arguments of the data and the template."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set's Hub id."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "Its revision; refs/convert/parquet for data sets that are scripts."},
    )
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "As train_file."})
    test_file: str | None = field(default=None, metadata={"help": "As train_file; for --do_predict."})
    transfer_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME=FILE …: evaluate the prompt on this other data, too, without training on it.",
            "action": "extend",
        },
    )
    transfer_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "NAME.COLUMN=FIELD …: what the template calls FIELD is COLUMN in that transfer_file.",
            "action": "extend",
        },
    )
    column_names: list[str] | None = field(
        default=None, metadata={"help": "The columns of a csv or tsv file that has no header line."}
    )
    validation_split_percentage: int | None = field(
        default=None, metadata={"help": "Take this share of the training rows for validation, if there is none."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many rows, drawn by the seed."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many, drawn by the seed."})
    source_template: str | None = field(
        default=None, metadata={"help": 'The source, e.g. "Tweet text : {Tweet text} Label :".'}
    )
    target_template: str | None = field(default=None, metadata={"help": 'Free text\'s target, e.g. "{summary}".'})
    label_column: str | None = field(default=None, metadata={"help": "Classification: the label's column."})
    label_words: str | None = field(
        default=None, metadata={"help": 'Each label\'s words, e.g. {"0": "negative", "1": "positive"}.'}
    )
    max_source_length: int | None = field(
        default=512, metadata={"help": "Cut the source (its longest field) to so many tokens."}
    )
    max_target_length: int | None = field(
        default=None, metadata={"help": "Refuse longer targets, and generate at most so many tokens."}
    )

    def described(self) -> dict[str, str]:
        """Return the card's description of the data: its Hub id, or the names of the files without their paths."""
        known = {}
        if hub_id(self.dataset_name) is not None:  # a local path is private
            known = {
                "dataset": self.dataset_name,
                "dataset_configuration": self.dataset_config_name,
                "dataset_revision": self.dataset_revision,
            }
        files = {name: getattr(self, name) for name in ("train_file", "validation_file")}
        known |= {name: Path(file).name for name, file in files.items() if file}
        return {name: value for name, value in known.items() if value}

    def template(self) -> PromptTemplate:
        """Return the template that these arguments describe.

        Raises:
            PromptTuningError: the source template is missing, or the label words are not a JSON object.
        """
        if self.source_template is None:
            raise PromptTuningError('source_template is not given; e.g. --source_template "Text : {text} Label :".')
        words = None
        if self.label_words is not None:
            try:
                words = json.loads(self.label_words)
                if not isinstance(words, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise PromptTuningError(
                    f"label_words is {self.label_words!r}, not a JSON object ({error}); "
                    'write e.g. {"0": "negative", "1": "positive"}.'
                ) from error
        return PromptTemplate(
            source=self.source_template,
            target=self.target_template,
            label_column=self.label_column,
            label_words=words,
            max_source_length=self.max_source_length,
            max_target_length=self.max_target_length,
        )


@dataclass
class PromptArguments:
    """Arguments of the soft prompt, or of several prompts."""

    num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "P, how many vectors. Default 20, or as many as init_prompt has."}
    )
    prompt_tuning_init: str | None = field(
        default=None,
        metadata={
            "help": "TEXT, SAMPLE_VOCAB, FIRST_VOCAB, CLASS_LABELS, RANDOM or PROMPT. Default TEXT where a text is "
            "given, PROMPT where a prompt is, else SAMPLE_VOCAB."
        },
    )
    prompt_tuning_init_text: str | None = field(default=None, metadata={"help": "The words that TEXT starts from."})
    random_range: float = field(default=0.5, metadata={"help": "RANDOM is uniform in ± this."})
    vocab_sample_size: int = field(default=5000, metadata={"help": "SAMPLE_VOCAB draws from so many common tokens."})
    init_prompt: str | None = field(
        default=None,
        metadata={"help": "PROMPT: a prompt's folder or file (as import_prompt reads them), or its Hub id."},
    )
    init_prompt_revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of that prompt's repository."}
    )
    init_prompt_subfolder: str | None = field(
        default=None, metadata={"help": "Its folder in that repository or folder, where it holds several."}
    )
    backbone_dropout: bool = field(default=False, metadata={"help": "Keep the backbone's dropout on in training."})
    base_model_id: str | None = field(
        default=None, metadata={"help": "The backbone's Hub id, for the card, where it was loaded from a folder."}
    )

    num_prompts: int | None = field(
        default=None, metadata={"help": "Train so many prompts in one run, which vote; default as many as a list has."}
    )
    prompt_seeds: list[int] | None = field(
        default=None, metadata={"help": "Each prompt's seed of initialisation; default seed, seed+1, …"}
    )
    learning_rates: list[float] | None = field(default=None, metadata={"help": "Each prompt's learning_rate."})
    prompt_lengths: list[int] | None = field(default=None, metadata={"help": "Each prompt's num_virtual_tokens."})
    prompt_tuning_inits: list[str] | None = field(default=None, metadata={"help": "Each prompt's prompt_tuning_init."})

    def config(self, task_type: str | None, token: str | None = None) -> PromptTuningConfig:
        """Return the prompt's config; of several prompts, the config that they share.

        Args:
            task_type: CAUSAL_LM or SEQ_2_SEQ_LM; None leaves it open.
            token: a Hub token for `init_prompt`.
        """
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in OF_SEVERAL}
        values |= {"base_model_name_or_path": values.pop("base_model_id"), "init_prompt_token": token}
        return PromptTuningConfig(task_type=task_type, **values)


OF_SEVERAL = ("num_prompts", "prompt_seeds", "learning_rates", "prompt_lengths", "prompt_tuning_inits")
"""The arguments of an ensemble; see `ensemble_members`."""

Arguments = tuple[ModelArguments, DataArguments, PromptArguments, PromptTuningArguments]
GROUPS = (ModelArguments, DataArguments, PromptArguments, PromptTuningArguments)


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse `[CONFIG.yaml|CONFIG.json] [--flag value …]`.

    A flag overrides the file. Values of both are converted to the field's type. Some defaults depend on the data: with
    training data, train. With validation data, evaluate and save each epoch, and evaluate once before training. A
    signal saves a checkpoint before the run ends.

    Args:
        argv: default `sys.argv[1:]`.

    Raises:
        PromptTuningError: the file is missing or holds no mapping, a key is unknown (the message suggests the nearest
            one), or a value is invalid for its field.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    from_file = read_config(Path(argv.pop(0))) if argv and not argv[0].startswith("-") else {}
    return parse_values(from_file, argv)


def parse_values(from_file: dict[str, Any], argv: Sequence[str]) -> Arguments:
    """Parse the values of a config file and flags, as `parse_arguments` does."""
    parser = _Parser(GROUPS, allow_abbrev=False, prog="run_prompt_tuning.py")
    known = {f.name for group in GROUPS for f in dataclasses.fields(group)}
    for key in from_file:
        if key not in known:
            raise PromptTuningError(f"the key {key!r} is not known; did you mean {nearest(key, known)!r}?")
    by_flag = {a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--")}
    # A flag that may be repeated adds to its earlier values, but replaces those of the file.
    flags = [flag for key, value in from_file.items() if key not in by_flag for flag in _as_flags(key, value)]
    flags += list(argv)
    said = set(from_file) | by_flag
    flags += _unsaid(said, flags, parser)
    *parsed, rest = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True, look_for_args_file=False)
    if rest:
        near = nearest(rest[0].lstrip("-").split("=")[0], known)
        raise PromptTuningError(f"the argument {rest[0]!r} is not known; did you mean {near!r}?")
    model, data, prompt, training = parsed
    resume = training.resume_from_checkpoint
    if isinstance(resume, str) and resume.lower() in ("true", "false"):
        training.resume_from_checkpoint = resume.lower() == "true"
    return model, data, prompt, training


class _Parser(HfArgumentParser):
    """Parser that raises PromptTuningError. argparse would print its usage of four screens and exit."""

    def error(self, message: str) -> None:
        raise PromptTuningError(f"{message}. See --help.")


def read_config(file: Path) -> dict[str, Any]:
    """Return the values of a YAML or JSON file. Raise PromptTuningError if it cannot be read or holds no mapping."""
    if file.suffix not in (".yaml", ".yml", ".json"):
        raise PromptTuningError(
            f"the first argument {str(file)!r} is neither a flag nor a .yaml or .json file; give one."
        )
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptTuningError(
            f"the config {str(file)!r} cannot be read: {error.strerror}. Check the path."
        ) from error
    try:
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())  # YAML's errors have several lines
        raise PromptTuningError(
            f"the config {str(file)!r} is not {file.suffix[1:]}: {what}. Mend it there."
        ) from error
    if not isinstance(values, dict):
        raise PromptTuningError(
            f"the config {str(file)!r} is no mapping of argument names to values; write `name: value`."
        )
    return {str(key): value for key, value in values.items()}


def _as_flags(key: str, value: Any) -> list[str]:
    """Return a config file's entry as a flag, so that one parser reads both."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)] if value else []
    return [f"--{key}={value}"]


def _unsaid(said: set[str], flags: list[str], parser: _Parser) -> list[str]:
    """Return flags for the defaults that depend on the data, unless the user set them."""
    given, _ = parser.parse_known_args(flags)
    splits = split_names(given.dataset_name, given.dataset_config_name, given.dataset_revision, given.token)
    has_train = given.train_file is not None or "train" in splits
    has_validation = bool(given.validation_file or given.validation_split_percentage or "validation" in splits)
    defaults = {"save_on_signal": "true"} | ({"do_train": "true"} if has_train else {})
    if has_validation:
        defaults["do_eval"] = "true"
        if given.do_train or ("do_train" not in said and has_train):
            defaults |= {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_on_start": "true"}
    return [f"--{name}={value}" for name, value in defaults.items() if name not in said]


def nearest(key: str, known: set[str]) -> str:
    """Return the known name that is most similar to the key."""
    return difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.0)[0]
