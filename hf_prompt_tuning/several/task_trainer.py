"""Handle the tasks of a run: their data, templates, metrics and folders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..data.token_ids import vocabulary_of
from ..data.tokenization import PromptTokenizer
from ..errors import PromptTuningError
from ..hub.names import hub_id
from ..models.recording import to_record
from ..models.scoring import loss_history
from ..models.soft_prompts import SoftPrompts
from ..prompts.info import PromptInfo
from ..prompts.plots import CURVES_FILE, save_curves
from ..prompts.repository_card import write_repository_card
from ..prompts.repository_files import PROMPT_FILES
from ..training.arguments import PromptTuningArguments
from ..training.scorer import Scorer
from ..training.token_rows import ColumnCheck, RowEncoder
from ..training.trainer import PromptTuningTrainer
from .task import PromptTask, check_names, model_with_prompts
from .task_checks import check_of_tasks, check_prompts, encoder_of, template_of


class TaskTrainer(PromptTuningTrainer):
    """Trainer with several tasks, each with its data, metrics and folder; a base class of `MultiPromptTrainer`."""

    _asked: PromptTuningArguments  # the caller's arguments
    _alone = False

    def __init__(
        self,
        model: nn.Module,
        args: PromptTuningArguments,
        tasks: Sequence[PromptTask],
        processing_class: Any = None,
        **kwargs: Any,
    ):
        check_names(tasks)
        check_of_tasks(kwargs)
        tasks = [replace(task, template=template_of(task, model)) for task in tasks]
        if not isinstance(model, SoftPrompts):
            model = model_with_prompts(model, tasks, processing_class, args.seed)
        check_prompts(model, tasks)
        columns = ColumnCheck.of_run(model.get_base_model(), args, kwargs.get("data_collator"), self._alone)
        self._row_encoders = {
            task.name: RowEncoder(
                encoder_of(task, processing_class, model), model.room(task.name), vocabulary_of(model), columns
            )
            for task in tasks
        }
        self.tasks = {task.name: self._with_token_ids(task) for task in tasks}
        model.set_adapter(tasks[0].name)
        data = {name: task.eval_dataset for name, task in self.tasks.items() if task.eval_dataset is not None}
        super().__init__(
            model=model,
            args=args,
            eval_dataset=data or None,
            processing_class=processing_class,
            template=tasks[0].template,
            **kwargs,
        )
        for name, rows in self._row_encoders.items():
            self._describe_data(name, rows.tokenizer)

    @staticmethod
    def _room(model: Any) -> int | None:
        # `_with_token_ids` checks the rows against the length of their own prompt.
        return None

    def _with_token_ids(self, task: PromptTask) -> PromptTask:
        encode = self._row_encoders[task.name]
        train = encode(task.train_dataset, f"{task.name} training", require_target=True)
        evaluation = encode(task.eval_dataset, f"{task.name} evaluation", require_target=False)
        return replace(task, train_dataset=train, eval_dataset=evaluation)

    def _describe_data(self, name: str, encoder: PromptTokenizer | None) -> None:
        info, train = self.model.prompt_info[name], self.tasks[name].train_dataset
        if encoder is not None:
            info.template = encoder.template
            if train is not None:
                info.example = encoder.readable(train[0])

    def _scorer_of_prompt(self, **options: Any) -> Scorer:
        task = self.tasks[self.accelerator.unwrap_model(self.model).active_adapter]
        data = task.train_dataset if task.train_dataset is not None else task.eval_dataset
        return self._scorer_of(self._row_encoders[task.name], data, **options)

    @contextmanager
    def _using(self, name: str) -> Iterator[PromptInfo]:
        """Within this context, evaluate and describe the prompt of this task."""
        model = self.accelerator.unwrap_model(self.model)
        before = model.active_adapter
        model.set_adapter(name)
        try:
            yield model.info
        finally:
            model.set_adapter(before)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate each prompt on its task's data, with metrics named `eval_NAME_accuracy` and so on.

        `eval_loss` is the mean of the prompts' losses.

        Args:
            eval_dataset: a dict from task to data; default: the tasks' evaluation data.
            ignore_keys: as in `Trainer`.
            metric_key_prefix: as in `Trainer`.
        """
        own, data = self._is_own(eval_dataset, metric_key_prefix), eval_dataset
        metrics: dict[str, float] = {}
        losses = []
        for name, rows in self._by_task(self.eval_dataset if data is None else data).items():
            prefix = f"{metric_key_prefix}_{name}"
            with self._using(name) as info:
                scorer = self._make_scorer(info=info if own else None)
                found = self._evaluated(scorer, rows, ignore_keys, prefix)
                if own:
                    info.metrics = _renamed(to_record(found), prefix, "eval")
            metrics |= found
            losses += [found[f"{prefix}_loss"]] if f"{prefix}_loss" in found else []
        if losses:
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        return metrics

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """Return the metrics of the backbone without a prompt on each task's data: `untuned_NAME_accuracy` and so on.

        Metrics of the tasks' own data are recorded in the prompts.

        Args:
            eval_dataset: a dict from task to data; default: the tasks' evaluation data.
        """
        own, data = self._is_own(eval_dataset, "eval"), eval_dataset
        metrics: dict[str, float] = {}
        for name, rows in self._by_task(self.eval_dataset if data is None else data).items():
            with self._using(name) as info:
                found = self._without_prompt(rows, "untuned")
                if own:
                    info.untuned_metrics = to_record(found)
            metrics |= _renamed(found, "untuned", f"untuned_{name}")
        return metrics

    def evaluate_transfer(self, datasets: dict[str, Any]) -> dict[str, float]:
        """Evaluate every prompt on other domains as `PromptTuningTrainer` does; each prompt records its own metrics.

        Args:
            datasets: data sets by name, whose rows have the columns of every task's template; or a dict from task to
                such a dict, for that task only.

        Returns:
            All metrics, named `transfer_<name>_<task>_<metric>`.
        """
        by_task = all(name in self.tasks and isinstance(data, dict) for name, data in datasets.items())
        found: dict[str, float] = {}
        for task, data_of_task in (datasets if by_task else dict.fromkeys(self.tasks, datasets)).items():
            with self._using(task) as info:
                for name, data in data_of_task.items():
                    metrics, rows = self._transferred(self._make_scorer(), name, data)
                    info.transfer[name] = to_record(metrics) | {"rows": rows}
                    found |= {f"transfer_{name}_{task}_{metric}": value for metric, value in metrics.items()}
        return found

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Raise PromptTuningError: it is not clear which prompt should predict.

        Raises:
            PromptTuningError: always; use `predict_tasks`, which takes data by task.
        """
        raise PromptTuningError("predict is asked of several tasks; give predict_tasks a dict of task to data.")

    def predict_tasks(self, test_datasets: dict[str, Any], ignore_keys: Any = None) -> dict[str, Any]:
        """Return a `PredictionOutput`, as `PromptTuningTrainer.predict` does, for each task's data.

        Args:
            test_datasets: a dict from task to data.
            ignore_keys: as in `Trainer`.

        Raises:
            PromptTuningError: a task is unknown.
        """
        outputs = {}
        for name, rows in self._by_task(test_datasets).items():
            with self._using(name):
                outputs[name] = PromptTuningTrainer.predict(self, rows, ignore_keys, f"test_{name}")
        return outputs

    def _by_task(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or not data:
            raise PromptTuningError(
                f"the data is a {type(data).__name__}; with several tasks give a dict of task name to data."
            )
        if unknown := [name for name in data if name not in self.tasks]:
            raise PromptTuningError(f"there is no task {unknown[0]!r}; there are {', '.join(map(repr, self.tasks))}.")
        return data

    def _describe(self, info: PromptInfo) -> None:
        super()._describe(info)
        name = self.accelerator.unwrap_model(self.model).active_adapter
        task, asked = self.tasks[name], self._asked
        info.training |= {
            "learning_rate": task.learning_rate or asked.learning_rate,
            "num_train_epochs": task.num_train_epochs or asked.num_train_epochs,
            "max_steps": task.max_steps or asked.max_steps,
            "per_device_train_batch_size": task.per_device_train_batch_size or asked.per_device_train_batch_size,
            "gradient_accumulation_steps": asked.gradient_accumulation_steps,
            "initialization_seed": asked.seed if task.seed is None else task.seed,
            "trained_with": [other for other in self.tasks if other != name],
        }
        for key, data in (("training_rows", task.train_dataset), ("evaluation_rows", task.eval_dataset)):
            if data is not None:
                info.data[key] = len(data)
        info.history = self._history(name)

    def _history(self, name: str) -> dict[str, list[list[float]]]:
        names = {f"loss_{name}": "loss", f"eval_{name}_loss": "eval_loss"}
        own = [
            {"step": log["step"], known: log[key]}
            for log in self.state.log_history
            for key, known in names.items()
            if key in log
        ]
        return loss_history(own)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            self._save_prompts(Path(output_dir or self.args.output_dir), self._card_repo_id, not self._unfinished)

    def _save_prompts(self, folder: Path, repo_id: str | None, card: bool) -> None:
        """Save each prompt in a folder of its name, and one picture of all their losses.

        Args:
            folder: the folder to write to.
            repo_id: the Hub repository that the cards name.
            card: whether to write cards and pictures; a checkpoint has none.
        """
        for name in self.tasks:
            with self._using(name) as info:
                self._describe(info)
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(folder, selected_adapters=list(self.tasks), repo_id=repo_id, card=card)
        if card:
            save_curves(folder, {name: self._history(name) for name in self.tasks})
            self._write_root_card(folder, repo_id)

    def _write_root_card(self, folder: Path, repo_id: str | None) -> None:
        configs = self.accelerator.unwrap_model(self.model).peft_config
        write_repository_card(folder, repo_id, {n: hub_id(configs[n].base_model_name_or_path) for n in self.tasks})

    def _own_files(self) -> list[str]:
        # Leave out the card at the root: on the Hub it may be a card that a person wrote, and only a push checks that.
        return [CURVES_FILE, *(f"{name}/{file}" for name in self.tasks for file in PROMPT_FILES)]

    def _copy_for_hub(self, folder: Path, repo_id: str, tokenizer: Any) -> Path:
        self._save_prompts(folder, repo_id, card=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return folder

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        found = {file.parent.name for file in Path(resume_from_checkpoint).glob("*/adapter_model.safetensors")}
        if found != set(self.tasks):
            raise PromptTuningError(
                f"{resume_from_checkpoint} holds the prompts {sorted(found)}, and this run trains "
                f"{sorted(self.tasks)}; resume with the same tasks."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def _renamed(metrics: dict[str, float], prefix: str, new: str) -> dict[str, float]:
    return {name.replace(prefix, new, 1) if name.startswith(prefix) else name: v for name, v in metrics.items()}
