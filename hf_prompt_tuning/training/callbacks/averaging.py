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
from ...prompts.repository_files import STATE
from .watched import watched

logger = logging.getLogger(__name__)


class PromptAveragingCallback(TrainerCallback, ExportableState):
    """Let a run end with the mean of its prompts after each of its last steps, in place of the last one.

    With few rows a prompt still moves to and fro at the end of a run, and its mean is mostly nearer to where it would
    settle. A classification head that trains with the prompt is averaged with it. Each of several prompts is averaged
    over the last of its own steps.

    Evaluations during the run are of the prompt of their step. Checkpoints hold it and the mean so far, so that a
    resumed run ends the same, bit for bit. At the end the metrics of prompts that it changed are forgotten:
    evaluate again.

    Args:
        share: the share of a prompt's steps that are averaged, above 0 and up to 1; one step at least.

    Raises:
        PromptTuningError: the share is none; the run also loads its best checkpoint at its end; or it was resumed from
            a checkpoint after the first of these steps, without the mean or with a damaged one. In transformers' own
            Trainer, `restore_callback_states_from_checkpoint=True` brings it back.
    """

    def __init__(self, share: float = 0.5):
        if not 0 < share <= 1:
            raise PromptTuningError(f"the share of steps to average is {share}; give a number above 0, up to 1.")
        self.share = share
        self.steps: dict[str, int] = {}
        self.means: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves, as text: the means, and the number of steps in each."""
        means = {name: _to_text(mean) for name, mean in self.means.items()}
        return {"args": {"share": self.share}, "attributes": {"steps": self.steps, "means": means}}

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Count the steps to average, and take up the means of a resumed run."""
        if args.load_best_model_at_end:
            raise PromptTuningError(
                "load_best_model_at_end (or early_stopping_patience) keeps the prompt of one step, and the mean of "
                "the last steps is asked for, too; leave one of them out."
            )
        # The data of several prompts tell how many steps each has (`MixedBatches`).
        own = getattr(getattr(train_dataloader, "dataset", None), "steps_of_prompts", {})
        self._averaged = {}
        for name, parameter in _trained(watched(model, self)):
            if hasattr(parameter, "ds_id"):
                raise PromptTuningError(
                    "DeepSpeed ZeRO-3 spreads the prompt over processes, and its steps cannot be averaged; use ZeRO-2."
                )
            last = own.get(_prompt_of(name), state.max_steps)
            self._averaged[name] = range(max(0, last - max(1, round(self.share * last))), last)
            self._take_up(name, parameter, state.global_step)

    def _take_up(self, name: str, parameter: nn.Parameter, step: int) -> None:
        """Go on with a checkpoint's mean, or begin a new one. Raise PromptTuningError if it is of other steps."""
        averaged, found = self._averaged[name], self.steps.get(name, 0)
        done = len(range(averaged.start, min(step, averaged.stop)))
        if done == 0:
            self.steps.pop(name, None)
            self.means.pop(name, None)
        elif found != done:
            raise PromptTuningError(
                f"the run is resumed at step {step}, and the checkpoint has the mean of {found} steps of "
                f"{_prompt_of(name)!r} in place of {done}; resume from step {averaged.start} or before, "
                "with the same length and share, and with restore_callback_states_from_checkpoint=True."
            )
        else:
            self.means[name] = self._resumed(name, parameter, step)

    def _resumed(self, name: str, parameter: nn.Parameter, step: int) -> Tensor:
        """Return the mean of a resumed run. Raise PromptTuningError if the checkpoint's is missing or damaged."""
        mean = self.means.get(name)
        try:
            return mean if isinstance(mean, Tensor) else _from_text(mean, parameter)
        except ValueError as error:
            raise PromptTuningError(
                f"{STATE} of the checkpoint at step {step} holds a damaged mean of {name!r}: {error}. Resume from "
                f"another checkpoint (up to step {self._averaged[name].start} they hold no mean), or start anew."
            ) from error

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Add this step's prompts to the means."""
        for name, parameter in _trained(watched(model, self)):
            if state.global_step - 1 not in self._averaged[name]:
                continue
            self.steps[name] = self.steps.get(name, 0) + 1
            mean = self.means.setdefault(name, parameter.detach().clone().float())
            # A prompt that stands still stays as it is, bit for bit.
            mean += (parameter.float() - mean) / self.steps[name]

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Put the means in place of the last step's prompts."""
        model, steps = watched(model, self), {}
        for name, parameter in _trained(model):
            if name in self.means and not torch.equal(parameter.float(), self.means[name]):
                parameter.copy_(self.means[name])
                # What is known of a prompt that stood still, or of one step alone, stays true.
                info = model.prompt_info[_prompt_of(name)]
                info.metrics, info.confusion_matrix, info.calibration = {}, {}, {}
            steps[_prompt_of(name)] = self.steps.get(name, 0)  # a head has as many as its prompt
        for prompt, averaged in steps.items():
            if not averaged:
                logger.warning("The run ended at step %d, before a step of %r to average.", state.global_step, prompt)
                continue
            logger.info("The prompt %r is the mean of those after its last %d steps.", prompt, averaged)


def _prompt_of(parameter: str) -> str:
    """Return the name of the prompt that a parameter belongs to, or whose head it is of."""
    return parameter.partition(".")[0]


def _trained(model: SoftPrompts) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters of all prompts that train, and of their heads."""
    for name, parameter in model.prompt_encoder.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _to_text(mean: Tensor | str) -> str:
    """Return a mean as base64 without slashes. Else one text in 64 would look like a path, and be cut in a push."""
    return mean if isinstance(mean, str) else base64.urlsafe_b64encode(mean.cpu().numpy().tobytes()).decode()


def _from_text(text: Any, like: Tensor) -> Tensor:
    """Return a mean from its text. Raise ValueError if the text is not that of such a mean."""
    if not isinstance(text, str):
        raise ValueError(f"it is {text!r:.40}, and no text")
    # Former checkpoints hold base64 with slashes.
    values = base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
    if len(values) != 4 * like.numel():
        raise ValueError(f"it has {len(values)} bytes in place of {4 * like.numel()}")
    return torch.tensor(np.frombuffer(values, np.float32).reshape(like.shape), device=like.device)
