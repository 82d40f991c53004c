"""A Trainer's hyperparameter search: one backbone for all trials, a new prompt for each, and the best one kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer_utils import BestRun, TrainOutput

from ..models.metric_direction import greater_is_better, value_of
from .evaluation import EvaluatingTrainer

STATE_FILE = "trainer_state.json"


class SearchingTrainer(EvaluatingTrainer):
    """The part of `PromptTuningTrainer` that searches for hyperparameters."""

    _trial_folders: dict[str, Path]

    def _introduced(self, model: nn.Module) -> nn.Module:
        """Tells a new model what the trainer knows: the template, the layout, an example."""
        raise NotImplementedError

    def train(self, *args: Any, trial: Any = None, **kwargs: Any) -> TrainOutput:
        """As in `Trainer`. A trial of a search leaves its prompt (some kilobytes) in `run-<number>`."""
        output = super().train(*args, trial=trial, **kwargs)
        number = getattr(trial, "number", None)
        if number is not None:
            if self.objective is None or self.args.load_best_model_at_end:
                # The prompt that is kept is not the one of the last evaluation.
                self.objective = self.compute_objective(self.evaluate())
            folder = Path(self._get_output_dir(trial))
            self.save_model(str(folder), _internal_call=True)
            if self.is_world_process_zero():
                self.state.save_to_json(str(folder / STATE_FILE))
            self._trial_folders[str(number)] = folder
        return output

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As in `Trainer`, and the trainer then holds the best trial's prompt, metrics and hyperparameters.

        `model_init(trial)` makes each trial's prompt, on one backbone; it is called with None once, for the start.
        It suggests what a prompt is made of (`trial.suggest_int("num_virtual_tokens", …)`), `hp_space` what it is
        trained with.

        Args:
            hp_space: `TrainingArguments` by name.
            compute_objective: of an evaluation's metrics; default the value of `metric_for_best_model`, or the loss.
                (Trainer's own default is the sum of all metrics.)
            n_trials: how many.
            direction: default the metric's, by `greater_is_better` or its name; of a `compute_objective` of your own
                give it.
            **kwargs: to `optuna.create_study` (`sampler`, `pruner`, `storage`, …) and `Study.optimize`.

        Raises:
            PromptTuningError: the evaluation has no such metric.
        """
        name = self.args.metric_for_best_model or "loss"

        def metric(metrics: dict[str, float]) -> float:
            return value_of(metrics, name)

        self._trial_folders = {}
        if direction is None:
            direction = "maximize" if greater_is_better(name, self.args.greater_is_better) else "minimize"
        best = super().hyperparameter_search(
            hp_space, compute_objective or metric, n_trials, direction=direction, **kwargs
        )
        if isinstance(best, BestRun) and best.run_id in self._trial_folders:
            self._take(self._trial_folders[best.run_id], best.hyperparameters)
        return best

    def _take(self, folder: Path, hyperparameters: dict[str, Any]) -> None:
        """Makes a trial's prompt the trainer's, as if it had been trained last."""
        # A search ends without a model. Of this one only the backbone is used.
        model = super().call_model_init()
        for name, value in hyperparameters.items():
            if hasattr(self.args, name):
                setattr(self.args, name, value)
        best = type(model).from_pretrained(model.get_base_model(), folder, is_trainable=True)
        self.model = self.model_wrapped = self._introduced(best)
        if self.place_model_on_device:
            self._move_model_to_device(self.model, self.args.device)
        self.state = TrainerState.load_from_json(str(folder / STATE_FILE))
        # What still holds the last trial's prompt.
        self.optimizer = self.lr_scheduler = None
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, None, None
