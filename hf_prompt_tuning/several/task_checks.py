"""Check the arguments of a run with several prompts before anything changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.encoding import with_label_words
from ..data.template import PromptTemplate
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..models.soft_prompts import SoftPrompts
from .task import PromptTask

OF_TASKS = ("train_dataset", "eval_dataset", "template", "prompt_config", "model_init")


def check_of_tasks(options: Mapping[str, Any]) -> None:
    """Raise PromptTuningError for an option that must be set on each task instead."""
    if given := [name for name in OF_TASKS if options.get(name) is not None]:
        raise PromptTuningError(f"{given[0]} is given beside tasks, each of which has its own; give it there.")


def check_prompts(model: Any, tasks: Sequence[PromptTask]) -> None:
    """Raise PromptTuningError if the model's prompts do not match the tasks in name and length."""
    if set(model.peft_config) != {task.name for task in tasks}:
        raise PromptTuningError(
            f"the model has the prompts {sorted(model.peft_config)}, and the tasks are "
            f"{sorted(task.name for task in tasks)}; give a plain backbone, or a prompt for each task."
        )
    for task in tasks:
        asked, length = task.config.num_virtual_tokens, model.peft_config[task.name].num_virtual_tokens
        if asked not in (None, length):
            raise PromptTuningError(
                f"the prompt {task.name!r} of the model has {length} virtual tokens, and the task's config asks for "
                f"{asked}; give the task the prompt's own config (model.peft_config[{task.name!r}])."
            )


def template_of(task: PromptTask, model: Any) -> PromptTemplate | None:
    """Return a task's template with its label words; default: the template of the model's prompt for this task."""
    template = task.template
    if template is None and isinstance(model, SoftPrompts) and task.name in model.prompt_info:
        template = model.prompt_info[task.name].template
    return with_label_words(template, task.train_dataset, task.eval_dataset)


def encoder_of(task: PromptTask, tokenizer: Any, model: SoftPrompts) -> PromptTokenizer | None:
    """Return the tokenizer of a task's rows; None if the rows are token ids already.

    Raises:
        PromptTuningError: the task has a template and there is no tokenizer.
    """
    if task.template is None:
        return None
    if tokenizer is None:
        raise PromptTuningError(
            f"the task {task.name!r} has a template, and processing_class is None; give the backbone's tokenizer."
        )
    return model.row_encoder(tokenizer, task.template)
