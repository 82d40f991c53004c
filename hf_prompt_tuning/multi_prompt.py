"""A Trainer of several prompts: one frozen backbone, one forward a step, and each prompt as if it were alone."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_scheduler

from .backbone import max_positions
from .config import PromptTuningArguments
from .errors import PromptTuningError
from .evaluation import longest_target, loss_history
from .mixed_batches import Stream, mixed_dataloader, row_order, stream_steps
from .plots import save_curves
from .prompt_info import PromptInfo
from .prompt_task import PromptTask, check_names, model_with_prompts
from .soft_prompts import SoftPrompts
from .tokenization import PromptTokenizer
from .trainer import PromptTuningTrainer
from .training_data import as_dataset, encode_data

logger = logging.getLogger(__name__)


class MultiPromptTrainer(PromptTuningTrainer):
    """Trains the prompts of several tasks in mixed batches, each to what it would become alone.

    Step s of the run is step s of every prompt, with that prompt's own rows, loss, gradient clipping, learning rate
    and schedule; a prompt that has had its steps stays as it is. The layouts do the rest: the backbone is called once
    for all prompts.

    Args:
        model: a plain backbone, which gets a prompt for each task; or a prompt-tuning model that has them already.
        args: as for `PromptTuningTrainer`; a task may have its own rate, batch size and number of epochs or steps.
        tasks: the prompts, with their data.
        processing_class: the backbone's tokenizer.
        **kwargs: as in `PromptTuningTrainer`.

    Raises:
        PromptTuningError: whatever can be known to be wrong with model, tasks or arguments before training.
    """

    def __init__(
        self,
        model: nn.Module,
        args: PromptTuningArguments | None,
        tasks: Sequence[PromptTask],
        processing_class: Any = None,
        **kwargs: Any,
    ):
        # A copy, because the number of steps is the run's, and a step's micro-batches are gone through here.
        args = copy.copy(args if args is not None else PromptTuningArguments(output_dir="trainer_output"))
        check_names(tasks)
        _check_arguments(args)
        tasks = [replace(task, template=_with_label_words(task)) for task in tasks]
        if isinstance(model, PreTrainedModel):
            model = model_with_prompts(model, tasks, processing_class, args.seed)
        _check_prompts(model, tasks)
        self._asked = copy.copy(args)
        self._encoders = {task.name: _encoder(task, processing_class, model) for task in tasks}
        limit = max_positions(model.get_base_model())
        lengths = {task.name: len(model.prompt_encoder[task.name].embedding.weight) for task in tasks}
        self._limits = {name: None if limit is None else limit - length for name, length in lengths.items()}
        self.tasks = {task.name: self._with_token_ids(task) for task in tasks}
        self._streams = [self._stream(task) for task in self.tasks.values() if task.train_dataset is not None]
        if self._streams:
            args.max_steps = max(len(stream.steps) for stream in self._streams)
        args.gradient_accumulation_steps = 1
        model.set_adapter(tasks[0].name)
        data = {name: task.eval_dataset for name, task in self.tasks.items() if task.eval_dataset is not None}
        super().__init__(
            model=model, args=args, eval_dataset=data or None, processing_class=processing_class, **kwargs
        )
        for name, encoder in self._encoders.items():
            self._describe_data(name, encoder)
        self._weights = {name: self.model.prompt_encoder[name].embedding.weight for name in self.tasks}
        self._forget_losses()

    @staticmethod
    def _room(model: Any) -> int | None:
        # Rows are checked in `_with_token_ids`, by the length of their own prompt.
        return None

    def _with_token_ids(self, task: PromptTask) -> PromptTask:
        encoder, limit = self._encoders[task.name], self._limits[task.name]
        train = encode_data(task.train_dataset, f"{task.name} training", encoder, limit, require_target=True)
        evaluation = encode_data(task.eval_dataset, f"{task.name} evaluation", encoder, limit, require_target=False)
        return replace(task, train_dataset=train, eval_dataset=evaluation)

    def _describe_data(self, name: str, encoder: PromptTokenizer | None) -> None:
        info, train = self.model.prompt_info[name], self.tasks[name].train_dataset
        if encoder is not None:
            info.template = encoder.template
            if train is not None:
                info.example = encoder.readable(train[0])

    # ---- training ----

    def _stream(self, task: PromptTask) -> Stream:
        args, rows = self._asked, len(task.train_dataset)
        seed = args.data_seed if args.data_seed is not None else args.seed
        # A task's epochs say more than the run's steps.
        max_steps = task.max_steps or (-1 if task.num_train_epochs is not None else args.max_steps)
        steps, per_epoch = stream_steps(
            row_order(args.train_sampling_strategy, rows, seed),
            task.per_device_train_batch_size or args.train_batch_size,
            args.gradient_accumulation_steps,
            task.num_train_epochs or args.num_train_epochs,
            max_steps,
            args.dataloader_drop_last,
        )
        return Stream(task.name, task.train_dataset, steps, per_epoch)

    def get_train_dataloader(self) -> DataLoader:
        """Batches that are whole update steps, of the rows of all prompts."""
        if len(self._streams) < len(self.tasks):
            without = next(name for name, task in self.tasks.items() if task.train_dataset is None)
            raise PromptTuningError(f"the task {without!r} has no training data; give it some, or leave the task out.")
        args = self.args
        return mixed_dataloader(
            self._streams,
            self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def get_total_train_batch_size(self, args: PromptTuningArguments) -> int:
        """Rows of an update step, of all prompts together, on average."""
        rows = sum(len(batch) for stream in self._streams for step in stream.steps for batch in step)
        return round(rows / args.max_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`, with a group of parameters for each prompt."""
        if self.optimizer is None:
            optimizer_cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = [
                {
                    "params": [self._weights[name]],
                    "lr": task.learning_rate or self.args.learning_rate,
                    "weight_decay": self.args.weight_decay,
                }
                for name, task in self.tasks.items()
            ]
            self.optimizer = optimizer_cls(groups, **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """As in `Trainer`, with each prompt's schedule over its own steps.

        Raises:
            PromptTuningError: a schedule that follows the loss rather than the steps.
        """
        if self.lr_scheduler is None:
            factors = []
            for stream in self._streams:
                alone = get_scheduler(
                    self.args.lr_scheduler_type,
                    torch.optim.SGD([torch.zeros(1)], lr=1.0),
                    num_warmup_steps=self.args.get_warmup_steps(len(stream.steps)),
                    num_training_steps=len(stream.steps),
                    scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
                )
                if not isinstance(alone, LambdaLR):
                    raise PromptTuningError(
                        f"lr_scheduler_type is {self.args.lr_scheduler_type}, which follows one loss; with several "
                        "prompts use one that follows the steps, such as linear, cosine or constant."
                    )
                factors += alone.lr_lambdas
            self.lr_scheduler = LambdaLR(optimizer if optimizer is not None else self.optimizer, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The backward passes of an update step, one for each micro-batch; the mean of the prompts' losses."""
        losses = [super(MultiPromptTrainer, self).training_step(model, batch) for batch in inputs["micro_batches"]]
        taught = {name for batch in inputs["micro_batches"] for name in batch["adapter_names"]}
        for name in taught:
            self._steps_seen[name] += 1
            if self._weights[name].grad is None:
                # Rows without a label: alone, too, the optimizer would go on with what it remembers.
                self._weights[name].grad = torch.zeros_like(self._weights[name])
        return torch.stack(losses).sum() / len(taught)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The sum of the prompts' losses, each a mean over its own labelled tokens of the step."""
        inputs = dict(inputs)
        items = inputs.pop("items")
        outputs = model(**inputs, only_labelled=True)
        nll = nn.functional.cross_entropy(
            outputs.logits.float(),
            outputs.targets,
            reduction="none",
            label_smoothing=self.args.label_smoothing_factor,
        )
        places = {name: i for i, name in enumerate(self.tasks)}
        prompt_of = torch.tensor([places[name] for name in inputs["adapter_names"]], device=nll.device)
        losses = nll.new_zeros(len(places)).index_add(0, prompt_of[outputs.rows], nll / items[outputs.rows])
        self._losses = self._losses.to(nll.device) + losses.detach()
        return (losses.sum(), outputs) if return_outputs else losses.sum()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # Once: a gradient scaler (fp16) refuses to unscale the same gradients again.
        self.accelerator.unscale_gradients()
        weights = [weight for weight in self._weights.values() if weight.grad is not None]
        norms = [nn.utils.clip_grad_norm_([weight], self.args.max_grad_norm) for weight in weights]
        return torch.stack(norms).norm()

    def _forget_losses(self) -> None:
        self._losses = torch.zeros(len(self.tasks))
        self._steps_seen = dict.fromkeys(self.tasks, 0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`, with `loss_NAME` of each prompt beside their mean."""
        if "loss" in logs:
            for total, (name, steps) in zip(self._losses.tolist(), self._steps_seen.items(), strict=True):
                if steps:
                    logs[f"loss_{name}"] = total / steps
            self._forget_losses()
        super().log(logs, *args, **kwargs)

    # ---- evaluation ----

    def _generation_limit(self) -> int:
        task = self.tasks[self.accelerator.unwrap_model(self.model).active_adapter]
        data = task.train_dataset if task.train_dataset is not None else task.eval_dataset
        return self._encoder.template.max_target_length or longest_target(data)

    @contextmanager
    def _using(self, name: str) -> Iterator[PromptInfo]:
        """Within this context evaluation and description are those of one prompt."""
        model = self.accelerator.unwrap_model(self.model)
        before = model.active_adapter, self._encoder, self._limit
        model.set_adapter(name)
        self._encoder, self._limit = self._encoders[name], self._limits[name]
        try:
            yield model.info
        finally:
            model.set_adapter(before[0])
            self._encoder, self._limit = before[1:]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Each prompt on its task's data: `eval_NAME_accuracy`, and so on; `eval_loss` is the mean of their losses.

        Args:
            eval_dataset: a dict of data by task; default the tasks' own.
            ignore_keys, metric_key_prefix: as in `Trainer`.
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics: dict[str, float] = {}
        losses = []
        for name, rows in self._by_task(data).items():
            prefix = f"{metric_key_prefix}_{name}"
            with self._using(name) as info:
                found = super().evaluate(rows, ignore_keys, prefix)
                info.metrics = _renamed(info.metrics, prefix, "eval")
            metrics |= found
            losses += [found[f"{prefix}_loss"]] if f"{prefix}_loss" in found else []
        if losses:
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        return metrics

    def evaluate_untuned(self, eval_dataset: Any = None) -> dict[str, float]:
        """The metrics of the backbone without a prompt on each task's data: `untuned_NAME_accuracy`, and so on."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics: dict[str, float] = {}
        for name, rows in self._by_task(data).items():
            with self._using(name):
                found = super().evaluate_untuned(rows)
            metrics |= _renamed(found, "untuned", f"untuned_{name}")
        return metrics

    def predict_tasks(self, test_datasets: dict[str, Any], ignore_keys: Any = None) -> dict[str, Any]:
        """A `PredictionOutput`, as `PromptTuningTrainer.predict` gives it, for each task's data."""
        outputs = {}
        for name, rows in self._by_task(test_datasets).items():
            with self._using(name):
                outputs[name] = super().predict(rows, ignore_keys, f"test_{name}")
        return outputs

    def _by_task(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or not data:
            raise PromptTuningError(
                f"the data is a {type(data).__name__}; with several tasks give a dict of task name to data."
            )
        if unknown := [name for name in data if name not in self.tasks]:
            raise PromptTuningError(f"there is no task {unknown[0]!r}; there are {', '.join(map(repr, self.tasks))}.")
        return data

    # ---- files ----

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
            self._save_prompts(Path(output_dir or self.args.output_dir))

    def _save_prompts(self, folder: Path) -> None:
        """Each prompt in a folder of its name, and all their losses in one picture."""
        for name in self.tasks:
            with self._using(name) as info:
                self._describe(info)
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(folder, selected_adapters=list(self.tasks))
        save_curves(folder, {name: self._history(name) for name in self.tasks})

    def _upload(
        self,
        commit_message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
        tokenizer: bool = False,
    ) -> Any:
        from tempfile import mkdtemp

        folder = mkdtemp()
        self._save_prompts(Path(folder))
        if tokenizer:
            self.processing_class.save_pretrained(folder)
        return self._send(folder, folder, None, commit_message, blocking, token, revision)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        found = {file.parent.name for file in Path(resume_from_checkpoint).glob("*/adapter_model.safetensors")}
        if found != set(self.tasks):
            raise PromptTuningError(
                f"{resume_from_checkpoint} holds the prompts {sorted(found)}, and this run trains "
                f"{sorted(self.tasks)}; resume with the same tasks."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def _check_arguments(args: PromptTuningArguments) -> None:
    if args.world_size > 1 or args.n_gpu > 1:
        raise PromptTuningError(
            f"this run has {max(args.world_size, args.n_gpu)} devices; several prompts train on one (set "
            "CUDA_VISIBLE_DEVICES), or each prompt in a run of its own."
        )
    if args.load_best_model_at_end or args.save_strategy == "best":
        raise PromptTuningError(
            "load_best_model_at_end, early_stopping_patience and save_strategy best ask for one best step, and each "
            "of several prompts has its own. Leave them out, and choose from the checkpoints."
        )


def _check_prompts(model: Any, tasks: Sequence[PromptTask]) -> None:
    if not isinstance(model, SoftPrompts):
        raise PromptTuningError(f"model is a {type(model).__name__}; give a transformers backbone.")
    if set(model.peft_config) != {task.name for task in tasks}:
        raise PromptTuningError(
            f"the model has the prompts {sorted(model.peft_config)}, and the tasks are "
            f"{sorted(task.name for task in tasks)}; give a plain backbone, or a prompt for each task."
        )


def _with_label_words(task: PromptTask) -> Any:
    template = task.template
    if template is None:
        return None
    return template.with_label_words(as_dataset(task.train_dataset), as_dataset(task.eval_dataset))


def _encoder(task: PromptTask, tokenizer: Any, model: SoftPrompts) -> PromptTokenizer | None:
    if tokenizer is None:
        raise PromptTuningError("processing_class is not given; give the backbone's tokenizer.")
    template = task.template or model.prompt_info[task.name].template
    return None if template is None else PromptTokenizer(template, tokenizer, model.config.is_encoder_decoder)


def _renamed(metrics: dict[str, float], prefix: str, new: str) -> dict[str, float]:
    return {name.replace(prefix, new, 1) if name.startswith(prefix) else name: v for name, v in metrics.items()}
