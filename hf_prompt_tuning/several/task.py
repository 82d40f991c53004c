"""One of the prompts that a run trains: its data, its template, how it starts, and how fast it learns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PromptTuningConfig as PeftPromptTuningConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.template import PromptTemplate
from ..errors import PromptTuningError
from ..models.create import add_prompt, with_prompt
from ..models.soft_prompts import SoftPrompts
from ..prompts.names import check_name


@dataclass
class PromptTask:
    """A prompt to train, with everything that may differ between the prompts of one run.

    Args:
        name: of its folder, its metrics (`eval_NAME_accuracy`) and its adapter.
        config: how it starts, and its length.
        train_dataset: raw columns where there is a template, else rows of `input_ids` and `labels`.
        eval_dataset: the same.
        template: how a row becomes text.
        learning_rate: the prompt's peak; default the run's, as everything below.
        num_train_epochs: passes over its data, whatever the run's `max_steps`.
        max_steps: update steps, whatever the epochs.
        per_device_train_batch_size: rows of a micro-batch.
        seed: of its initialisation.

    Raises:
        PromptTuningError: the name cannot be a prompt's, or a number is not above zero.
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

    def __post_init__(self):
        check_name(self.name)
        for key in ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise PromptTuningError(f"{key} of {self.name!r} is {value}; give a number above 0, or leave it out.")


def check_names(tasks: Sequence[PromptTask]) -> None:
    """Raises PromptTuningError where there are no tasks, or two of one name."""
    names = [task.name for task in tasks]
    if not names:
        raise PromptTuningError("there are no tasks; give at least one PromptTask.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise PromptTuningError(f"two tasks are called {twice[0]!r}; give each a name of its own.")
    # File systems of some machines take the two for one folder.
    if len({name.lower() for name in names}) < len(names):
        raise PromptTuningError(f"the names {names} differ in capitals alone; they name folders, give others.")


def model_with_prompts(
    backbone: PreTrainedModel, tasks: Sequence[PromptTask], tokenizer: PreTrainedTokenizerBase | None, seed: int
) -> SoftPrompts:
    """One backbone with a new prompt for each task, each started from its own seed; it is frozen by a trainer.

    A prompt starts as it would alone, behind `set_seed(seed)`; the global generator is left as it was.

    Args:
        backbone: a causal or encoder-decoder model.
        tasks: their names become the adapters'.
        tokenizer: for the initialisations that need one.
        seed: of the tasks that have none of their own.

    Raises:
        PromptTuningError: two tasks of one name, or a prompt that cannot be initialised as asked.
    """
    check_names(tasks)
    model = None
    for task in tasks:
        with torch.random.fork_rng():
            torch.manual_seed(seed if task.seed is None else task.seed)
            config = replace(task.config)  # what is filled in below belongs to one prompt
            if model is None:
                model = with_prompt(backbone, config, tokenizer, task.template, task.name, frozen=False)
            else:
                add_prompt(model, task.name, config, tokenizer, task.template)
    return model
