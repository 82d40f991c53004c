"""Train several prompts in one run: the tasks that a config lists, or the members of an ensemble."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict

from ..data.chat_tokenization import RowTemplate
from ..errors import PromptTuningError
from ..prompts.config import PromptTuningInit, check_name
from ..several.task import OF_TRAINING, PromptTask
from ..several.trainer import MultiPromptTrainer
from ..training.arguments import PromptTuningArguments
from ..training.recipes import AUTO
from .arguments import (
    OF_LISTS,
    OF_SEVERAL,
    Arguments,
    ModelArguments,
    PromptArguments,
    make_arguments,
    read_command_line,
)
from .data_arguments import DataArguments
from .head_arguments import check_for_one_prompt
from .main import (
    check_evaluated,
    check_push,
    load_backbone,
    report,
    save_predictions,
    set_up_logging,
    warn_if_unlearned,
)
from .pictures import for_pictures
from .splits import check_rows, load_splits, load_transfer, warn_of_unlearned_labels
from .teacher_arguments import OF_TEACHER


@dataclass
class TasksConfig:
    """The arguments of a config with `tasks`: of the backbone, of the run's training, and of each task by its name."""

    model: ModelArguments
    training: PromptTuningArguments
    tasks: dict[str, Arguments]


def read_tasks(argv: Sequence[str] | None = None) -> TasksConfig | None:
    """Parse `CONFIG.yaml [--flag value …]`, by default of `sys.argv`. Return None if the config lists no `tasks`.

    A task is a mapping with a `name` and any arguments of data and prompt; of training, only those in `OF_TRAINING`.
    Keys next to `tasks` are the defaults of every task. A flag overrides them in all tasks. Raise PromptTuningError if
    `tasks` is not a list of mappings, a name is missing, invalid or repeated, or a key is unknown or not allowed in a
    task.
    """
    shared, flags = read_command_line(argv)
    if "tasks" not in shared:
        return None
    entries = shared.pop("tasks")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise PromptTuningError("`tasks` is no list of mappings; write one mapping, with a `name`, for each task.")
    tasks: dict[str, Arguments] = {}
    for entry in entries:
        name = entry.get("name")
        check_name(name)
        if name in tasks:
            raise PromptTuningError(f"two tasks are called {name!r}; give each a name of its own.")
        tasks[name] = make_arguments(shared | _own_values(name, entry), flags)
        if any(getattr(tasks[name].prompt, key) is not None for key in OF_SEVERAL):
            raise PromptTuningError(f"{', '.join(OF_SEVERAL)} are for one task; leave them out beside tasks.")
        check_for_one_prompt(tasks[name].model.task_type, ["tasks"], ["tasks"])
        if tasks[name].training.recipe == AUTO:
            raise PromptTuningError("recipe is auto, which is for one task; leave it out beside tasks.")
        if tasks[name].teacher.given() is not None:
            raise PromptTuningError(f"{', '.join(OF_TEACHER)} are for one prompt; leave them out beside tasks.")
    # The run evaluates if at least one task has validation data, and trains if at least one has training data.
    of_run = max(tasks.values(), key=lambda arguments: arguments.training.do_eval)
    of_run.training.do_train = any(arguments.training.do_train for arguments in tasks.values())
    return TasksConfig(of_run.model, of_run.training, tasks)


def _own_values(name: str, entry: dict[Any, Any]) -> dict[str, Any]:
    """Return a task's own values. Raise PromptTuningError if one belongs to the run."""
    allowed = {field.name for group in (DataArguments, PromptArguments) for field in dataclasses.fields(group)}
    allowed = allowed.union(OF_TRAINING).difference(OF_SEVERAL)
    values = {str(key): value for key, value in entry.items() if key != "name"}
    if extra := [key for key in values if key not in allowed]:
        raise PromptTuningError(
            f"the task {name!r} has the key {extra[0]!r}; a task has arguments of data and prompt, and "
            f"{', '.join(OF_TRAINING)}. Write a setting of the run beside `tasks`."
        )
    return values


