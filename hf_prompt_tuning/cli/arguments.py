"""Define the command-line arguments: five groups, from a YAML or JSON file, from flags, or from both."""

import dataclasses
import difflib
import json
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers.hf_argparser import HfArg, HfArgumentParser

from ..data.chat_tokenization import RowTemplate
from ..data.head_template import HeadTemplate
from ..errors import PromptTuningError
from ..prompts.config import AUTO, PromptTuningConfig
from ..prompts.files import read_prompt
from ..prompts.info import INFO_FILE
from ..training.arguments import PromptTuningArguments
from ..training.recipes import AUTO as AUTO_RECIPE
from ..training.recipes import RECIPES, Recipe, check_recipe, missing_values
from ..training.teacher import started_by
from .data_arguments import DataArguments
from .head_arguments import TRAINED_HEADS, WEIGHTS, check_for_one_prompt, check_no_head, head_template
from .splits import split_names
from .teacher_arguments import OF_CONTEXT, OF_TEACHER, TeacherArguments


@dataclass
class ModelArguments:
    """Arguments of the frozen backbone."""

    model_name_or_path: str | None = HfArg(default=None, aliases=["--model"], help="Hub id or folder of the backbone.")
    model_revision: str | None = HfArg(default=None, help="Branch, tag or commit of the backbone.")
    gguf_file: str | None = HfArg(default=None, help="GGUF file to load the backbone from.")
    dtype: str = HfArg(
        default="auto", help="dtype of the backbone: auto, float32, bfloat16 or float16. The prompt is always float32."
    )
    attn_implementation: str | None = HfArg(default=None, help="Attention: sdpa, eager, flash_attention_2, …")
    task_type: str | None = HfArg(
        default=None,
        help="CAUSAL_LM or SEQ_2_SEQ_LM, default read from the backbone's config; SEQ_CLS or TOKEN_CLS for a "
        "classification head, QUESTION_ANS for one that finds answers.",
    )
    token: str | None = HfArg(default=None, help="Hub token for private repositories.")


