"""Define a task: a prompt to train, with its data, template, config and learning rate."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PromptTuningConfig as PeftPromptTuningConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.examples import StartRows
from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..models.create import add_prompt, drawn_examples, get_prompt_tuning_model
from ..models.model_classes import check_writes_text
from ..models.soft_prompts import SoftPrompts
from ..prompts.config import PromptTuningConfig, check_name
from ..training.arguments import PromptTuningArguments

DRAWS = 10
"""How often training rows are drawn until a prompt does not start as one of another seed."""
OF_TRAINING = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")
"""The training arguments that a task may set for itself."""


@dataclass
class PromptTask:
    """A prompt to train, with everything that may differ between the prompts of one run.

    The default of every argument from `learning_rate` on is the run's value.

    Args:
        name: name of the prompt's folder and adapter, used in its metrics (`eval_NAME_accuracy`).
        config: the prompt's initialisation and length.
        train_dataset: raw columns if there is a template, otherwise rows of `input_ids` and `labels`. No stream.
        eval_dataset: the same as `train_dataset`, or a stream. One data set.
        template: turns a row into text.
        learning_rate: the prompt's peak learning rate.
        num_train_epochs: passes over the task's data; overrides the run's `max_steps`.
        max_steps: update steps; overrides the epochs.
        per_device_train_batch_size: rows in a micro-batch.
        seed: seed of the initialisation.
        data_seed: seed of the order of the rows.

    Raises:
        PromptTuningError: the name is invalid, or a number is not above zero.
    """

    name: str
    config: PeftPromptTuningConfig
    train_dataset: Any = None
    eval_dataset: Any = None
    template: PromptTemplate | None = None
    learning_rate: float | None = None
    num_train_epochs: float | None = None
    max_steps: int | None = None
    per_device_train_batch_size: int | None = None
    seed: int | None = None
    data_seed: int | None = None

    def __post_init__(self):
        check_name(self.name)
        for key in OF_TRAINING:
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise PromptTuningError(f"{key} of {self.name!r} is {value}; give a number above 0, or leave it out.")

    def arguments(self, args: PromptTuningArguments) -> PromptTuningArguments:
        """Return the arguments with which this task would train alone: the run's, overridden by the task's own."""
        own = copy.copy(args)
        if self.num_train_epochs is not None:
            own.max_steps = -1
        for key in (*OF_TRAINING, "data_seed"):
            if getattr(self, key) is not None:
                setattr(own, key, getattr(self, key))
        return own


def check_names(tasks: Sequence[PromptTask]) -> None:
    """Raise PromptTuningError if there are no tasks, or two tasks have the same name."""
    names = [task.name for task in tasks]
    if not names:
        raise PromptTuningError("there are no tasks; give at least one PromptTask.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise PromptTuningError(f"two tasks are called {twice[0]!r}; give each a name of its own.")
    # Some file systems ignore capitals in folder names.
    if len({name.lower() for name in names}) < len(names):
        raise PromptTuningError(f"the names {names} differ in capitals alone; they name folders, give others.")


def model_with_prompts(
    backbone: PreTrainedModel, tasks: Sequence[PromptTask], tokenizer: PreTrainedTokenizerBase | None, seed: int
) -> SoftPrompts:
    """Add a new prompt for each task to a backbone; return the model. A trainer freezes the backbone later.

    Each prompt is initialised from its task's seed, or else `seed`, as it would be alone after `set_seed(seed)`; but
    training rows are drawn again while another seed drew the same. The global random generator is not changed.

    Raise PromptTuningError if two tasks have the same name, a prompt could not be initialised, or the backbone has a
    classification head.
    """
    check_names(tasks)
    check_writes_text(backbone)
    model = None
    drawn: dict[tuple, Any] = {}
    for task in tasks:
        with torch.random.fork_rng():
            torch.manual_seed(seed if task.seed is None else task.seed)
            # A copy, because the calls below fill in values of this prompt.
            config = PromptTuningConfig.from_peft(replace(task.config))
            config.example_token_ids = _drawn(task, config, tokenizer, drawn)
            of_task = {"adapter_name": task.name, "template": task.template}
            if model is None:
                model = get_prompt_tuning_model(backbone, config, tokenizer, **of_task, frozen=False)
            else:
                add_prompt(model, config=config, tokenizer=tokenizer, **of_task)
    return model


def _drawn(
    task: PromptTask, config: PromptTuningConfig, tokenizer: PreTrainedTokenizerBase | None, drawn: dict[tuple, Any]
) -> tuple[int, ...] | None:
    """Return the tokens of training rows that a task's prompt starts from; None for other starts.

    `drawn` holds those of the tasks before: one seed has one draw (the prompts of a field have few starts), and
    another seed another one, if the rows allow.
    """
    values = config.prompt_tuning_init, config.num_virtual_tokens, config.prompt_tuning_init_text
    start = (task.seed, *values, *map(id, (tokenizer, task.template, task.train_dataset)))
    if start not in drawn:
        rows = task.train_dataset
        if rows is not None and not isinstance(rows, StartRows):
            rows = StartRows(rows, name=f"{task.name} training")
        for _ in range(DRAWS):
            drawn[start] = drawn_examples(config, tokenizer, task.template, rows)
            others = [ids for other, ids in drawn.items() if other[1:] == start[1:] and other != start]
            if drawn[start] is None or drawn[start] not in others:
                break
    return drawn[start]
