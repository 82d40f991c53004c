"""Prepare what each task has of its own in a run: its rows as token ids, its arguments, and its update steps."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.chat_tokenization import with_own_chat_template
from ..data.encoding import with_label_words
from ..errors import PromptTuningError
from ..models.soft_prompts import SoftPrompts
from ..prompts.info import PromptInfo
from ..training.arguments import PromptTuningArguments
from ..training.token_rows import ColumnCheck, RowEncoder
from .checks import check_task_data
from .streams import Stream, read_stream
from .task import PromptTask


@dataclass(frozen=True)
class TaskRun:
    """A task in a run.

    Attributes:
        task: the task; its data are rows of token ids.
        rows: turns more data of the task into token ids.
        args: the training arguments of this task.
        stream: the update steps; None if there is no training data.
    """

    task: PromptTask
    rows: RowEncoder
    args: PromptTuningArguments
    stream: Stream | None

    @classmethod
    def prepare(
        cls,
        task: PromptTask,
        model: SoftPrompts,
        args: PromptTuningArguments,
        tokenizer: PreTrainedTokenizerBase | None,
        columns: ColumnCheck,
    ) -> "TaskRun":
        """Encode a task's data with its template. Raise PromptTuningError if it does not fit behind its prompt."""
        encode = RowEncoder.behind(model, tokenizer, task.template, columns, task.name)
        train = encode(task.train_dataset, f"{task.name} training", require_target=True)
        evaluation = encode(task.eval_dataset, f"{task.name} evaluation", require_target=False)
        args = task.arguments(args)
        stream = None if train is None else read_stream(task.name, train, args)
        return cls(replace(task, train_dataset=train, eval_dataset=evaluation), encode, args, stream)

    def describe(self, info: PromptInfo, others: list[str]) -> None:
        """Record the prompt's seeds, its numbers of rows, and the tasks that it was trained with."""
        seed = self.task.seed if self.task.seed is not None else self.args.seed
        info.training |= {"initialization_seed": seed, "trained_with": others}
        if self.task.data_seed is not None:
            info.training["data_seed"] = self.task.data_seed
        rows = {"training_rows": self.task.train_dataset, "evaluation_rows": self.task.eval_dataset}
        info.data |= {name: len(data) for name, data in rows.items() if hasattr(data, "__len__")}


def with_template(task: PromptTask, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> PromptTask:
    """Return the task with its template and label words; default: the template of the model's prompt for this task.

    Raise PromptTuningError if there is a template and no tokenizer, or the data is of another kind.
    """
    check_task_data(task)
    template = task.template
    if template is None and isinstance(model, SoftPrompts) and task.name in model.prompt_info:
        template = model.prompt_info[task.name].template
    if template is not None and tokenizer is None:
        raise PromptTuningError(
            f"the task {task.name!r} has a template, and processing_class is None; give the backbone's tokenizer."
        )
    template = with_label_words(template, task.train_dataset, task.eval_dataset)
    return replace(task, template=with_own_chat_template(template, tokenizer))