@dataclass
class PromptArguments:
    """Arguments of the soft prompt, or of several prompts."""

    num_virtual_tokens: int | None = HfArg(
        default=None,
        aliases=["-P"],
        help="P, the number of vectors. Default: 20, of EXAMPLES 160, or the length of --init_prompt.",
    )
    prompt_tuning_init: str | None = HfArg(
        default=None,
        help="Initialisation: TEXT, SAMPLE_VOCAB, FIRST_VOCAB, CLASS_LABELS, RANDOM, EXAMPLES, PROMPT or TEACHER. "
        "Default: TEXT if a text is given, PROMPT if a prompt is given, TEACHER if a text teaches, else SAMPLE_VOCAB.",
    )
    prompt_tuning_init_text: str | None = HfArg(
        default=None, help="Words to start from, for TEXT; of EXAMPLES, what stands before the rows."
    )
    random_range: float = HfArg(default=0.5, help="RANDOM is uniform in ± this number.")
    vocab_sample_size: int = HfArg(default=5000, help="SAMPLE_VOCAB draws from so many most common tokens.")
    init_prompt: str | None = HfArg(default=None, help="Prompt to start from: a folder, a file or a Hub id.")
    init_prompt_revision: str | None = HfArg(default=None, help="Branch, tag or commit of --init_prompt.")
    init_prompt_subfolder: str | None = HfArg(default=None, help="Folder of --init_prompt within its repository.")
    prompt_position: str | None = HfArg(
        default=None,
        help="Where the prompt stands: start (in front of everything), after_bos, system (in a chat's system turn, "
        "before its text), or auto: after_bos for a decoder whose tokenizer writes BOS, else start. Default: auto, or "
        "the place of --init_prompt.",
    )
    sink_token: str | None = HfArg(
        default=None, help="For after_bos, the token to stand behind, if the tokenizer writes none."
    )
    backbone_dropout: bool = HfArg(default=False, help="Keep the backbone's dropout on in training.")
    base_model_id: str | None = HfArg(
        default=None, help="Hub id of the backbone for the card, if it was loaded from a folder."
    )
    num_prompts: int | None = HfArg(
        default=None, help="Number of prompts to train as an ensemble. Default: the length of the lists below."
    )
    prompt_seeds: list[int] | None = HfArg(default=None, help="Seed of each prompt. Default: seed, seed + 1, …")
    data_seeds: list[int] | None = HfArg(
        default=None,
        help="Seed of the order in which each prompt sees the rows. Default: data_seed, else seed, for all.",
    )
    learning_rates: list[float] | None = HfArg(default=None, help="Learning rate of each prompt.")
    prompt_lengths: list[int] | None = HfArg(default=None, help="num_virtual_tokens of each prompt.")
    prompt_tuning_inits: list[str] | None = HfArg(default=None, help="prompt_tuning_init of each prompt.")

    def config(self, task_type: str | None, token: str | None = None) -> PromptTuningConfig:
        """Return the prompt's config; of several prompts, the config that they share. `token` is for `init_prompt`."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in OF_SEVERAL}
        values |= {"base_model_name_or_path": values.pop("base_model_id"), "init_prompt_token": token}
        if values["prompt_position"] is None and values["init_prompt"] is None:
            values["prompt_position"] = AUTO
        return PromptTuningConfig(task_type=task_type, **values)

    def saved_template(self, token: str | None = None) -> RowTemplate | None:
        """Load the template of `init_prompt`; return None if it has none, as files of other codebases."""
        subfolder = self.init_prompt_subfolder or ""
        folder = Path(self.init_prompt, subfolder)
        if folder.exists() and not (folder / INFO_FILE).is_file():
            return None
        hub = {"revision": self.init_prompt_revision, "subfolder": subfolder, "token": token}
        info = read_prompt(self.init_prompt, **hub).info
        return None if info is None else info.template


OF_LISTS = ("prompt_seeds", "data_seeds", "learning_rates", "prompt_lengths", "prompt_tuning_inits")
"""The arguments with a value for each prompt of an ensemble."""

OF_SEVERAL = ("num_prompts", *OF_LISTS)
"""The arguments of an ensemble; see `ensemble_members`."""


class Arguments(NamedTuple):
    """The arguments of a run, in five groups."""

    model: ModelArguments
    data: DataArguments
    teacher: TeacherArguments
    prompt: PromptArguments
    training: PromptTuningArguments

    def template(self) -> RowTemplate | HeadTemplate:
        """Return the template that the arguments describe. Without `source_template`, change that of `init_prompt`.

        Raise PromptTuningError if there is no source template, or the label words are not a JSON object.
        """
        saved, task_type = None, self.model.task_type
        if (self.data.source_template or self.data.words_column) is None and self.prompt.init_prompt is not None:
            saved = self.prompt.saved_template(self.model.token)
        if task_type in TRAINED_HEADS:
            return head_template(self.data, task_type, saved, self.training.do_train)
        check_no_head(self.data)
        if isinstance(saved, HeadTemplate):
            raise PromptTuningError(
                f"init_prompt is a prompt with a head; give task_type, one of {', '.join(TRAINED_HEADS)}, or a "
                "source_template."
            )
        return self.data.template(saved)

    def prompt_config(self) -> PromptTuningConfig:
        """Return the prompt's config, with the teacher's text if the prompt starts from it."""
        return started_by(
            self.teacher.given(self.model.token), self.prompt.config(self.model.task_type, self.model.token)
        )


GROUPS = (ModelArguments, DataArguments, TeacherArguments, PromptArguments, PromptTuningArguments)
NAMES = {field.name for group in GROUPS for field in dataclasses.fields(group) if field.init}


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Parse `[CONFIG.yaml|CONFIG.json] [--flag value …]`, by default of `sys.argv`.

    A flag overrides the file. Values of both are converted to the field's type. Some defaults depend on the data: with
    training data, train. With validation data, evaluate and save each epoch, and evaluate once before training. A
    signal saves a checkpoint before the run ends. Raise PromptTuningError if the file is missing or holds no mapping,
    a key is unknown (the message suggests the nearest one), or a value is missing or invalid for its field.
    """
    return make_arguments(*read_command_line(argv))


