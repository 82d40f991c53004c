"""Search for hyperparameters: all trials share one backbone, each gets a new prompt, and the best prompt is kept."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments

from ..models.metric_direction import greater_is_better, value_of
from ..models.saving import folder_of
from ..models.soft_prompts import SoftPrompts
from ..prompts.repository_files import STATE
from .callbacks import PromptAveragingCallback


def objective_of(args: TrainingArguments) -> Callable[[dict[str, float]], float]:
    """Return the default objective: an evaluation's value of `metric_for_best_model`, or its loss."""
    return partial(value_of, metric=args.metric_for_best_model or "loss")


def direction_of(args: TrainingArguments) -> str:
    """Return the direction of `metric_for_best_model`: "minimize" or "maximize"."""
    greater = greater_is_better(args.metric_for_best_model or "loss", args.greater_is_better)
    return "maximize" if greater else "minimize"


def keep_trial(trainer: Trainer, trial: Any) -> Path:
    """Save a trial's prompt (some kilobytes) in `run-<number>`, and return that folder."""
    if trainer.objective is None or not _last_was_evaluated(trainer):
        # The kept prompt was not the one in the last evaluation, so evaluate it.
        trainer.objective = trainer.compute_objective(trainer.evaluate())
    folder = Path(trainer._get_output_dir(trial))
    trainer.save_model(str(folder), _internal_call=True)
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / STATE))
    return folder


def _last_was_evaluated(trainer: Trainer) -> bool:
    """Tell whether the last evaluation of a run was of the prompt with which it ended."""
    is_another = trainer.args.load_best_model_at_end or any(
        isinstance(callback, PromptAveragingCallback) for callback in trainer.callback_handler.callbacks
    )
    steps = [log["step"] for log in trainer.state.log_history if any(name.startswith("eval_") for name in log)]
    return not is_another and bool(steps) and steps[-1] == trainer.state.global_step


def load_trial(model: SoftPrompts, folder: Path) -> SoftPrompts:
    """Return a model with the prompts of a trial, on the backbone of `model`, which has prompts of the same names."""
    first, *others = model.peft_config
    trains = {name: prompt.embedding.weight.requires_grad for name, prompt in model.prompt_encoder.items()}
    loaded = type(model).from_pretrained(model.get_base_model(), folder_of(first, folder), first, trains[first])
    for name in others:
        loaded.load_adapter(folder_of(name, folder), name, trains[name])
    loaded.set_adapter(model.active_adapter)
    return loaded


def restore_trial(trainer: Trainer, model: nn.Module, folder: Path, hyperparameters: dict[str, Any]) -> None:
    """Set a trainer's model, state and arguments as if this trial, with its hyperparameters, had been the last."""
    for name, value in hyperparameters.items():
        if hasattr(trainer.args, name):
            setattr(trainer.args, name, value)
    trainer.model = trainer.model_wrapped = model
    if trainer.place_model_on_device:
        trainer._move_model_to_device(model, trainer.args.device)
    trainer.state = TrainerState.load_from_json(str(folder / STATE))
    # These still refer to the last trial's prompt.
    trainer.optimizer = trainer.lr_scheduler = None
    handler = trainer.callback_handler
    handler.model, handler.optimizer, handler.lr_scheduler = model, None, None
