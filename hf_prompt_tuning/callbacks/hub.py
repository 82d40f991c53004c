"""The best prompt so far, on the Hub as training goes."""

import logging
from typing import Any

from torch import nn
from transformers import TrainerCallback

from ..describing import describe_run, to_record
from ..errors import PromptTuningError, first_line
from ..pushing import Destination, checked_subfolder
from .watched import watched

logger = logging.getLogger(__name__)


class PromptHubCallback(TrainerCallback):
    """Pushes the prompt, with its card, whenever an evaluation is better than all before.

    A push that fails is logged in one line, and training goes on; the next better evaluation tries again.

    Args:
        repo_id: made where it does not exist.
        metric: the one that decides; default the Trainer's `metric_for_best_model`, or the evaluation's loss.
        greater_is_better: default the Trainer's `greater_is_better`; where that is not set, all but losses and
            perplexities are.
        private: whether a repository that is made now is private.
        token: default the one of `hf auth login`.
        revision: the branch; made from the main one where it does not exist.
        subfolder: of the repository; default its root.

    Raises:
        PromptTuningError: an evaluation has no such metric, or there can be no such repository, branch or folder.
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
        Destination(repo_id, revision, private, token)  # refuses what cannot be, before any training
        self.revision, self.subfolder = revision, checked_subfolder(subfolder)
        self.repo_id = repo_id
        self.metric = metric
        self.greater_is_better = greater_is_better
        self.private = private
        self.token = token
        self.best: float | None = None

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: nn.Module, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Pushes, where this evaluation is the best so far."""
        name = self.metric or args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            raise PromptTuningError(
                f"PromptHubCallback goes by {name!r}, and the evaluation has {', '.join(sorted(metrics))}; "
                "give it another metric."
            )
        if not self._is_better(metrics[name], name, args.greater_is_better):
            return
        before, self.best = self.best, metrics[name]
        model = watched(model, self)
        if not state.is_world_process_zero:
            return
        describe_run(model, args, state, kwargs.get("processing_class"))
        model.info.metrics = to_record(metrics)
        message = f"Step {state.global_step}: {name} {metrics[name]:.4g}"
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
            self.best = before
            logger.warning("The prompt of step %d could not be pushed: %s", state.global_step, first_line(error))

    def _is_better(self, value: float, name: str, trainers: bool | None) -> bool:
        greater = self.greater_is_better if self.greater_is_better is not None else trainers
        if greater is None:
            greater = not name.endswith(("loss", "perplexity"))
        return self.best is None or (value > self.best if greater else value < self.best)
