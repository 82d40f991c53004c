"""Trainer for several prompts on one frozen backbone; each prompt trains as in a run of its own."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ..data.encoded_rows import PICTURES, TYPES
from ..errors import PromptTuningError
from ..hub.files import hub_id
from ..models.model_classes import check_writes_text
from ..models.recording import describe_run, to_record
from ..models.soft_prompts import SoftPrompts
from ..prompts.card import write_repository_card
from ..prompts.info import PromptInfo
from ..prompts.plots import CURVES_FILE, save_curves
from ..prompts.repository_files import PROMPT_FILES
from ..training.arguments import PromptTuningArguments
from ..training.resume_checks import warn_of_resumed
from ..training.setup import warn_of_template
from ..training.token_rows import ColumnCheck, RowEncoder
from ..training.trainer import PromptTuningTrainer
from .batches import mixed_dataloader
from .checks import (
    GROUP,
    check_arguments,
    check_by_task,
    check_callback,
    check_options,
    check_order,
    check_prompts,
)
from .losses import PromptLosses
from .schedule import joint_schedule
from .streams import Stream
from .task import PromptTask, check_names, model_with_prompts
from .task_run import TaskRun, with_template


class MultiPromptTrainer(PromptTuningTrainer):
    """Train the prompts of several tasks in mixed batches. Each prompt ends as it would in a run of its own.

    Step s of the run is step s of every prompt, with that prompt's own rows, loss, gradient clipping, learning rate
    and schedule. A prompt that has finished its steps no longer changes. The layouts combine the rows, so that the
    backbone is called once for all prompts.

    Args:
        model: a plain backbone, which gets a prompt for each task, or a prompt-tuning model with these prompts.
        args, processing_class, **kwargs: as in `PromptTuningTrainer`.
        tasks: the prompts to train, with their data; each may have its own learning rate, batch size and epochs or
            steps.

    Raises:
        PromptTuningError: the model, a task or an argument is invalid.
    """

    drops_prompts = False
    """Whether the rows of some prompts are taken out of batches in training."""

    def __init__(
        self,
        model: nn.Module,
        args: PromptTuningArguments | None,
        tasks: Sequence[PromptTask],
        processing_class: Any = None,
        **kwargs: Any,
    ):
        # Change a copy: the number of steps is computed here, and `training_step` loops over the micro-batches itself.
        args = copy.copy(args if args is not None else PromptTuningArguments(output_dir="trainer_output"))
        check_arguments(args)
        check_names(tasks)
        check_writes_text(model)
        check_options(kwargs, [task.name for task in tasks])
        tasks = [with_template(task, model, processing_class) for task in tasks]
        if not isinstance(model, SoftPrompts):
            model = model_with_prompts(model, tasks, processing_class, args.seed)
        check_prompts(model, tasks)
        columns = ColumnCheck.of_run(model.get_base_model(), args, kwargs.get("data_collator"), alone=False)
        runs = [TaskRun.prepare(task, model, args, processing_class, columns) for task in tasks]
        self._runs = {run.task.name: self.prepared(run) for run in runs}
        self.tasks = {name: run.task for name, run in self._runs.items()}
        if self._streams:
            args.max_steps = max(len(stream.steps) for stream in self._streams)
        args.gradient_accumulation_steps = 1
        self.check_runs(model, args)  # before anything of the model changes
        with active_if_accepted(model, tasks[0].name):
            super().__init__(model, args, processing_class=processing_class, template=tasks[0].template, **kwargs)
        for task in tasks[1:]:  # the trainer of one prompt has told of the active one
            warn_of_template(self.model, task.name, task.template)
        self._losses = PromptLosses(self.tasks)
        if any(run.rows.sees for run in runs):
            self._set_signature_columns_if_needed()
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, PICTURES, *TYPES]))
        for name, run in self._runs.items():
            run.rows.describe(self.model.prompt_info[name], run.task.train_dataset)

    def prepared(self, run: TaskRun) -> TaskRun:
        """Return what a task has of its own in the run. A subclass may change its update steps."""
        return run

    def check_runs(self, model: SoftPrompts, args: PromptTuningArguments) -> None:
        """A subclass may raise PromptTuningError if its prompts, whose runs are prepared, cannot train so."""

    def encode_data(self, model: SoftPrompts, *_: Any) -> tuple[RowEncoder, None, Any]:
        """Return what encodes the active prompt's rows, and the tasks' evaluation data: `TaskRun` has encoded both."""
        return self._runs[model.active_adapter].rows, None, self._evaluation_data()

    def _evaluation_data(self) -> Any:
        """Return the tasks' evaluation data as `Trainer` keeps it."""
        return {name: task.eval_dataset for name, task in self.tasks.items() if task.eval_dataset is not None} or None

    @property
    def trained_prompts(self) -> list[str]:
        """The names of the tasks, which are those of their prompts."""
        return list(self.tasks)

    def add_callback(self, callback: Any) -> None:
        """Add a callback as `Trainer` does. Raise PromptTuningError if it supports only one prompt."""
        check_callback(callback, self.tasks)
        super().add_callback(callback)

    @property
    def prompts(self) -> dict[str, Tensor]:
        """Each prompt's vectors, [P, H], by name."""
        return {name: self.unwrapped.prompt_encoder[name].embedding.weight for name in self.tasks}

    @property
    def _streams(self) -> list[Stream]:
        return [run.stream for run in self._runs.values() if run.stream is not None]

    def get_train_dataloader(self) -> DataLoader:
        """Return a data loader whose batches are update steps of all prompts, which must have training data."""
        if len(self._streams) < len(self.tasks):
            without = next(name for name, task in self.tasks.items() if task.train_dataset is None)
            raise PromptTuningError(f"the task {without!r} has no training data; give it some, or leave the task out.")
        return mixed_dataloader(self._streams, self.data_collator, self.args, self.drops_prompts)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        # Each micro-batch counts its own labels. What an earlier run of this process left in Accelerate's state (that
        # its data were at their end) is not of these batches.
        return None

    def get_total_train_batch_size(self, args: PromptTuningArguments) -> int:
        """Return the mean number of rows in an update step, over all prompts together."""
        rows = sum(len(batch) for stream in self._streams for step in stream.steps for batch in step)
        return round(rows / max(args.max_steps, 1))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer as `Trainer` does, with a parameter group for each prompt."""
        if self.optimizer is None:
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            optimizer_cls, kwargs = chosen
            groups = []
            for name, run in self._runs.items():
                own = {"lr": run.args.learning_rate, "weight_decay": run.args.weight_decay}
                groups.append({"params": [self.prompts[name]], GROUP: name} | own)
            self.optimizer = optimizer_cls(groups, **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Create the scheduler as `Trainer` does; each prompt's schedule covers its own steps (`joint_schedule`)."""
        if self.lr_scheduler is None:
            steps = [len(stream.steps) for stream in self._streams]
            self.lr_scheduler = joint_schedule(optimizer or self.optimizer, steps, self.args)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run the backward passes of an update step, one per micro-batch; return the mean of the prompts' losses."""
        losses = [super(MultiPromptTrainer, self).training_step(model, batch) for batch in inputs["micro_batches"]]
        taught = {name for batch in inputs["micro_batches"] for name in batch["adapter_names"]}
        self._losses.count_step(taught)
        for name, weight in self.prompts.items():
            if name in taught and weight.grad is None:
                # The rows have no labels. Give a zero gradient, so that the optimizer still makes a step from its
                # state, as in a run of its own.
                weight.grad = torch.zeros_like(weight)
        return torch.stack(losses).sum() / len(taught)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the sum of the prompts' losses. Each is a mean over that prompt's labelled tokens in the step."""
        inputs = dict(inputs)
        tokens = inputs.pop("items")
        outputs = model(**inputs, only_labelled=True)
        losses = self._losses.add(outputs, inputs["adapter_names"], tokens, self.args.label_smoothing_factor)
        return (losses.sum(), outputs) if return_outputs else losses.sum()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # Unscale once: a gradient scaler (fp16) refuses to unscale the same gradients again.
        self.accelerator.unscale_gradients()
        weights = [weight for weight in self.prompts.values() if weight.grad is not None]
        norms = [nn.utils.clip_grad_norm_([weight], self.args.max_grad_norm) for weight in weights]
        return torch.stack(norms).norm()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, and add each prompt's loss as `loss_NAME` to their mean."""
        if "loss" in logs:
            logs |= {f"loss_{name}": loss for name, loss in self._losses.take_means().items()}
        super().log(logs, *args, **kwargs)

    def rows_and_data(self) -> tuple[RowEncoder, Any]:
        """Return what encodes the active prompt's rows, and the data of its task."""
        run = self._runs[self.unwrapped.active_adapter]
        return run.rows, run.task.eval_dataset if run.task.train_dataset is None else run.task.train_dataset

    @contextmanager
    def _using(self, name: str) -> Iterator[PromptInfo]:
        """Within this context, the task's prompt is the active one, which is evaluated and described."""
        model, before = self.unwrapped, self.unwrapped.active_adapter
        model.set_adapter(name)
        try:
            yield model.info
        finally:
            model.set_adapter(before)

    def _by_task(self, data: Any) -> Iterable[tuple[str, Any]]:
        """Return each task's name and data to evaluate; default: the tasks' evaluation data."""
        return check_by_task(self.eval_dataset if data is None else data, self.tasks).items()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate each prompt on its task's data, with metrics named `eval_NAME_accuracy` and so on.

        `eval_loss` is the mean of the prompts' losses. `eval_dataset` is a dict from task to data; default: the tasks'
        evaluation data. The other arguments are those of `Trainer`.
        """
        own = self.is_own(eval_dataset, metric_key_prefix)
        metrics, losses = {}, []
        for name, rows in self._by_task(eval_dataset):
            prefix = f"{metric_key_prefix}_{name}"
            with self._using(name) as info:
                scorer = self.make_scorer(info=info if own else None)
                metrics_of_task = self.evaluate_with(scorer, rows, ignore_keys, prefix)
                if own:
                    info.metrics = _renamed(to_record(metrics_of_task), prefix, "eval")
            metrics |= metrics_of_task
            losses += [metrics[f"{prefix}_loss"]] if f"{prefix}_loss" in metrics else []
        if losses:
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        return metrics

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the metrics of the backbone without a prompt on each task's data: `untuned_NAME_accuracy` and so on.

        `eval_dataset` is a dict from task to data; default: the tasks' evaluation data, whose metrics are recorded.
        """
        own = self.is_own(eval_dataset, "eval")
        metrics: dict[str, float] = {}
        for name, rows in self._by_task(eval_dataset):
            with self._using(name) as info:
                metrics_of_task = self.metrics_without_prompt(rows, "untuned")
                if own:
                    info.untuned_metrics = to_record(metrics_of_task)
            metrics |= _renamed(metrics_of_task, "untuned", f"untuned_{name}")
        return metrics

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate every prompt on other domains as `PromptTuningTrainer` does; each prompt records its own metrics.

        The rows of `datasets`, by name, have the columns of every task's template. Or it is a dict from task to such a
        dict, for that task only. Return all metrics, named `transfer_<name>_<task>_<metric>`.
        """
        by_task = all(name in self.tasks and isinstance(data, dict) for name, data in datasets.items())
        transfer: dict[str, float] = {}
        for task, data_of_task in (datasets if by_task else dict.fromkeys(self.tasks, datasets)).items():
            with self._using(task) as info:
                for name, data in data_of_task.items():
                    metrics, rows = self.transfer_metrics(self.make_scorer(), name, data)
                    info.transfer[name] = to_record(metrics) | {"rows": rows}
                    transfer |= {f"transfer_{name}_{task}_{metric}": value for metric, value in metrics.items()}
        return transfer

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Raise PromptTuningError: it is not clear which prompt should predict. Use `predict_tasks`."""
        raise PromptTuningError("predict is asked of several tasks; give predict_tasks a dict of task to data.")

    def _predict_rows(self, *args: Any, **kwargs: Any) -> Any:
        """Predict the rows of one data set, as `PromptTuningTrainer.predict` does."""
        return super().predict(*args, **kwargs)

    def predict_tasks(self, test_datasets: dict[str, Any], ignore_keys: Any = None) -> dict[str, Any]:
        """Return a `PredictionOutput`, as `PromptTuningTrainer.predict` does, for each task's data, by known task."""
        outputs = {}
        for name, rows in check_by_task(test_datasets, self.tasks).items():
            with self._using(name):
                outputs[name] = self._predict_rows(rows, ignore_keys, f"test_{name}")
        return outputs

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder, card = Path(output_dir or self.args.output_dir), not self.is_saving_checkpoint
            self._save_prompts(folder, self.publisher.repo_id, card)

    def _save_prompts(self, folder: Path, repo_id: str | None, card: bool) -> None:
        """Save each prompt in a folder of its name. `card` also writes cards and pictures, which checkpoints lack."""
        model = self.unwrapped
        for name in self.saved_prompts:
            self.describe_prompt(name)
        model.save_pretrained(folder, selected_adapters=self.saved_prompts, repo_id=repo_id, card=card)
        if card:
            save_curves(folder, {name: model.prompt_info[name].history for name in self.saved_prompts})
            self._write_root(model, folder, repo_id)

    @property
    def saved_prompts(self) -> list[str]:
        """The names of the prompts that a save writes."""
        return list(self.tasks)

    def describe_prompt(self, name: str) -> None:
        """Record a prompt's run in its description."""
        run = self._runs[name]
        with self._using(name) as info:
            describe_run(self.unwrapped, run.args, self.state, self.processing_class, name)
            run.describe(info, [other for other in self.tasks if other != name])

    def _write_root(self, model: SoftPrompts, folder: Path, repo_id: str | None) -> None:
        """Write a card that lists the prompts into the folder that holds them."""
        bases = {name: hub_id(model.peft_config[name].base_model_name_or_path) for name in self.tasks}
        write_repository_card(folder, repo_id, bases)

    @property
    def pushed_files(self) -> list[str]:
        """The paths in `output_dir` of all files that a push may contain."""
        # Leave out the card at the root: on the Hub it may be a card that a person wrote, and only a push checks that.
        return [CURVES_FILE, *(f"{name}/{file}" for name in self.tasks for file in PROMPT_FILES)]

    def save_for_hub(self, folder: Path, repo_id: str, tokenizer: Any) -> Path:
        """Save the prompts as they are pushed, each in a folder of its name; return the folder that holds them."""
        self._save_prompts(folder, repo_id, card=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return folder

    def check_resumed(self, checkpoint: str) -> None:
        """Raise PromptTuningError if a checkpoint has the tasks in another order; warn of each one's rates."""
        check_order(checkpoint, self.tasks)
        for name, run in self._runs.items():
            warn_of_resumed(checkpoint, run.args, name)


@contextmanager
def active_if_accepted(model: SoftPrompts, name: str) -> Iterator[None]:
    """Make a prompt the active one, as which a trainer checks it. After an error, the one before is active again."""
    before = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    except BaseException:
        model.set_adapter(before)
        raise


def _renamed(metrics: dict[str, float], prefix: str, new: str) -> dict[str, float]:
    return {name.replace(prefix, new, 1) if name.startswith(prefix) else name: v for name, v in metrics.items()}