@dataclass
class _Data:
    """What the tasks learn from and are evaluated on.

    Attributes:
        splits: the rows of each task's splits.
        templates: each task's template.
        transfer: by task, its data to evaluate on without training on them. Tasks without any are left out.
        pictures: the columns of pictures.
    """

    splits: dict[str, DatasetDict] = field(default_factory=dict)
    templates: dict[str, RowTemplate] = field(default_factory=dict)
    transfer: dict[str, dict[str, Dataset]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    @property
    def tests(self) -> dict[str, Dataset]:
        """The rows to predict of each task that has some."""
        tests = {name: data.get("test", data.get("validation")) for name, data in self.splits.items()}
        return {name: data for name, data in tests.items() if data is not None}


def _load_data(config: TasksConfig) -> _Data:
    """Load and check the data of all tasks, before the backbone. Raise PromptTuningError if some is missing."""
    args, found = config.training, _Data()
    for name, task in config.tasks.items():
        splits = found.splits[name] = load_splits(task.data, args.seed, config.model.token)
        if args.do_train and "train" not in splits:
            raise PromptTuningError(
                f"the task {name!r} has no training data, and the run trains; give it a train_file, or leave the task "
                "out."
            )
        template = task.template().with_label_words(splits.get("train"), splits.get("validation"))
        warn_of_unlearned_labels(template, splits)
        if transfer := load_transfer(task.data, template, config.model.token):
            found.transfer[name] = transfer
        found.templates[name], columns = for_pictures(template, splits, task.data)
        found.pictures += columns
    check_rows(args, *found.splits.values())
    return found


def train_tasks(config: TasksConfig) -> None:
    """Train, evaluate, save and predict. Write each task's prompt, metrics and predictions into its own folder.

    Raise PromptTuningError, before the backbone is loaded, if a task's data do not fit what the run is to do.
    """
    args, arguments = config.training, config.tasks
    set_up_logging(args)
    check_push(args)
    data = _load_data(config)
    backbone, tokenizer = load_backbone(config.model, pictures=data.pictures)
    if any(task.training.max_steps == 0 for task in arguments.values()):
        args = copy.copy(args)
        args.max_steps = 0  # for the tasks of no step: the others have epochs or steps of their own
    tasks = [_task(name, data.splits[name], arguments[name], data.templates[name], args) for name in arguments]
    trainer = MultiPromptTrainer(backbone, args, tasks, tokenizer)
    if not args.do_train:
        check_evaluated([task.config for task in tasks], trainer.model)
    for name, task in arguments.items():
        trainer.model.prompt_info[name].data |= task.data.described()
    untuned = trainer.evaluate_untuned() if args.do_eval else {}
    if args.do_eval:
        report(trainer, "untuned", untuned)
    if args.do_train:
        report(trainer, "train", trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        report(trainer, "eval", metrics)
        if args.do_train:
            warn_if_unlearned(untuned, metrics, list(arguments))
    if data.transfer:
        report(trainer, "transfer", trainer.evaluate_transfer(data.transfer))
    if args.do_train:
        trainer.save_model()
    if args.do_predict:
        outputs = trainer.predict_tasks(data.tests)
        report(trainer, "test", {k: v for output in outputs.values() for k, v in output.metrics.items()})
        for name, output in outputs.items():
            save_predictions(trainer, output, data.tests[name], name)


def _task(
    name: str, splits: DatasetDict, arguments: Arguments, template: RowTemplate, of_run: PromptTuningArguments
) -> PromptTask:
    model, prompt, training = arguments.model, arguments.prompt, arguments.training
    train, validation = splits.get("train"), splits.get("validation")
    by_steps, by_epochs = training.max_steps > 0, training.max_steps < 0  # neither: no step, as the run has
    return PromptTask(
        name,
        prompt.config(model.task_type, model.token),
        train if of_run.do_train else None,
        validation if of_run.do_eval else None,
        template,
        learning_rate=training.learning_rate,
        num_train_epochs=training.num_train_epochs if by_epochs else None,
        max_steps=training.max_steps if by_steps else None,
        per_device_train_batch_size=training.per_device_train_batch_size,
    )


def ensemble_members(args: PromptArguments, seed: int, token: str | None = None) -> list[PromptTask]:
    """Return the prompts `prompt_1` to `prompt_N` of the arguments, or an empty list for a single prompt.

    Prompt i has the i-th value of each list. Arguments without a list are the same for all prompts. Without
    `prompt_seeds` the seeds are `seed`, seed + 1, …. Raise PromptTuningError if there are fewer than two prompts, or
    the lists have different lengths.
    """
    lists = {name: getattr(args, name) for name in OF_LISTS if getattr(args, name)}
    if args.num_prompts in (None, 1) and not lists:
        return []
    number = args.num_prompts if args.num_prompts is not None else max(map(len, lists.values()))
    if number < 2:
        raise PromptTuningError(f"there are to be {number} prompts; give 2 or more, or none of {', '.join(OF_LISTS)}.")
    for name, values in lists.items():
        if len(values) != number:
            raise PromptTuningError(f"{name} has {len(values)} values for {number} prompts; give one for each.")
    members = []
    for i in range(number):
        own = {name: values[i] for name, values in lists.items()}
        fields = {"num_virtual_tokens": "prompt_lengths", "prompt_tuning_init": "prompt_tuning_inits"}
        changes = {field: own[name] for field, name in fields.items() if name in own}
        if changes.get("prompt_tuning_init", PromptTuningInit.PROMPT) != PromptTuningInit.PROMPT:
            changes |= dict.fromkeys(("init_prompt", "init_prompt_revision", "init_prompt_subfolder"))  # of the others
        config = dataclasses.replace(args, **changes).config(None, token)
        seeds = {"seed": own.get("prompt_seeds", seed + i), "data_seed": own.get("data_seeds")}
        members.append(PromptTask(f"prompt_{i + 1}", config, learning_rate=own.get("learning_rates"), **seeds))
    return members
