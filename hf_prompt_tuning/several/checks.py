"""Check the arguments of a run with several prompts before anything changes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME

from ..data.encoding import check_kind
from ..errors import PromptTuningError
from ..models.soft_prompts import SoftPrompts
from ..training.arguments import PromptTuningArguments
from ..training.callbacks import PromptHubCallback
from ..training.pickle_free import with_pickles
from ..training.recipes import AUTO
from ..training.resume_checks import saved_state
from ..training.setup import check_argument_names, kind_of
from .task import PromptTask

GROUP = "name"
"""The key of an optimizer's parameter group that has the name of its prompt."""
OF_TASKS = ("train_dataset", "eval_dataset", "template", "prompt_config", "model_init")


def check_arguments(args: PromptTuningArguments) -> None:
    """Raise PromptTuningError for training arguments that fit only one prompt."""
    if args.world_size > 1 or args.n_gpu > 1:
        raise PromptTuningError(
            f"this run has {max(args.world_size, args.n_gpu)} devices; several prompts train on one (set "
            "CUDA_VISIBLE_DEVICES), or each prompt in a run of its own."
        )
    if args.auto_find_batch_size:
        raise PromptTuningError(
            "auto_find_batch_size is on, and each of several prompts has its own; give per_device_train_batch_size."
        )
    if args.load_best_model_at_end or args.save_strategy == "best":
        raise PromptTuningError(
            "load_best_model_at_end, early_stopping_patience and save_strategy best ask for one best step, and each "
            "of several prompts has its own. Leave them out, and choose from the checkpoints."
        )


