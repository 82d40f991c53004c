"""Search for hyperparameters: all trials share one backbone, each gets a new prompt, and the best prompt is kept."""

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
    """Trainer that searches for hyperparameters; a base class of `PromptTuningTrainer`."""

    _trial_folders: dict[str, Path]

    def _introduced(self, model: nn.Module) -> nn.Module:
        """Set the trainer's template, layout and example row on a new model; return the model."""
        raise NotImplementedError

    def train(self, *args: Any, trial: Any = None, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does. A trial of a search saves its prompt (some kilobytes) in `run-<number>`."""
        output = super().train(*args, trial=trial, **kwargs)
        number = getattr(trial, "number", None)
        if number is not None:
            if self.objective is None or self.args.load_best_model_at_end:
                # The kept prompt was not the one in the last evaluation, so evaluate it.
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
        """Search as `Trainer` does. Afterwards the trainer holds the best trial's prompt, metrics and hyperparameters.

        `model_init(trial)` makes each trial's prompt, always on the same backbone. It is also called once with None,
        before the search. It suggests the properties of the prompt (`trial.suggest_int("num_virtual_tokens", …)`);
        `hp_space` suggests the training arguments.

        Args:
            hp_space: function that returns a trial's `TrainingArguments` values by name.
            compute_objective: function from an evaluation's metrics to the objective; default: the value of
                `metric_for_best_model`, or the loss. (`Trainer`'s default is the sum of all metrics.)
            n_trials: number of trials.
            direction: "minimize" or "maximize"; default: the direction of the metric, from `greater_is_better` or its
                name. Pass it if you pass `compute_objective`.
            **kwargs: passed to `optuna.create_study` (`sampler`, `pruner`, `storage`, …) and `Study.optimize`.

        Raises:
            PromptTuningError: the evaluation does not return the metric.
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
        """Load a trial's prompt into the trainer, as if that trial had been trained last."""
        # After a search there is no model. Only the backbone of this new one is used.
        model = super().call_model_init()
        for name, value in hyperparameters.items():
            if hasattr(self.args, name):
                setattr(self.args, name, value)
        best = type(model).from_pretrained(model.get_base_model(), folder, is_trainable=True)
        self.model = self.model_wrapped = self._introduced(best)
        if self.place_model_on_device:
            self._move_model_to_device(self.model, self.args.device)
        self.state = TrainerState.load_from_json(str(folder / STATE_FILE))
        # These still refer to the last trial's prompt.
        self.optimizer = self.lr_scheduler = None
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, None, None
