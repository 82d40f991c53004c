"""Train prompts for several tasks in one run, from a config that lists the tasks."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers.utils.logging import get_logger

from ..errors import PromptTuningError
from ..prompts.names import check_name
from ..several.task import PromptTask
from ..several.trainer import MultiPromptTrainer
from ..training.arguments import PromptTuningArguments
from ..training.push_arguments import check_hub
from .arguments import (
    OF_SEVERAL,
    Arguments,
    DataArguments,
    ModelArguments,
    PromptArguments,
    parse_values,
    read_config,
)
from .main import load_backbone, set_up_logging, write_predictions
from .splits import load_splits

logger = get_logger(__name__)

OF_TRAINING = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")
"""The training arguments that each task may set for itself."""


@dataclass
class TasksConfig:
    """The content of a config with `tasks`.

    Attributes:
        model: the arguments of the backbone.
        training: the training arguments of the run.
        tasks: the arguments of each task, by its name.
    """

    model: ModelArguments
    training: PromptTuningArguments
    tasks: dict[str, Arguments]


def read_tasks(argv: Sequence[str] | None = None) -> TasksConfig | None:
    """Parse `CONFIG.yaml [--flag value …]` if the config lists `tasks`. Return None for any other command line.

    A task is a mapping with a `name` and any arguments of data and prompt; of training, only those in `OF_TRAINING`.
    Keys next to `tasks` are the defaults of every task. A flag overrides them in all tasks.

    Args:
        argv: default `sys.argv[1:]`.

    Raises:
        PromptTuningError: `tasks` is not a list of mappings, a name is missing, invalid or repeated, or a key is
            unknown or not allowed in a task.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0].startswith("-"):
        return None
    shared = read_config(Path(argv.pop(0)))
    if "tasks" not in shared:
        return None
    given = shared.pop("tasks")
    if not isinstance(given, list) or not given or not all(isinstance(task, dict) for task in given):
        raise PromptTuningError("`tasks` is no list of mappings; write one mapping, with a `name`, for each task.")
    allowed = {field.name for group in (DataArguments, PromptArguments) for field in dataclasses.fields(group)}
    allowed = allowed.union(OF_TRAINING).difference(OF_SEVERAL)
    tasks: dict[str, Arguments] = {}
    for values in given:
        own = {str(key): value for key, value in values.items() if key != "name"}
        name = values.get("name")
        check_name(name)
        if name in tasks:
            raise PromptTuningError(f"two tasks are called {name!r}; give each a name of its own.")
        if extra := [key for key in own if key not in allowed]:
            raise PromptTuningError(
                f"the task {name!r} has the key {extra[0]!r}; a task has arguments of data and prompt, and "
                f"{', '.join(OF_TRAINING)}. What is the run's stands beside `tasks`."
            )
        tasks[name] = parse_values(shared | own, argv)
        if any(getattr(tasks[name][2], key) is not None for key in OF_SEVERAL):
            raise PromptTuningError(
                f"{', '.join(OF_SEVERAL)} are for one task; leave them out of a config with tasks."
            )
    # The run evaluates if at least one task has validation data.
    arguments = next((a for a in tasks.values() if a[3].do_eval), next(iter(tasks.values())))
    return TasksConfig(arguments[0], arguments[3], tasks)


def train_tasks(config: TasksConfig) -> None:
    """Train, evaluate, save and predict. Write each task's prompt, metrics and predictions into its own folder."""
    args = config.training
    set_up_logging(args)
    check_hub(args)
    splits = {name: load_splits(data, args.seed, config.model.token) for name, (_, data, _, _) in config.tasks.items()}
    backbone, tokenizer = load_backbone(config.model)
    tasks = [_task(name, splits[name], arguments, config) for name, arguments in config.tasks.items()]
    trainer = MultiPromptTrainer(backbone, args, tasks, tokenizer)
    for name, (_, data, _, _) in config.tasks.items():
        trainer.model.prompt_info[name].data |= data.described()
    if args.do_eval:
        _record(trainer, "untuned", trainer.evaluate_untuned())
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        _record(trainer, "train", result.metrics)
        trainer.save_state()
    if args.do_eval:
        _record(trainer, "eval", trainer.evaluate())
    trainer.save_model()
    if args.do_predict:
        tests = {name: found.get("test", found.get("validation")) for name, found in splits.items()}
        outputs = trainer.predict_tasks({name: data for name, data in tests.items() if data is not None})
        _record(trainer, "test", {k: v for output in outputs.values() for k, v in output.metrics.items()})
        for name, output in outputs.items():
            template = trainer.model.prompt_info[name].template
            write_predictions(Path(args.output_dir) / name / "predictions.jsonl", template, output, tests[name])


def _task(name: str, splits: DatasetDict, arguments: Arguments, config: TasksConfig) -> PromptTask:
    model, data, prompt, training = arguments
    train, validation = splits.get("train"), splits.get("validation")
    by_steps = training.max_steps > 0
    return PromptTask(
        name,
        prompt.config(model.task_type, model.token),
        train if config.training.do_train else None,
        validation if config.training.do_eval else None,
        data.template().with_label_words(train, validation),
        learning_rate=training.learning_rate,
        num_train_epochs=None if by_steps else training.num_train_epochs,
        max_steps=training.max_steps if by_steps else None,
        per_device_train_batch_size=training.per_device_train_batch_size,
    )


def _record(trainer: MultiPromptTrainer, split: str, metrics: dict[str, Any]) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics, combined=split != "untuned")