def read_command_line(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the config file, if the first word names one, and the flags."""
    argv = list(sys.argv[1:] if argv is None else argv)
    has_file = bool(argv) and not argv[0].startswith("-")
    return (read_config(Path(argv[0])), argv[1:]) if has_file else ({}, argv)


def given_names(argv: Sequence[str] | None = None) -> set[str]:
    """Return the names of the arguments that a config file or flags give, by default of `sys.argv`."""
    from_file, flags = read_command_line(argv)
    return {*from_file, *_parser().values(flags)}


def _parser() -> "_Parser":
    return _Parser(GROUPS, allow_abbrev=False, prog="hf-prompt-tuning train", formatter_class=_Help)


def make_arguments(from_file: dict[str, Any], flags: Sequence[str]) -> Arguments:
    """Return the arguments of a config file's values and of flags, as `parse_arguments` does."""
    for key in from_file:
        if key not in NAMES:
            raise PromptTuningError(f"the key {key!r} is not known; did you mean {nearest(key)!r}?")
    parser = _parser()
    values = parser.values(_as_flags(from_file)) | parser.values(flags)
    if "model_name_or_path" not in values:
        raise PromptTuningError("model_name_or_path is not given; name the backbone's Hub id or folder. See --help.")
    recipe = _recipe(values)
    if values.get("recipe") == AUTO_RECIPE and (several := [name for name in OF_SEVERAL if name in values]):
        raise PromptTuningError(
            f"{several[0]} is given, and recipe auto makes the prompts of its field; leave it out. recipe_lengths are "
            "the lengths to try."
        )
    of_others = (*OF_SEVERAL, *OF_TEACHER, *(["recipe"] if values.get("recipe") == AUTO_RECIPE else []))
    check_for_one_prompt(values.get("task_type"), values, of_others)
    resume = values.get("resume_from_checkpoint", "")
    values["resume_from_checkpoint"] = {"true": True, "false": False, "": None}.get(resume.lower(), resume)
    if values.keys() & set(OF_TEACHER):
        if several := values.keys() & set(OF_SEVERAL):
            raise PromptTuningError(f"{sorted(several)[0]} is given, and a teacher is for one prompt; leave it out.")
        values = missing_values(_defaults_of_teaching(values), recipe.training.keys() | recipe.prompt.keys()) | values
    defaults = _defaults(values) | missing_values(recipe.prompt, values)
    return Arguments(*parser.parse_dict(defaults | values))


def _recipe(values: dict[str, Any]) -> Recipe:
    """Return the recipe that is named, which has no values if there is none, or it finds them itself."""
    name = values.get("recipe", "default")
    check_recipe(name)
    return RECIPES.get(name, RECIPES["default"])


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults that depend on the data. The splits of a Hub data set are requested from the Hub."""
    hub = (values.get(name) for name in ("dataset_name", "dataset_config_name", "dataset_revision", "token"))
    names = {f"{split}_file" for split in split_names(*hub)} | set(values)
    defaults: dict[str, Any] = {"save_on_signal": True}
    if "train_file" in names:
        defaults["do_train"] = True
    if names & {"validation_file", "validation_split_percentage"}:
        defaults["do_eval"] = True
        if (defaults | values).get("do_train"):
            defaults |= {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_on_start": True}
    return defaults


def _defaults_of_teaching(values: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of a run with a teacher: rows are chats, a fifth is held out, and the text is the start."""
    given, defaults = values.keys(), {"learning_rate": 1e-2}
    if not given & {"source_template", "messages_column", "init_prompt"}:
        defaults["messages_column"] = "messages"
    if "train_file" in given and not given & {"dataset_name", "validation_file"}:
        defaults["validation_split_percentage"] = 20
    chats = "messages_column" in defaults | values or values.get("chat")
    if chats and not given & {"prompt_position", "init_prompt"}:
        defaults["prompt_position"] = "system"
    if given & set(OF_CONTEXT) and not given & {"prompt_tuning_init", "prompt_tuning_init_text", "init_prompt"}:
        defaults["prompt_tuning_init"] = "TEACHER"
    return defaults


class _Help(ArgumentDefaultsHelpFormatter):
    """Help that shows a default only if there is one."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """Parser that raises PromptTuningError. argparse would print its usage of four screens and exit."""

    def values(self, flags: Sequence[str]) -> dict[str, Any]:
        """Return the values that flags set, converted to the types of their fields, without any default."""
        values, unknown = self.parse_known_args(flags, Namespace(**dict.fromkeys(NAMES)))
        if unknown:
            near = nearest(unknown[0].lstrip("-").split("=")[0])
            raise PromptTuningError(f"the argument {unknown[0]!r} is not known; did you mean {near!r}?")
        return {name: value for name, value in vars(values).items() if value is not None}

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
            f"the config {str(file)!r} cannot be read: {error.strerror}. Check its path"
        ) from error
    try:
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())  # YAML's errors have several lines
        raise PromptTuningError(
            f"the config {str(file)!r} is not {file.suffix[1:]}: {what}. Correct it there."
        ) from error
    if not isinstance(values, dict):
        raise PromptTuningError(f"the config {str(file)!r} is no mapping of arguments to values; write `name: value`.")
    return {str(key): value for key, value in values.items()}


def _as_flags(values: dict[str, Any]) -> list[str]:
    """Return a config file's values as flags, so that one parser converts both."""
    flags = []
    for name, value in values.items():
        if isinstance(value, list) and name in WEIGHTS:
            flags.append(f"--{name}={json.dumps(value)}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def nearest(key: str) -> str:
    """Return the argument's name that is most similar to the key."""
    return difflib.get_close_matches(key.replace("-", "_"), NAMES, n=1, cutoff=0.0)[0]
