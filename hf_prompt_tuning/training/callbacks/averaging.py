"""Average a prompt over the last steps of a run (stochastic weight averaging, Izmailov et al. 2018)."""

import base64
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ...errors import PromptTuningError
from ...models.soft_prompts import SoftPrompts
from .watched import watched

logger = logging.getLogger(__name__)


class PromptAveragingCallback(TrainerCallback, ExportableState):
    """Let a run end with the mean of its prompts after each of its last steps, in place of the last one.

    With few rows a prompt still moves to and fro at the end of a run, and its mean is mostly nearer to where it would
    settle. A classification head that trains with the prompt is averaged with it. Of several prompts, each is.

    Evaluations during the run are of the prompt of their step. Checkpoints hold it and the mean so far, so that a
    resumed run ends the same, bit for bit. At the end the metrics of prompts that it changed are forgotten:
    evaluate again.

    Args:
        share: the share of the run's steps whose prompts are averaged, above 0 and up to 1; one step at least.

    Raises:
        PromptTuningError: the share is none; the run also loads its best checkpoint at its end; or it was resumed from
            a checkpoint after the first of these steps, without the mean. In transformers' own Trainer,
            `restore_callback_states_from_checkpoint=True` brings it back.
    """

    def __init__(self, share: float = 0.5):
        if not 0 < share <= 1:
            raise PromptTuningError(f"the share of steps to average is {share}; give a number above 0, up to 1.")
        self.share = share
        self.steps = 0
        self.means: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves, as text: the number of steps that were averaged, and the means."""
        means = {name: _to_text(mean) for name, mean in self.means.items()}
        return {"args": {"share": self.share}, "attributes": {"steps": self.steps, "means": means}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Count the steps to average, and take up the mean of a resumed run."""
        if args.load_best_model_at_end:
            raise PromptTuningError(
                "load_best_model_at_end (or early_stopping_patience) keeps the prompt of one step, and the mean of "
                "the last steps is asked for, too; leave one of them out."
            )
        self._last_alone = state.max_steps - max(1, round(self.share * state.max_steps))
        done = max(0, state.global_step - self._last_alone)
        if done == 0:
            self.steps, self.means = 0, {}
        elif self.steps != done:
            raise PromptTuningError(
                f"the run is resumed at step {state.global_step}, and the checkpoint has the mean of {self.steps} "
                f"steps in place of {done}; resume from step {self._last_alone} or before, with the same length and "
                "share, and with restore_callback_states_from_checkpoint=True."
            )
        for name, parameter in _trained(watched(model, self)):
            if hasattr(parameter, "ds_id"):
                raise PromptTuningError(
                    "DeepSpeed ZeRO-3 spreads the prompt over processes, and its steps cannot be averaged; use ZeRO-2."
                )
            if isinstance(text := self.means.get(name), str):
                self.means[name] = _from_text(text, parameter)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Add this step's prompts to the means."""
        if state.global_step <= self._last_alone:
            return
        self.steps += 1
        for name, parameter in _trained(watched(model, self)):
            mean = self.means.setdefault(name, parameter.detach().clone().float())
            # A prompt that stands still stays as it is, bit for bit.
            mean += (parameter.float() - mean) / self.steps

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Put the means in place of the last step's prompts."""
        model = watched(model, self)
        if not self.steps:
            logger.warning("The run ended at step %d, before a step to average.", state.global_step)
            return
        for name, parameter in _trained(model):
            if torch.equal(parameter.float(), self.means[name]):
                continue  # of a prompt that stood still, or of one step alone: what is known of it stays true
            parameter.copy_(self.means[name])
            info = model.prompt_info[name.partition(".")[0]]
            info.metrics, info.confusion_matrix, info.calibration = {}, {}, {}
        logger.info("The prompt is the mean of those after the last %d steps.", self.steps)


def _trained(model: SoftPrompts) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters of all prompts that train, and of their heads."""
    for name, parameter in model.prompt_encoder.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _to_text(mean: Tensor | str) -> str:
    return mean if isinstance(mean, str) else base64.b64encode(mean.cpu().numpy().tobytes()).decode()


def _from_text(text: str, like: Tensor) -> Tensor:
    values = np.frombuffer(base64.b64decode(text), np.float32).reshape(like.shape)
    return torch.tensor(values, device=like.device)
