"""Push the best prompt so far to the Hub during training."""

import logging
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ...errors import PromptTuningError, first_line
from ...models.metric_direction import by_name, is_better
from ...models.metric_direction import greater_is_better as direction
from ...models.recording import describe_run, to_record
from ...models.soft_prompts import SoftPrompts
from ...prompts.pushing import Destination, checked_subfolder
from ...training.arguments import PromptTuningArguments
from .watched import watched

logger = logging.getLogger(__name__)


class PromptHubCallback(TrainerCallback):
    """Push the prompt, with its card, after each evaluation that is better than all before.

    If a push fails, the error is logged in one line and training goes on. The next better evaluation tries again. An
    evaluation after training, or under another prefix than the metric's (`metric_key_prefix="test"`, another data
    set), pushes nothing.

    Args:
        repo_id: the repository, created if missing.
        metric: the metric to compare; default: the Trainer's `metric_for_best_model`, or the evaluation's loss.
        greater_is_better: direction of the metric; default: the run's `greater_is_better` if the metric is the run's,
            otherwise derived from the metric's name.
        private: whether a new repository is private.
        token: default: the token of `hf auth login`.
        revision: the branch, created from the main branch if missing.
        subfolder: folder in the repository; default: its root.

    Raises:
        PromptTuningError: an evaluation does not return the metric, its value is not a number, its direction is
            unknown, or the name of the repository, branch or folder is invalid.
    """

    def __init__(
        self,
        repo_id: str,
        metric: str | None = None,
        greater_is_better: bool | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
    ):
        if metric is not None:
            direction(metric, greater_is_better)
        Destination(repo_id, revision, private, token)  # raises for invalid names, before any training
        self.revision, self.subfolder = revision, checked_subfolder(subfolder)
        self.repo_id = repo_id
        self.metric = metric
        self.greater_is_better = greater_is_better
        self.private = private
        self.token = token
        self.best: float | None = None
        self._over = False
        self._other_metrics: list[str] | None = None  # of an evaluation without the metric

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to watch the evaluations."""
        self._over, self._other_metrics = False, None
        self._metric(args)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise PromptTuningError if all data sets have been evaluated and none has the metric."""
        if self._other_metrics is not None and self.best is None:
            raise self._missing(self._metric(args)[0], self._other_metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching the evaluations."""
        self.on_step_begin(args, state, control)
        self._over = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: nn.Module, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Push the prompt if this evaluation is the best so far."""
        name, greater = self._metric(args)
        if self._over or name not in metrics:
            self._ignore_or_refuse(name, metrics)
            return
        value = metrics[name]
        if not isinstance(value, int | float):
            raise PromptTuningError(f"PromptHubCallback goes by {name!r}, which is {value!r:.80}; name a number.")
        if not is_better(value, self.best, greater):
            return
        model = watched(model, self)
        # Run on every process, because sharded weights are gathered: the embedding, for the nearest words, and the
        # prompt (ZeRO-3).
        with model.whole_prompt():
            describe_run(model, args, state, kwargs.get("processing_class"))
            model.info.metrics = to_record(metrics)
            message = f"Step {state.global_step}: {name} {value:.4g}"
            pushed = [self._push(model, state, message) if state.is_world_process_zero else None]
        if dist.is_initialized() and dist.get_world_size() > 1:
            # All processes must store the same best value. Otherwise one would later wait for the others forever.
            dist.broadcast_object_list(pushed, src=0)
        if pushed[0]:
            self.best = value

    def _metric(self, args: TrainingArguments) -> tuple[str, bool]:
        """Return the metric to compare, with its prefix, and whether a greater value is better."""
        name = self.metric or args.metric_for_best_model or "loss"
        greater, runs_metric = self.greater_is_better, args.metric_for_best_model
        if greater is None and runs_metric and name.removeprefix("eval_") == runs_metric.removeprefix("eval_"):
            # transformers treats every name that does not end in "loss" as a score.
            guessed = args.greater_is_better == (not runs_metric.endswith("loss"))
            if isinstance(args, PromptTuningArguments) or not guessed or by_name(name) is None:
                greater = args.greater_is_better
        return name if name.startswith("eval_") else f"eval_{name}", direction(name, greater)

    def _ignore_or_refuse(self, name: str, metrics: dict[str, float]) -> None:
        """Handle an evaluation without the metric: ignore it, or raise if it should have the metric.

        With several data sets, only one has the metric. Evaluations under other prefixes are ignored.
        """
        prefixes = [key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")] or ["eval"]
        if self._over or not any(prefix.split("_")[0] == "eval" for prefix in prefixes):
            return
        if any(name.startswith(f"{prefix}_") for prefix in prefixes):
            raise self._missing(name, sorted(metrics))
        self._other_metrics = sorted(metrics)

    @staticmethod
    def _missing(name: str, metrics: list[str]) -> PromptTuningError:
        return PromptTuningError(
            f"PromptHubCallback goes by {name!r}, and the evaluation has {', '.join(metrics)}; give it another metric."
        )

    def _push(self, model: SoftPrompts, state: TrainerState, message: str) -> bool:
        """Push the prompt; tell whether the push succeeded."""
        try:
            model.push_to_hub(
                self.repo_id,
                private=self.private,
                token=self.token,
                revision=self.revision,
                subfolder=self.subfolder,
                commit_message=message,
            )
        except Exception as error:  # the network raises many error types; training goes on in any case
            logger.warning("The prompt of step %d could not be pushed: %s", state.global_step, first_line(error))
            return False
        return True