def check_options(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise PromptTuningError for an option of `PromptTuningTrainer` that fits only one prompt, or is misnamed."""
    check_argument_names(options)
    if any(option is not None for option in options.get("optimizers") or ()):
        raise PromptTuningError(
            "optimizers are given, and each of several prompts has its rate and schedule; give "
            "optimizer_cls_and_kwargs, and learning_rate to a task."
        )
    for callback in options.get("callbacks") or ():
        check_callback(callback, names)
    if options.get("teacher") is not None:
        raise PromptTuningError(
            f"teacher is given to the prompts {', '.join(map(repr, names))}, and one prompt learns from a teacher; "
            "train each in a PromptTuningTrainer of its own."
        )
    if given := [name for name in OF_TASKS if options.get(name) is not None]:
        raise PromptTuningError(f"{given[0]} is given beside tasks, each of which has its own; give it there.")


def check_field(
    model: Any, args: PromptTuningArguments, train_dataset: Any, template: Any, options: Mapping[str, Any]
) -> None:
    """Raise PromptTuningError for what does not go with recipe auto. `options` are the trainer's other arguments."""
    if not isinstance(args, PromptTuningArguments) or args.recipe not in (None, AUTO):
        raise PromptTuningError(
            f"a FieldTrainer has the recipe auto, and is given {getattr(args, 'recipe', type(args).__name__)}; give "
            'PromptTuningArguments(recipe="auto").'
        )
    if isinstance(model, SoftPrompts):
        raise PromptTuningError("the model has a prompt, and recipe auto makes its own; give the plain backbone.")
    if template is None:
        raise PromptTuningError("recipe auto needs a template and the tokenizer (processing_class); give both.")
    if train_dataset is None:
        raise PromptTuningError("recipe auto has no training data; give some, or leave the recipe out.")
    if options.get("teacher") is not None:
        raise PromptTuningError("teacher is given, and recipe auto trains on targets; leave one of them out.")
    if options.get("compute_metrics") is not None:
        raise PromptTuningError(
            "compute_metrics is given, which a field would call with votes and its last prompt with scores; leave it "
            "out, and compute metrics of what predict returns."
        )
    if "learning_rate" in args.given:
        raise PromptTuningError(
            f"learning_rate is {args.learning_rate}, and recipe auto finds the learning rate; leave one of them out."
        )
    if not args.restore_callback_states_from_checkpoint:
        raise PromptTuningError(
            "restore_callback_states_from_checkpoint is False, and a resumed field reads there which prompts were "
            "dropped; leave it out."
        )


def check_warmup(args: PromptTuningArguments, first: int) -> None:
    """Raise PromptTuningError if the first round, which ends at step `first`, is over before the warm-up is."""
    steps = args.get_warmup_steps(args.max_steps)
    if steps >= first:
        raise PromptTuningError(
            f"warmup_steps is {steps}, and the first round ends at step {first}, before the prompts had their rates; "
            "warm up for fewer steps, or train for more."
        )


def check_callback(callback: Any, names: Iterable[str]) -> None:
    """Raise PromptTuningError for a callback that supports only one prompt."""
    if issubclass(kind_of(callback), PromptHubCallback):
        raise PromptTuningError(
            f"PromptHubCallback pushes one prompt, and this run trains {', '.join(map(repr, names))}; leave it out, "
            "and give push_to_hub with hub_strategy."
        )


def check_prompts(model: Any, tasks: Sequence[PromptTask]) -> None:
    """Raise PromptTuningError if the model's prompts do not match the tasks in name and length."""
    if set(model.peft_config) != {task.name for task in tasks}:
        raise PromptTuningError(
            f"the model has the prompts {sorted(model.peft_config)}, and the tasks are "
            f"{sorted(task.name for task in tasks)}; give a plain backbone, or a prompt for each task."
        )
    for task in tasks:
        wanted, length = task.config.num_virtual_tokens, model.peft_config[task.name].num_virtual_tokens
        if wanted not in (None, length):
            raise PromptTuningError(
                f"the prompt {task.name!r} of the model has {length} virtual tokens, and the task's config asks for "
                f"{wanted}; give the task the prompt's own config (model.peft_config[{task.name!r}])."
            )


def check_task_data(task: PromptTask) -> None:
    """Raise PromptTuningError if a task's data is of a wrong kind, a stream to train on, or several sets."""
    check_kind(task.train_dataset, f"{task.name} training")
    check_has_length(task.train_dataset, f"{task.name} training")
    check_one_set(task.eval_dataset, task.name)
    check_kind(task.eval_dataset, f"{task.name} evaluation")


def check_has_length(data: Any, name: str) -> None:
    """Raise PromptTuningError if the data is a stream: the steps of several prompts are planned from their rows."""
    if data is not None and not hasattr(data, "__len__"):
        raise PromptTuningError(
            f"the {name} data is a {type(data).__name__}, which has no length, and the steps of several prompts are "
            "planned from their rows; give a list of them, or a Dataset, or train each prompt in a "
            "PromptTuningTrainer of its own."
        )


def check_one_set(data: Any, name: str) -> None:
    """Raise PromptTuningError if the data to evaluate a task on is a dict of several data sets."""
    if isinstance(data, dict):
        raise PromptTuningError(
            f"the task {name!r} is to be evaluated on a dict of {', '.join(map(repr, data)) or 'nothing'}, and takes "
            f"one data set at a time; give one, and the others to evaluate({{{name!r}: rows}}, metric_key_prefix=…)."
        )


def check_by_task(data: Any, names: Collection[str]) -> dict[str, Any]:
    """Return the data; raise PromptTuningError if it is not a dict from the names of tasks to one data set each."""
    if not isinstance(data, dict) or not data:
        raise PromptTuningError(
            f"the data is a {type(data).__name__}; with several tasks give a dict of name to data."
        )
    if unknown := [name for name in data if name not in names]:
        raise PromptTuningError(f"there is no task {unknown[0]!r}; there are {', '.join(map(repr, names))}.")
    for name, rows in data.items():
        check_one_set(rows, name)
    return data


def check_order(folder: str | Path, names: Iterable[str]) -> None:
    """Raise PromptTuningError if a checkpoint's prompts trained in another order."""
    names = list(names)
    # torch gives the states of an optimizer, and the rates of a schedule, back by position.
    with with_pickles(folder) as pickled:
        state = saved_state(Path(pickled, OPTIMIZER_NAME)) or {}
    order = [group.get(GROUP) for group in state.get("param_groups", [])]
    if None not in order and order and order != names:
        raise PromptTuningError(
            f"{folder} is of a run of the prompts {order}, in this order, and this run trains {names}; their "
            "optimizer states and rates go on by position: resume with the same order."
        )
