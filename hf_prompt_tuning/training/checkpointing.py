"""Run on one or several processes, save complete checkpoints, and resume runs exactly, even after a kill."""

import logging
import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length, rotate_checkpoints

from ..compat.torch import check_fsdp2
from ..compat.transformers import SAVES_ON_EVERY_PROCESS, average_prompts_over_processes, check_averages_prompts
from ..data.collator import label_columns
from ..errors import PromptTuningError, TrainingInterrupted
from ..layouts.sharing import ByContext, is_sharded
from ..models.saving import folder_of
from . import distributed
from .checkpoint_folder import UNFINISHED, damage, missing_state, newest_whole, publish, saving, seal, tidy
from .pickle_free import with_pickles
from .resume_checks import check_like, check_states, warn_of_resumed
from .resumed_tasks import check_same_prompts
from .sampling import SeededLengthGroupedSampler
from .signals import SignalWatch

logger = logging.getLogger(__name__)

_SAVING: ByContext[bool] = ByContext("saving a checkpoint", False)


class CheckpointMixin:
    """Let a `Trainer` run on several processes, save checkpoints atomically, end after a signal, and resume exactly.

    Attributes:
        signals: records the signals that come during its runs.
    """

    def __init__(self, *, args: Any, **kwargs: Any):
        self.signals = SignalWatch()
        distributed.set_defaults(args)
        super().__init__(args=args, **kwargs)
        self._own_optimizer = self.optimizer is not None  # whether the caller passed an optimizer
        if self.accelerator.is_fsdp2:
            # The prompt and its optimizer state are not sharded, so Trainer saves and loads them as without FSDP.
            self.is_fsdp_enabled = False
        if args.world_size > 1:
            distributed.share_prompts(self.model)

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        """Return the folder to resume from, after a look at what the output folder and the checkpoint hold.

        `wanted` is a checkpoint folder, True for the newest complete one, or None. Raise PromptTuningError if it is
        missing or damaged, or is of another optimizer, schedule or precision, or of prompts that learn something else.
        """
        if self.args.should_save:
            tidy(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        checkpoint = self._find_checkpoint(wanted)
        if checkpoint is not None and not self.is_deepspeed_enabled:
            scales = self.accelerator.scaler is not None
            own = self.optimizer_cls_and_kwargs is not None or self._own_optimizer
            check_like(checkpoint, self.args, scales, own)
            if self.model is not None:  # otherwise `model_init` makes the model later
                check_same_prompts(checkpoint, self.unwrapped, self.trained_prompts)
            self.check_resumed(checkpoint)
        return checkpoint

    def check_resumed(self, checkpoint: str) -> None:
        """Warn of arguments that go on as a checkpoint's. A subclass may also refuse what its prompts do not fit."""
        warn_of_resumed(checkpoint, self.args)

    def watching_signals(self, then: str) -> AbstractContextManager:
        """Within this context, record a first SIGTERM or SIGINT, and do `then` next; only with `save_on_signal`."""
        return self.signals.watching(then) if getattr(self.args, "save_on_signal", False) else nullcontext()

    def _find_checkpoint(self, wanted: str | bool | None) -> str | None:
        """Return the folder to resume from, the same on every process."""
        if wanted is True:
            newest = [newest_whole(self.args.output_dir) if self.is_world_process_zero() else None]
            checkpoint = broadcast_object_list(newest)[0]
            if self.is_world_process_zero():
                logger.warning(
                    "Resuming from %s." if checkpoint else "No whole checkpoint in %s: training starts afresh.",
                    checkpoint or self.args.output_dir,
                )
            return checkpoint
        if not wanted:
            return None
        fault = (damage(wanted) or missing_state(wanted)) if os.path.isdir(wanted) else "is no folder"
        if fault:
            raise PromptTuningError(
                f"resume_from_checkpoint is {str(wanted)!r}, which {fault}. Give another checkpoint's folder, or true "
                "for the newest whole one."
            )
        return str(wanted)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator as `Trainer` does. FSDP2 does not shard prompts (see `keep_prompts_whole`)."""
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2:
            check_fsdp2()
        distributed.keep_prompts_whole(self)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        distributed.keep_backbone_local(self.accelerator.unwrap_model(self.model))
        distributed.forget_evaluation(self)
        if is_sharded(self.model) and not self.is_deepspeed_enabled:
            check_averages_prompts(self)  # transformers sharded the backbone as it loaded it
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.accelerator.is_fsdp2:
            register_fsdp_forward_method(self.model, "generate")
            average_prompts_over_processes(self)
        return prepared

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as `Trainer` does, with FSDP2 also before training.

        FSDP2 accepts a model only together with its optimizer, so both are prepared here. Raise PromptTuningError if
        the data is streamed and there are several processes, which would count rows twice.
        """
        distributed.check_evaluation_data(dataloader, self.args)
        if self.accelerator.is_fsdp2 and not self.accelerator._models:
            self.create_optimizer()
            self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
            self.model_wrapped = self.model
            register_fsdp_forward_method(self.model, "generate")
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            size = sampler.batch_size * self.args.world_size
            sampler = SeededLengthGroupedSampler(size, sampler.lengths, seed)
        return sampler

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Count the labelled tokens as `Trainer` does, without the rows that fill up the last batch.

        Of a classification head, count what its labels count in the mean of its loss.
        """
        column = self.counted_column
        if batch_samples and self.accelerator.gradient_state.end_of_dataloader:
            for labels in label_columns(batch_samples[-1]):
                distributed.unlabel_repeated_rows(labels, self.train_dataset, self.args)
        if self.head_loss is not None and batch_samples:  # a stream may end with none
            items = torch.stack([self.head_loss.items(batch["labels"].to(device)) for batch in batch_samples]).sum()
            together = self.args.average_tokens_across_devices and self.args.world_size > 1
            return self.accelerator.gather(items).sum() if together else items
        if column != "labels":
            batch_samples = [{"labels": batch[column]} for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    @property
    def counted_column(self) -> str:
        """The column of a batch whose values other than -100 are the items of its loss."""
        return "labels"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # What the checkpoint says of its run comes with it. Columns and spellings may be other ones in this run.
        own = {name: self.unwrapped.prompt_info[name] for name in self.trained_prompts}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, before in own.items():
            info = self.unwrapped.prompt_info[name]
            info.classifier = before.classifier
            if before.template is not None:
                info.template = before.template

    def _load_best_model(self) -> None:
        """Load the trained prompts of the best checkpoint, each from its own folder.

        `Trainer` loads what is in the checkpoint's root, the prompt "default", under the active prompt's name. Without
        one in the root it loads nothing.
        """
        folders = {name: folder_of(name, self.state.best_model_checkpoint) for name in self.trained_prompts}
        if self.is_deepspeed_enabled or not all(folder.is_dir() for folder in folders.values()):
            return super()._load_best_model()
        for name, folder in folders.items():
            self.unwrapped.load_adapter(folder, name)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with with_pickles(checkpoint) as folder:
            if folder is not None and not self.is_deepspeed_enabled:
                check_states(folder, self.optimizer, self.lr_scheduler)
            super()._load_optimizer_and_scheduler(folder)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with with_pickles(checkpoint) as folder:
            super()._load_scaler(folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with with_pickles(checkpoint) as folder:
            super()._load_rng_state(folder)

    @property
    def is_saving_checkpoint(self) -> bool:
        """Whether a checkpoint is being written: it gets no card and no pictures."""
        return _SAVING.of(self)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self.is_saving_checkpoint else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint as `Trainer` does, but rename it only when it is complete.

        Older checkpoints are deleted only after that.
        """
        folder, name = self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = Path(folder, UNFINISHED, name)
        with saving(folder, name):
            with _SAVING.set_to(True, self):
                super()._save_checkpoint(model, trial)
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
        """Save the prompt as `Trainer` saves a model. Raise CheckpointSaveError if it could not be written."""
        with saving(output_dir or self.args.output_dir, "the prompt"):
            super().save_model(output_dir, _internal_call=True)
            if not SAVES_ON_EVERY_PROCESS and not self.args.should_save:
                self._save(output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        # After a signal, first do everything that is due at this step. In the last step of an epoch this includes the
        # evaluation at the end of the epoch.
        due_later = self.state.epoch % 1 == 0 or self.control.should_training_stop or self.control.should_epoch_stop
        ends = not due_later and self.signals.noted(self.args.device) is not None
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
        if self.signals.noted(self.args.device) is not None:
            self._end(kwargs["model"], kwargs["trial"])

    def _is_over(self) -> bool:
        """Tell whether the resumed run had already finished, so that no step is left to run."""
        patience = [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        return self.state.global_step >= self.state.max_steps or any(
            c.early_stopping_patience_counter >= c.early_stopping_patience for c in patience
        )

    def _end(self, model: nn.Module, trial: Any) -> None:
        """Save this step if it is not saved yet, and end the run by raising TrainingInterrupted."""
        if not self.control.should_save:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        checkpoint = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.is_world_process_zero():
            logger.warning("Interrupted; go on with --resume_from_checkpoint true (from %s).", checkpoint)
        self._finish_current_push()
        self.accelerator.wait_for_everyone()  # a launcher kills all processes when the first one exits
        raise TrainingInterrupted(self.signals.signum, checkpoint)

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
            fault = damage(best) if best.is_dir() else "is not there"
            self.state.best_model_checkpoint = None if fault else str(best)
            if fault:
                logger.warning("The best prompt so far is lost: %s %s. Only a better one will be kept.", best, fault)
        return place
