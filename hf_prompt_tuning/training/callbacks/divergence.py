"""Detect divergence during training: NaN, infinite values, and prompts that do not learn."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .watched import mean_word_norm, prompt_vectors, watched

logger = logging.getLogger(__name__)

NEVER = float("inf")


class DivergenceCallback(TrainerCallback):
    """Detect divergence within one logging interval.

    A loss or gradient that is NaN or infinite ends the run. Until then, such a gradient is replaced by zero, so that
    it never reaches the prompt.

    Three other problems are logged as warnings, each once:

    - The prompt's vectors are much longer than the vocabulary's.
    - The learning rate is so low that the prompt ends where it started.
    - All predictions are of one class. Only `PromptTuningTrainer`'s evaluation can detect this.

    The checks run on the device without waiting for it. Their results are read when the Trainer logs, evaluates or
    saves, and after every epoch.

    Args:
        max_norm: largest mean norm of the prompt's vectors, as a multiple of the vocabulary's mean norm.
        min_move: smallest distance that the vectors should move in the whole run, in the same unit.

    Raises:
        FloatingPointError: the loss, its gradient or the prompt is not finite; nothing is saved after that.
        PromptTuningError: the Trainer's model holds no soft prompt.
    """

    def __init__(self, max_norm: float = 100.0, min_move: float = 0.01):
        self.max_norm = max_norm
        self.min_move = min_move
        self._hook: Any = None
        self._warned: set[tuple[str, str]] = set()
        self._collapsed: dict[str, bool] = {}
        self._confusion: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Store the prompts' starting vectors, and reset all checks."""
        model = watched(model, self)
        self._warned, self._collapsed = set(), {}
        self._confusion = {name: info.confusion_matrix for name, info in model.prompt_info.items()}
        self._starts = {name: prompt_vectors(model, name) for name in model.prompt_encoder}
        self._word_norm = mean_word_norm(model.word_embeddings)
        self._rates: dict[str, Any] = {}  # for each prompt, the sum of the learning rates of its steps
        self._step = state.global_step + 1
        # The first step with a bad number, and the loss of that step. fp32 is exact up to 16 million steps.
        device = self._starts[model.active_adapter].device
        self._bad_step, self._bad_loss = torch.tensor(NEVER, device=device), torch.tensor(0.0, device=device)
        self._unhook()
        # Callbacks only get the logged loss, and `Trainer` filters NaN out of it. So read each loss with a hook.
        self._hook = model.register_forward_hook(self._record_loss)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _record_loss(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        loss = getattr(output, "loss", None)
        if model.training and isinstance(loss, Tensor):
            loss = loss.detach().to(self._bad_step.device).float()
            self._record(~torch.isfinite(loss), loss)

    def _record(self, bad: Tensor, loss: Tensor | float = 0.0) -> None:
        """Store the step and its loss if `bad` (0-dim bool) is true for the first time, without device sync."""
        first = bad & torch.isinf(self._bad_step)
        self._bad_step = torch.where(first, float(self._step), self._bad_step)
        self._bad_loss = torch.where(first, loss, self._bad_loss)

    def forget_step(self) -> None:
        """Forget what was not finite in this step, because it was computed again without that."""
        self._bad_step = torch.where(self._bad_step == self._step, NEVER, self._bad_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store the number of the step."""
        self._step = state.global_step + 1

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any, **kwargs: Any
    ) -> None:
        """Replace a gradient that is not finite by zero, and add up the learning rates."""
        model = watched(model, self)
        weights = {name: prompt.embedding.weight for name, prompt in model.prompt_encoder.items()}
        # If several prompts train together, check all of them. DeepSpeed stores its gradients elsewhere.
        trained = {name: weight for name, weight in weights.items() if weight.grad is not None}
        heads = [prompt.classifier for prompt in model.prompt_encoder.values() if prompt.classifier is not None]
        parts = [weight for head in heads for weight in head.parameters() if weight.grad is not None]
        gradients = [weight.grad for weight in (*trained.values(), *parts)]
        bad: Any = False
        if gradients:
            bad = ~torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
        # With a gradient scaler, overflows are normal: it skips the step and lowers the scale.
        # (`step_was_skipped` does not report the steps that a fused optimizer skips internally.)
        for name, weight in (trained or {model.active_adapter: model.prompt}).items():
            rate = group_of(optimizer, weight)["lr"]
            self._rates[name] = self._rates.get(name, 0.0) + (rate * ~bad if gradients else rate)
        if gradients and getattr(optimizer, "scaler", None) is None:
            self._record(bad)
            for gradient in gradients:
                gradient.masked_fill_(bad, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the results before the Trainer logs, evaluates or saves."""
        if control.should_log or control.should_evaluate or control.should_save:
            self._check(args, state, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the results before the Trainer evaluates or saves."""
        self._check(args, state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hook from the model."""
        self._unhook()

    def _check(self, args: TrainingArguments, state: TrainerState, model: Any, optimizer: Any, **kwargs: Any) -> None:
        model = watched(model, self)
        names = [name for name in self._starts if name in self._rates] or [model.active_adapter]
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            # All processes must stop together, but an infinite loss may occur on only one of them.
            torch.distributed.all_reduce(self._bad_step, torch.distributed.ReduceOp.MIN)
        numbers_on_device = [self._bad_step, self._bad_loss]
        for name in names:
            vectors = prompt_vectors(model, name)
            numbers_on_device += [vectors.norm(dim=1).mean(), (vectors - self._starts[name]).norm(dim=1).mean()]
        bad_step, bad_loss, *numbers = torch.stack(numbers_on_device).tolist()
        scaler = getattr(optimizer, "scaler", None)
        if bad_step != NEVER:
            what = "the loss's gradient is not finite" if math.isfinite(bad_loss) else f"the loss is {bad_loss}"
            self._stop(what, int(bad_step), args, state)
        for name, length, moved in zip(names, numbers[::2], numbers[1::2], strict=True):
            # Name the prompt if there are several.
            which = "the prompt" if len(names) == 1 else f"the prompt {name}"
            if not math.isfinite(length):
                self._stop(f"{which}'s norm is {length}", state.global_step, args, state)
            self._check_norm(name, which, length, state)
            self._check_rate(
                name, which, group_of(optimizer, model.prompt_encoder[name].embedding.weight), moved, state
            )
        if scaler is not None and scaler.get_scale() < 1:
            self._stop("the gradient overflows in fp16 at any loss scale", state.global_step, args, state)

    def _check_norm(self, name: str, which: str, length: float, state: TrainerState) -> None:
        if length > self.max_norm * self._word_norm:
            self._warn(
                ("norm", name),
                state,
                f"At step {state.global_step} {which}'s vectors have a mean norm of {length:.4g}, "
                f"{length / self._word_norm:.0f} times that of the vocabulary's ({self._word_norm:.4g}): it is far "
                "from anything that the backbone was trained on. Lower learning_rate.",
            )

    def _check_rate(self, name: str, which: str, group: dict[str, Any], moved: float, state: TrainerState) -> None:
        """Warn if the learning rate is too low.

        That is, if the prompt would hardly move even if all steps had the peak rate and the same direction. Checked
        once per prompt.
        """
        if ("rate", name) in self._warned:
            return
        rates = float(self._rates.get(name, 0.0))
        peak = float(group.get("initial_lr", group["lr"]))
        if peak and not rates:  # a warmup starts at a rate of zero, and a skipped step does not count
            return
        most = moved * peak * state.max_steps / rates if rates else 0.0
        if most < self.min_move * self._word_norm:
            self._warn(
                ("rate", name),
                state,
                f"By step {state.global_step} {which} has moved by {moved:.2g}, and in {state.max_steps} steps at "
                f"a learning rate of {peak:g} it will move by {most:.2g} at most; the vocabulary's vectors have a "
                f"mean norm of {self._word_norm:.2g}, so it ends where it started. Raise learning_rate; with AdamW, "
                "3e-2 is a good start.",
            )
        self._warned.add(("rate", name))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: nn.Module, metrics: dict[str, Any], **kwargs: Any
    ) -> None:
        """Check the loss, and whether all predictions are of one class."""
        for name, value in metrics.items():
            # After training (no hook), there is no run to end.
            is_loss = name.endswith("_loss") and isinstance(value, int | float)
            if self._hook is not None and is_loss and not math.isfinite(value):
                self._stop(f"{name} is {value}", state.global_step, args, state)
        infos = watched(model, self).prompt_info
        for name, info in infos.items():
            # An unchanged matrix was loaded with the prompt or is from an earlier evaluation.
            confusion = info.confusion_matrix
            if confusion and confusion is not self._confusion.get(name):
                which = "the evaluation" if len(infos) == 1 else f"the evaluation of {name}"
                self._confusion[name] = confusion
                self._check_classes(name, which, confusion["labels"], torch.tensor(confusion["counts"]), state)

    def _check_classes(self, name: str, which: str, words: list[str], counts: Tensor, state: TrainerState) -> None:
        """Warn if all predictions are of one class. `counts` is [L, L]; each row of it belongs to a true label."""
        predicted, right = counts.sum(0).nonzero()[:, 0].tolist(), counts.sum(1)
        collapsed = state.global_step > 0 and len(predicted) == 1 and int((right > 0).sum()) > 1
        # A prompt often starts like this. It has collapsed if two evaluations in a row show it, or the last one does.
        if collapsed and (self._collapsed.get(name) or state.global_step >= state.max_steps):
            total = int(right.sum())
            self._warn(
                ("class", name),
                state,
                f"At step {state.global_step} all {total} rows of {which} are predicted "
                f"{words[predicted[0]]!r}, and {total - int(right[predicted[0]])} of them are not: the predictions "
                "have collapsed to one class. Train longer, change learning_rate, or give every class its share of "
                "the training data.",
            )
        self._collapsed[name] = collapsed

    def _warn(self, kind: tuple[str, str], state: TrainerState, message: str) -> None:
        if kind not in self._warned and state.is_world_process_zero:
            logger.warning(message)
        self._warned.add(kind)

    def _stop(self, what: str, step: int, args: TrainingArguments, state: TrainerState) -> None:
        self._unhook()
        last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        kept = f"the checkpoint {last} is from before" if last else "no checkpoint was saved before"
        raise FloatingPointError(
            f"{what} at step {step}; the run ends here, and {kept}. Lower learning_rate, look at this batch's data, "
            "or use bf16 where the model is in fp16."
        )


def group_of(optimizer: Any, weight: Tensor) -> dict[str, Any]:
    """Return the optimizer's group that holds a prompt's weight; the first group if it holds a copy of the weight."""
    groups = optimizer.param_groups
    return next((group for group in groups if any(parameter is weight for parameter in group["params"])), groups[0])
