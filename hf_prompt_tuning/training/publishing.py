"""Push prompts and checkpoints to the Hub during and after training.

Only the prompt's own files are pushed. If the Hub is unreachable, nothing is lost.
"""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..errors import PromptPushError, PromptTuningError, first_line
from ..hub.background import PUSH_SECONDS, drop_folder, leave, make_folder, start, within
from ..hub.push_errors import explained
from ..prompts.card import add_to_card
from ..prompts.pushing import Destination, make_repository, push
from ..prompts.repository_files import CARD_FILE
from .pickle_free import without_pickles
from .push_arguments import CHECK_SECONDS, destination, on_all_processes

logger = logging.getLogger(__name__)

LAST_SECONDS = 20.0
"""How long to wait for pushes after a signal. Schedulers kill a process about 30 seconds after the signal."""

SKIPPED = "A push during training failed, and training goes on: %s"
CARD_FIELDS = ("language", "license", "tags")
IGNORED_FIELDS = ("model_name", "finetuned_from", "tasks", "dataset", "dataset_tags", "dataset_args")
"""Arguments of `Trainer`'s model card that are ignored: a prompt's card takes these facts from the prompt."""


class Publisher:
    """Push the prompts and checkpoints of a `PromptTuningTrainer`."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._last_push: Future | None = None
        self._wanted_repo_id: str | None = None
        self._card_fields: dict[str, Any] = {}

    @property
    def repo_id(self) -> str | None:
        """Return the repository that a card names. If it could not be created yet, the requested name."""
        return self._trainer.hub_model_id or self._wanted_repo_id

    def create_repository(self, token: str | None, private: bool | None) -> None:
        """Create the repository, for all processes. If the Hub is unreachable, the first push creates it."""
        trainer = self._trainer
        to = destination(trainer.args, token=token, private=private)
        made = on_all_processes(trainer.args, to.repo_id, partial(make_repository, to))
        trainer.hub_model_id, self._wanted_repo_id = None if made is None else made.repo_id, to.repo_id
        trainer.push_in_progress = None

    def push(
        self, to: Destination, commit_message: str, blocking: bool, tokenizer: bool, card_fields: dict[str, Any]
    ) -> CommitInfo | Future | None:
        """Save the prompt and push it, as `PromptTuningTrainer.push_to_hub` says."""
        if unknown := [name for name in card_fields if name not in (*CARD_FIELDS, *IGNORED_FIELDS)]:
            raise PromptTuningError(
                f"push_to_hub has no argument {unknown[0]!r}; it has commit_message, blocking, token, revision, "
                f"private, tokenizer, {', '.join(CARD_FIELDS)}, and the card tells the rest by itself."
            )
        trainer = self._trainer
        self._card_fields = {name: value for name, value in card_fields.items() if name in CARD_FIELDS}
        failed, self._wanted_repo_id = partial(self._warn_of_failure, to), to.repo_id
        # In other threads, Python handles no signals.
        in_main = threading.current_thread() is threading.main_thread()
        with trainer.watching_signals("ending after this push") if in_main else nullcontext():
            self._begin()
            trainer.save_model(_internal_call=True)
            with self._trainer.unwrapped.whole_prompt():
                if not trainer.is_world_process_zero():
                    return None
                try:
                    self.finish()
                    return self._upload(commit_message, to, None if blocking else failed, tokenizer)
                except Exception as error:  # the network raises many error types; the prompt is on disk in any case
                    if isinstance(error, PromptTuningError) and not isinstance(error, PromptPushError):
                        raise  # pushing again would fail in the same way
                    failed(error)
                    return None

    def push_checkpoint(self, checkpoint_folder: str) -> None:
        """Start to push the prompt, and by `hub_strategy` the checkpoint, in the background."""
        if self._trainer.args.hub_strategy == HubStrategy.END:
            return
        with self._trainer.unwrapped.whole_prompt():
            if self._trainer.is_world_process_zero():
                self._push_checkpoint(checkpoint_folder)

    def finish(self) -> None:
        """Wait for running pushes, but give up if the Hub hangs; after a signal, give up soon."""
        jobs = getattr(getattr(self._trainer, "push_in_progress", None), "jobs", [])
        if left := self._still_running(jobs):
            for job in left:
                leave(job)
            self._trainer.push_in_progress = self._last_push = None
            logger.warning(
                "%d pushes have not ended, and are left; the next one sends all that they would have sent.", len(left)
            )

    def later_command(self, to: Destination) -> str:
        """Return the command that pushes `output_dir` to the same place and deletes files that are no longer there."""
        folder = Path(self._trainer.args.output_dir)
        words = ["hf", "upload", self._trainer.hub_model_id or to.repo_id, str(folder), "."]
        words += ["--private"] if to.private else []
        words += [] if to.revision is None else ["--revision", to.revision]
        for name in self._trainer.pushed_files:
            words += ["--include" if (folder / name).exists() else "--delete", name]
        return shlex.join(words)

    def _begin(self) -> None:
        trainer = self._trainer
        trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)

    def _warn_of_failure(self, to: Destination, error: BaseException) -> None:
        reason, folder = first_line(error).rstrip("."), self._trainer.args.output_dir
        command = self.later_command(to)
        logger.warning(f"The prompt could not be pushed ({reason}). It is saved in {folder}; push it later: {command}")

    def _upload(
        self,
        commit_message: str,
        to: Destination,
        failed: Callable[[BaseException], None] | None = None,
        tokenizer: bool = False,
    ) -> CommitInfo | Future:
        """Push the prompt as it is now. Its files are copied first, so training can go on during the push.

        `failed` is called if a push in the background fails. Without it, wait for the push and raise its errors.
        """
        to = self._with_namespace(to)
        pushed_tokenizer = self._trainer.processing_class if tokenizer else None
        fill = partial(self._trainer.save_for_hub, repo_id=to.repo_id, tokenizer=pushed_tokenizer)
        return self._send(fill, "", commit_message, to, failed)

    def _with_namespace(self, to: Destination) -> Destination:
        """Return the destination with a namespace, as a card needs it.

        If the name has no namespace, the Hub supplies it when it creates the repository.
        """
        trainer = self._trainer
        if trainer.hub_model_id is None and "/" not in to.repo_id:
            with explained(to.repo_id):
                trainer.hub_model_id = within(CHECK_SECONDS, partial(make_repository, to)).repo_id
        return to if trainer.hub_model_id is None else replace(to, repo_id=trainer.hub_model_id)

    def _send(
        self,
        fill: Callable[[Path], Path],
        path_in_repo: str,
        commit_message: str,
        to: Destination,
        failed: Callable[[BaseException], None] | None,
    ) -> CommitInfo | Future:
        """Push the files that `fill` writes into a temporary folder. The folder is removed afterwards in any case."""
        folder, trainer = make_folder(), self._trainer

        def job() -> CommitInfo:
            try:
                made = make_repository(to) if trainer.hub_model_id is None or to.private else to
                trainer.hub_model_id = made.repo_id
                return push(files, made, commit_message, path_in_repo)
            except BaseException as error:
                if failed is not None:
                    failed(error)  # here and not when the job is done, so that who waits for the job has the message
                raise
            finally:
                drop_folder(folder)

        try:
            files = fill(folder)
            for card in files.rglob(CARD_FILE) if self._card_fields else ():
                add_to_card(card, **self._card_fields)
        except BaseException:
            drop_folder(folder)
            raise
        if failed is None:
            return self._wait_for(start(job), to)
        self._last_push = start(job, after=self._last_push)
        return self._last_push

    def _wait_for(self, job: Future, to: Destination) -> CommitInfo:
        try:
            if self._still_running([job]):
                with explained(to.repo_id):
                    raise TimeoutError("it has not answered in time")
            return job.result()
        finally:
            leave(job)

    def _push_checkpoint(self, checkpoint_folder: str) -> None:
        trainer = self._trainer
        busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
        # A checkpoint that is saved because of a signal is always pushed: another machine resumes from it.
        if busy and not trainer.args.hub_always_push and trainer.signals.signum is None:
            return
        self._begin()
        try:
            jobs = self._start_pushes(checkpoint_folder)
        except Exception as error:  # whatever the error is, training goes on
            _warn_of_skipped(error)
            return
        if busy:
            trainer.push_in_progress.jobs.extend(jobs)
        else:
            trainer.push_in_progress = PushInProgress(jobs)

    def _start_pushes(self, checkpoint_folder: str) -> list[Future]:
        args = self._trainer.args
        message, to = f"Training in progress, step {self._trainer.state.global_step}", destination(args)
        jobs = [self._upload(message, to, _warn_of_skipped)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if last else Path(checkpoint_folder).name
            fill = partial(without_pickles, checkpoint_folder)
            to = self._with_namespace(to)
            jobs.append(self._send(fill, name, f"{message}, checkpoint", to, _warn_of_skipped))
        return jobs

    def _still_running(self, jobs: Iterable[Future]) -> set[Future]:
        """Wait for pushes until a time limit, which is shorter after a signal; return those still running."""
        running, start_of_wait, signal_came = set(jobs), time.monotonic(), None
        limit = PUSH_SECONDS * max(len(running), 1)
        while running:
            now = time.monotonic()
            if signal_came is None and self._trainer.signals.signum is not None:
                signal_came = now
            if now - start_of_wait > limit or (signal_came is not None and now - signal_came > LAST_SECONDS):
                break
            running = wait(running, timeout=0.1).not_done
        return running


def _warn_of_skipped(error: BaseException) -> None:
    logger.warning(SKIPPED, first_line(error))
