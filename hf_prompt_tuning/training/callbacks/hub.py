"""The best prompt so far, on the Hub as training goes."""

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
from ...sharding import whole
from ...training.arguments import PromptTuningArguments
from .watched import watched

logger = logging.getLogger(__name__)


class PromptHubCallback(TrainerCallback):
    """Pushes the prompt, with its card, whenever an evaluation is better than all before.

    A push that fails is logged in one line, and training goes on; the next better evaluation tries again. What is
    evaluated after training, or under another prefix than the metric's (`metric_key_prefix="test"`, another data set),
    pushes nothing.

    Args:
        repo_id: made where it does not exist.
        metric: the one that decides; default the Trainer's `metric_for_best_model`, or the evaluation's loss.
        greater_is_better: default what the run asked for its own metric, else by the metric's name.
        private: whether a repository that is made now is private.
        token: default the one of `hf auth login`.
        revision: the branch; made from the main one where it does not exist.
        subfolder: of the repository; default its root.

    Raises:
        PromptTuningError: an evaluation has no such metric, its value is no number, it is not known which direction
            of it is better, or there can be no such repository, branch or folder.
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
        Destination(repo_id, revision, private, token)  # refuses what cannot be, before any training
        self.revision, self.subfolder = revision, checked_subfolder(subfolder)
        self.repo_id = repo_id
        self.metric = metric
        self.greater_is_better = greater_is_better
        self.private = private
        self.token = token
        self.best: float | None = None
        self._over = False
        self._other: list[str] | None = None  # the metrics of an evaluation that was not the one

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at the evaluations from here on."""
        self._over, self._other = False, None
        self._metric(args)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says where all data sets were evaluated, and none had the metric."""
        if self._other is not None and self.best is None:
            raise self._missing(self._metric(args)[0], self._other)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks no longer."""
        self.on_step_begin(args, state, control)
        self._over = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: nn.Module, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Pushes, where this evaluation is the best so far."""
        name, greater = self._metric(args)
        if self._over or name not in metrics:
            self._pass_over(name, metrics)
            return
        value = metrics[name]
        if not isinstance(value, int | float):
            raise PromptTuningError(f"PromptHubCallback goes by {name!r}, which is {value!r:.80}; name a number.")
        if not is_better(value, self.best, greater):
            return
        model = watched(model, self)
        # On every process, because what is sharded is brought together: the embedding, for the nearest words, and with
        # ZeRO-3 the prompt.
        with whole(model.prompt_encoder[model.active_adapter].embedding):
            describe_run(model, args, state, kwargs.get("processing_class"))
            model.info.metrics = to_record(metrics)
            message = f"Step {state.global_step}: {name} {value:.4g}"
            pushed = [self._push(model, state, message) if state.is_world_process_zero else None]
        if dist.is_initialized() and dist.get_world_size() > 1:
            # All processes remember the same best one, or one of them would wait for the others at the next.
            dist.broadcast_object_list(pushed, src=0)
        if pushed[0]:
            self.best = value

    def _metric(self, args: TrainingArguments) -> tuple[str, bool]:
        """The metric that decides, with its prefix, and whether more of it is better."""
        name = self.metric or args.metric_for_best_model or "loss"
        asked, runs = self.greater_is_better, args.metric_for_best_model
        if asked is None and runs is not None and name.removeprefix("eval_") == runs.removeprefix("eval_"):
            # transformers' arguments take whatever does not end in "loss" for a score.
            guessed = args.greater_is_better == (not runs.endswith("loss"))
            if isinstance(args, PromptTuningArguments) or not guessed or by_name(name) is None:
                asked = args.greater_is_better
        return name if name.startswith("eval_") else f"eval_{name}", direction(name, asked)

    def _pass_over(self, name: str, metrics: dict[str, float]) -> None:
        """Of several data sets one has the metric; other prefixes are not the evaluation that is looked at."""
        prefixes = [key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")] or ["eval"]
        if self._over or not any(prefix.split("_")[0] == "eval" for prefix in prefixes):
            return
        if any(name.startswith(f"{prefix}_") for prefix in prefixes):
            raise self._missing(name, sorted(metrics))
        self._other = sorted(metrics)

    @staticmethod
    def _missing(name: str, there: list[str]) -> PromptTuningError:
        return PromptTuningError(
            f"PromptHubCallback goes by {name!r}, and the evaluation has {', '.join(there)}; give it another metric."
        )

    def _push(self, model: SoftPrompts, state: TrainerState, message: str) -> bool:
        """Whether the push arrived."""
        try:
            model.push_to_hub(
                self.repo_id,
                private=self.private,
                token=self.token,
                revision=self.revision,
                subfolder=self.subfolder,
                commit_message=message,
            )
        except Exception as error:  # the network raises many kinds, and training goes on whichever it is
            logger.warning("The prompt of step %d could not be pushed: %s", state.global_step, first_line(error))
            return False
        return True
