"""Save complete checkpoints and resume runs exactly, even after a kill."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, has_length, rotate_checkpoints

from ..errors import PromptTuningError, TrainingInterrupted
from ..models.soft_prompts import SoftPrompts
from .checkpoint_folder import UNFINISHED, damage, missing_state, newest_whole, publish, saving, seal, tidy
from .distributed import DistributedTrainer
from .resume_checks import check_like, check_states
from .signals import SignalWatch
from .trainer_checks import check_trains

logger = logging.getLogger(__name__)


class ResumingTrainer(DistributedTrainer):
    """Trainer that saves and resumes; a base class of `PromptTuningTrainer`."""

    _unfinished = False  # True while a checkpoint is being written
    _watch: SignalWatch | None = None

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._own_optimizer = self.optimizer is not None  # whether the caller passed an optimizer

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does, and resume exactly.

        A resumed run ends with the same prompt, bit for bit, as a run that was never interrupted.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the newest complete one in `output_dir`. If there
                is none, training starts from the beginning and logs a warning.
            *args: as in `Trainer`.
            **kwargs: as in `Trainer`.

        Raises:
            PromptTuningError: the checkpoint folder is missing or damaged, the prompt was loaded without
                `is_trainable=True`, or the checkpoint was saved with another optimizer, schedule or precision.
            CheckpointSaveError: a checkpoint could not be written.
            TrainingInterrupted: SIGTERM or SIGINT arrived with `save_on_signal` on; the run is saved.
        """
        self._check_trains()
        if self.args.should_save:
            tidy(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if checkpoint is not None and not self.is_deepspeed_enabled:
            scales = self.accelerator.scaler is not None
            own = self.optimizer_cls_and_kwargs is not None or self._own_optimizer
            check_like(checkpoint, self.args, scales, own)
        with self._noting_signals("saving after this step"):
            return super().train(checkpoint, *args, **kwargs)

    @contextmanager
    def _noting_signals(self, then: str) -> Iterator[None]:
        """Within this context, record a first SIGTERM or SIGINT in `_watch` and go on; only with `save_on_signal`."""
        if not getattr(self.args, "save_on_signal", False):
            yield
            return
        try:
            with SignalWatch(then) as self._watch:
                yield
        finally:
            self._watch = None

    def _check_trains(self) -> None:
        model = self.accelerator.unwrap_model(self.model) if self.model is not None else None
        if isinstance(model, SoftPrompts):  # otherwise `model_init` makes the model later
            check_trains(model, list(getattr(self, "tasks", None) or [model.active_adapter]))

    def _checkpoint(self, asked: str | bool | None) -> str | None:
        """Return the folder to resume from, the same on every process."""
        if asked is True:
            found = [newest_whole(self.args.output_dir) if self.is_world_process_zero() else None]
            checkpoint = broadcast_object_list(found)[0]
            if self.is_world_process_zero():
                logger.warning(
                    "Resuming from %s." if checkpoint else "No whole checkpoint in %s: training starts afresh.",
                    checkpoint or self.args.output_dir,
                )
            return checkpoint
        if not asked:
            return None
        wrong = (damage(asked) or missing_state(asked)) if os.path.isdir(asked) else "is no folder"
        if wrong:
            raise PromptTuningError(
                f"resume_from_checkpoint is {str(asked)!r}, which {wrong}. Give another checkpoint's folder, or true "
                "for the newest whole one."
            )
        return str(asked)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_deepspeed_enabled:
            check_states(checkpoint, self.optimizer, self.lr_scheduler)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._unfinished else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint as `Trainer` does, but rename it only when it is complete.

        Older checkpoints are deleted only after that.
        """
        folder, name = self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = Path(folder, UNFINISHED, name)
        with saving(folder, name):
            self._unfinished = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._unfinished = False
            # super() searched for the best checkpoint in the folder of unfinished ones. Set the right path.
            best = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            if self.state.best_global_step == self.state.global_step or os.path.isdir(best):
                self.state.best_model_checkpoint = best
            self.accelerator.wait_for_everyone()  # until all processes have written their files
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                seal(staged)
                publish(staged, Path(folder, name))
                rotate_checkpoints(
                    folder, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
                )
            self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the prompt as `Trainer` saves a model.

        Raises:
            CheckpointSaveError: the prompt could not be written.
        """
        with saving(output_dir or self.args.output_dir, "the prompt"):
            super().save_model(output_dir, _internal_call)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        # After a signal, first do everything that is due at this step. In the last step of an epoch this includes the
        # evaluation at the end of the epoch.
        due_later = self.state.epoch % 1 == 0 or self.control.should_training_stop or self.control.should_epoch_stop
        ends = not due_later and self._signum() is not None
        self.control.should_log |= ends
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if ends:
            self._end(model, trial)

    def _run_epoch(self, **kwargs: Any) -> None:
        if kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            if self._is_over():
                self.control.should_training_stop = True
                return
            if hasattr(kwargs["train_dataloader"], "set_epoch"):
                # super() sets the epoch on a loader that skips batches. With several processes, that does not reach
                # the sampler.
                kwargs["train_dataloader"].set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)
        if self._signum() is not None:
            self._end(kwargs["model"], kwargs["trial"])

    def _is_over(self) -> bool:
        """Tell whether the resumed run had already finished, so that no step is left to run."""
        patience = [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        return self.state.global_step >= self.state.max_steps or any(
            c.early_stopping_patience_counter >= c.early_stopping_patience for c in patience
        )

    def _signum(self) -> int | None:
        return None if self._watch is None else self._watch.noted(self.args.device)

    def _end(self, model: nn.Module, trial: Any) -> None:
        """Save this step if it is not saved yet, and end the run.

        Raises:
            TrainingInterrupted: always.
        """
        if not self.control.should_save:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        checkpoint = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.is_world_process_zero():
            logger.warning("Interrupted; go on with --resume_from_checkpoint true (from %s).", checkpoint)
        self._finish_current_push()
        self.accelerator.wait_for_everyone()  # a launcher kills all processes when the first one exits
        raise TrainingInterrupted(self._watch.signum, checkpoint)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.state.global_step > 0:
            # `eval_on_start` in a resumed run. Evaluating again would make early stopping count one more evaluation.
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _init_training_state(
        self, max_steps: int, update_steps: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, update_steps, epochs, checkpoint, trial)
        streamed = self.train_dataset is not None and not has_length(self.train_dataset)
        if checkpoint is not None and streamed and not self.args.ignore_data_skip:
            # For streamed data, super() assumes that all `max_steps` are one pass. The logged epoch counts the passes.
            share, passes = math.modf(self.state.epoch)
            place = int(passes), round(share * max_steps * self.args.gradient_accumulation_steps)
        if checkpoint is not None and self.state.best_global_step:
            # Search beside the checkpoint, because the folder may have been moved since.
            best = Path(checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            wrong = damage(best) if best.is_dir() else "is not there"
            self.state.best_model_checkpoint = None if wrong else str(best)
            if wrong:
                logger.warning("The best prompt so far is lost: %s %s. Only a better one will be kept.", best, wrong)
        return place
