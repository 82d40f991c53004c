"""Trainer for several prompts on one frozen backbone; each prompt trains as in a run of its own."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import get_scheduler

from ..errors import PromptTuningError
from ..layouts.base import token_nll
from ..training.arguments import PromptTuningArguments
from ..training.callbacks import PromptHubCallback
from .batches import Stream, mixed_dataloader, row_order, stream_steps
from .task import PromptTask
from .task_trainer import TaskTrainer


class MultiPromptTrainer(TaskTrainer):
    """Train the prompts of several tasks in mixed batches. Each prompt ends as it would in a run of its own.

    Step s of the run is step s of every prompt, with that prompt's own rows, loss, gradient clipping, learning rate
    and schedule. A prompt that has finished its steps no longer changes. The layouts combine the rows, so that the
    backbone is called once for all prompts.

    Args:
        model: a plain backbone, which gets a prompt for each task, or a prompt-tuning model with these prompts.
        args: as for `PromptTuningTrainer`. A task may have its own learning rate, batch size and number of epochs or
            steps.
        tasks: the prompts to train, with their data.
        processing_class: the backbone's tokenizer.
        **kwargs: as in `PromptTuningTrainer`.

    Raises:
        PromptTuningError: the model, a task or an argument is invalid.
    """

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
        _check_arguments(args)
        _check_optimizers(kwargs.get("optimizers"))
        for callback in kwargs.get("callbacks") or ():
            _check_callback(callback, [task.name for task in tasks])
        self._asked = copy.copy(args)
        args.gradient_accumulation_steps = 1
        super().__init__(model, args, tasks, processing_class, **kwargs)
        self._streams = [self._stream(task) for task in self.tasks.values() if task.train_dataset is not None]
        if self._streams:
            args.max_steps = max(len(stream.steps) for stream in self._streams)
        self._weights = {name: self.model.prompt_encoder[name].embedding.weight for name in self.tasks}
        self._forget_losses()

    def add_callback(self, callback: Any) -> None:
        """Add a callback as `Trainer` does.

        Raises:
            PromptTuningError: the callback supports only one prompt.
        """
        if hasattr(self, "tasks"):
            _check_callback(callback, list(self.tasks))
        super().add_callback(callback)

    def _stream(self, task: PromptTask) -> Stream:
        args, rows = self._asked, len(task.train_dataset)
        seed = args.data_seed if args.data_seed is not None else args.seed
        # A task's epochs override the run's steps.
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
        """Return a data loader whose batches are whole update steps with the rows of all prompts.

        Raises:
            PromptTuningError: a task has no training data.
        """
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
        """Return the mean number of rows in an update step, over all prompts together."""
        rows = sum(len(batch) for stream in self._streams for step in stream.steps for batch in step)
        return round(rows / args.max_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer as `Trainer` does, with a parameter group for each prompt."""
        if self.optimizer is None:
            optimizer_cls, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.model
            )
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
        """Create the scheduler as `Trainer` does; each prompt's schedule covers its own steps.

        Raises:
            PromptTuningError: the schedule depends on the loss instead of the steps.
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
        """Run the backward passes of an update step, one per micro-batch; return the mean of the prompts' losses."""
        losses = [super(MultiPromptTrainer, self).training_step(model, batch) for batch in inputs["micro_batches"]]
        taught = {name for batch in inputs["micro_batches"] for name in batch["adapter_names"]}
        for name in taught:
            self._steps_seen[name] += 1
            if self._weights[name].grad is None:
                # The rows have no labels. Give a zero gradient, so that the optimizer still makes a step from its
                # state, as in a run of its own.
                self._weights[name].grad = torch.zeros_like(self._weights[name])
        return torch.stack(losses).sum() / len(taught)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the sum of the prompts' losses. Each is a mean over that prompt's labelled tokens in the step."""
        inputs = dict(inputs)
        items = inputs.pop("items")
        outputs = model(**inputs, only_labelled=True)
        nll = token_nll(outputs.logits, outputs.targets, self.args.label_smoothing_factor)
        places = {name: i for i, name in enumerate(self.tasks)}
        prompt_of = torch.tensor([places[name] for name in inputs["adapter_names"]], device=nll.device)
        losses = nll.new_zeros(len(places)).index_add(0, prompt_of[outputs.rows], nll / items[outputs.rows])
        self._losses = self._losses.to(nll.device) + losses.detach()
        return (losses.sum(), outputs) if return_outputs else losses.sum()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # Unscale once: a gradient scaler (fp16) refuses to unscale the same gradients again.
        self.accelerator.unscale_gradients()
        weights = [weight for weight in self._weights.values() if weight.grad is not None]
        norms = [nn.utils.clip_grad_norm_([weight], self.args.max_grad_norm) for weight in weights]
        return torch.stack(norms).norm()

    def _forget_losses(self) -> None:
        self._losses = torch.zeros(len(self.tasks))
        self._steps_seen = dict.fromkeys(self.tasks, 0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as `Trainer` does, and add each prompt's loss as `loss_NAME` to their mean."""
        if "loss" in logs:
            for total, (name, steps) in zip(self._losses.tolist(), self._steps_seen.items(), strict=True):
                if steps:
                    logs[f"loss_{name}"] = total / steps
            self._forget_losses()
        super().log(logs, *args, **kwargs)


def _check_arguments(args: PromptTuningArguments) -> None:
    if args.world_size > 1 or args.n_gpu > 1:
        raise PromptTuningError(
            f"this run has {max(args.world_size, args.n_gpu)} devices; several prompts train on one (set "
            "CUDA_VISIBLE_DEVICES), or each prompt in a run of its own."
        )
    if args.auto_find_batch_size:
        raise PromptTuningError(
            "auto_find_batch_size is on, and each of several prompts has its own batches; give "
            "per_device_train_batch_size."
        )
    if args.load_best_model_at_end or args.save_strategy == "best":
        raise PromptTuningError(
            "load_best_model_at_end, early_stopping_patience and save_strategy best ask for one best step, and each "
            "of several prompts has its own. Leave them out, and choose from the checkpoints."
        )


def _check_optimizers(optimizers: Any) -> None:
    if optimizers is not None and any(one is not None for one in optimizers):
        raise PromptTuningError(
            "optimizers are given, and each of several prompts has its rate and schedule; give "
            "optimizer_cls_and_kwargs, and learning_rate to a task."
        )


def _check_callback(callback: Any, names: Sequence[str]) -> None:
    kind = callback if isinstance(callback, type) else type(callback)
    if issubclass(kind, PromptHubCallback):
        raise PromptTuningError(
            f"PromptHubCallback pushes one prompt, and this run trains {', '.join(map(repr, names))}; leave it out, "
            "and give push_to_hub with hub_strategy."
        )
