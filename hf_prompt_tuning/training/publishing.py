"""Push prompts and checkpoints to the Hub during and after training.

Only the prompt's own files are pushed. If the Hub is unreachable, nothing is lost.
"""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..errors import PromptPushError, PromptTuningError, first_line
from ..hub.background import PUSH_SECONDS, drop_folder, leave, make_folder, start, within
from ..hub.push_errors import explained
from ..prompts.card import add_to_card
from ..prompts.ensemble_info import ENSEMBLE_FILE
from ..prompts.plots import CURVES_FILE
from ..prompts.pushing import Destination, make_repository, push
from ..prompts.repository_files import CARD_FILE, PROMPT_FILES
from ..sharding import whole
from .checkpointing import ResumingTrainer
from .pickle_free import with_pickles, without_pickles
from .push_arguments import CHECK_SECONDS, destination, on_all_processes

logger = logging.getLogger(__name__)

OF_SEVERAL = (ENSEMBLE_FILE, CURVES_FILE)
"""Files in the root of `output_dir` of a run with several prompts. A push of a single prompt replaces them."""
LAST_SECONDS = 20.0
"""How long to wait for pushes after a signal. Schedulers kill a process about 30 seconds after the signal."""

SKIPPED = "A push during training failed, and training goes on: %s"
FOR_THE_CARD = ("language", "license", "tags")
TOLD_BY_ITSELF = ("model_name", "finetuned_from", "tasks", "dataset", "dataset_tags", "dataset_args")
"""Arguments of `Trainer`'s model card that are ignored: a prompt's card takes these facts from the prompt."""


class PublishingTrainer(ResumingTrainer):
    """Trainer that pushes to the Hub; a base class of `PromptTuningTrainer`."""

    _last_push: Future | None = None
    _asked_repo_id: str | None = None
    _for_the_card: dict[str, Any] = {}  # noqa: RUF012  (replaced, never changed)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the Hub repository as `Trainer` does, for all processes.

        If the Hub is unreachable, the first push creates the repository.

        Raises:
            PromptTuningError: the token, the namespace, the branch or the visibility is invalid.
        """
        to = destination(self.args, token=token, private=private)
        made = on_all_processes(self.args, to.repo_id, partial(make_repository, to))
        self.hub_model_id, self._asked_repo_id = None if made is None else made.repo_id, to.repo_id
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        tokenizer: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Push the prompt with its description, card and pictures to `hub_model_id`.

        If the Hub does not accept the push, nothing is raised, because the prompt is saved in `output_dir`. A warning
        gives the command that pushes it later.

        Args:
            commit_message: message of the commit.
            blocking: whether to wait until the push is finished.
            token: default: `hub_token` of the training arguments.
            revision: branch, created if missing; default: `hub_revision` of the training arguments.
            private: whether a new repository is private; default: `hub_private_repo` of the training arguments.
            tokenizer: whether to push the tokenizer, too.
            **kwargs: `language`, `license` and `tags` for the card. Other arguments of `Trainer`'s model card are
                accepted and ignored, because the prompt's card fills them in by itself.

        Raises:
            PromptTuningError: the repository or branch name is invalid, an argument is unknown, or `private` is set
                and the repository is public.
            TrainingInterrupted: SIGTERM or SIGINT arrived with `save_on_signal` on; the push is finished or given up.
        """
        if unknown := [name for name in kwargs if name not in (*FOR_THE_CARD, *TOLD_BY_ITSELF)]:
            raise PromptTuningError(
                f"push_to_hub has no argument {unknown[0]!r}; it has commit_message, blocking, token, revision, "
                f"private, tokenizer, {', '.join(FOR_THE_CARD)}, and the card tells the rest by itself."
            )
        self._for_the_card = {name: value for name, value in kwargs.items() if name in FOR_THE_CARD}
        to = destination(self.args, token=token, revision=revision, private=private)
        failed, self._asked_repo_id = partial(self._say_how_to_push_later, to), to.repo_id
        with self._noting_signals_of_a_push():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.save_model(_internal_call=True)
            with self._whole_prompt():
                if not self.is_world_process_zero():
                    return None
                try:
                    self._finish_current_push()
                    message = commit_message or "End of training"
                    return self._upload(message, to, None if blocking else failed, tokenizer)
                except Exception as error:  # the network raises many error types; the prompt is on disk in any case
                    if isinstance(error, PromptTuningError) and not isinstance(error, PromptPushError):
                        raise  # pushing again would fail in the same way
                    failed(error)
                    return None

    @property
    def _card_repo_id(self) -> str | None:
        """The repository that a card names. If it could not be created yet, the requested name."""
        return self.hub_model_id or self._asked_repo_id

    def _noting_signals_of_a_push(self) -> AbstractContextManager:
        # During training, signals are recorded already. In other threads, Python handles no signals.
        if self._watch is not None or threading.current_thread() is not threading.main_thread():
            return nullcontext()
        return self._noting_signals("ending after this push")

    def _say_how_to_push_later(self, to: Destination, error: BaseException) -> None:
        logger.warning(
            "The prompt could not be pushed (%s). It is saved in %s; push it later: %s",
            first_line(error).rstrip("."),
            self.args.output_dir,
            self._later(to),
        )

    def _later(self, to: Destination) -> str:
        """Return the command that pushes `output_dir` to the same place and deletes files that are no longer there."""
        folder = Path(self.args.output_dir)
        words = ["hf", "upload", self.hub_model_id or to.repo_id, str(folder), "."]
        words += ["--private"] if to.private else []
        words += [] if to.revision is None else ["--revision", to.revision]
        for name in self._own_files():
            words += ["--include" if (folder / name).exists() else "--delete", name]
        return shlex.join(words)

    def _own_files(self) -> list[str]:
        """Return the paths in `output_dir` of all files that a push may contain."""
        return [*PROMPT_FILES, *OF_SEVERAL]

    def _upload(
        self,
        commit_message: str,
        to: Destination,
        failed: Callable[[BaseException], None] | None = None,
        tokenizer: bool = False,
    ) -> Any:
        """Push the prompt as it is now. Its files are copied first, so training can go on during the push.

        Args:
            commit_message: message of the commit.
            to: destination of the push.
            failed: callback for a push in the background that fails. Without it, wait for the push and raise errors.
            tokenizer: whether to push the tokenizer, too.
        """
        to = self._with_namespace(to)
        fill = partial(self._copy_for_hub, repo_id=to.repo_id, tokenizer=self.processing_class if tokenizer else None)
        return self._send(fill, "", commit_message, to, failed)

    def _copy_for_hub(self, folder: Path, repo_id: str, tokenizer: Any) -> Path:
        """Save the files to push in `folder`; return the folder that holds them."""
        return self.accelerator.unwrap_model(self.model).save_for_hub(folder, repo_id, tokenizer)

    def _with_namespace(self, to: Destination) -> Destination:
        """Return the destination with a namespace, as a card needs it.

        If the name has no namespace, the Hub supplies it when it creates the repository.
        """
        if self.hub_model_id is None and "/" not in to.repo_id:
            with explained(to.repo_id):
                self.hub_model_id = within(CHECK_SECONDS, partial(make_repository, to)).repo_id
        return to if self.hub_model_id is None else replace(to, repo_id=self.hub_model_id)

    def _send(
        self,
        fill: Callable[[Path], Path],
        path_in_repo: str,
        commit_message: str,
        to: Destination,
        failed: Callable[[BaseException], None] | None,
    ) -> Any:
        """Push the files that `fill` writes into a temporary folder. The folder is removed afterwards in any case."""
        folder = make_folder()

        def job() -> CommitInfo:
            try:
                made = make_repository(to) if self.hub_model_id is None or to.private else to
                self.hub_model_id = made.repo_id
                return push(files, made, commit_message, path_in_repo)
            finally:
                drop_folder(folder)

        try:
            files = fill(folder)
            for card in files.rglob(CARD_FILE) if self._for_the_card else ():
                add_to_card(card, **self._for_the_card)
        except BaseException:
            drop_folder(folder)
            raise
        if failed is None:
            return self._waited_for(start(job), to)
        self._last_push = start(job, after=self._last_push)
        self._last_push.add_done_callback(partial(_tell, failed))
        return self._last_push

    def _waited_for(self, job: Future, to: Destination) -> CommitInfo:
        try:
            if self._still_going([job]):
                with explained(to.repo_id):
                    raise TimeoutError("it has not answered in time")
            return job.result()
        finally:
            leave(job)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Do not call super(), which pushes everything in the output folder, including pickles.
        if self.args.hub_strategy == HubStrategy.END:
            return
        with self._whole_prompt():
            if self.is_world_process_zero():
                self._push_checkpoint(checkpoint_folder)

    def _whole_prompt(self) -> AbstractContextManager:
        """Within this context, gather the prompt's vectors, which ZeRO-3 shards; every process must enter it."""
        model = self.accelerator.unwrap_model(self.model)
        return whole(model.prompt_encoder[model.active_adapter].embedding)

    def _push_checkpoint(self, checkpoint_folder: str) -> None:
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        # A checkpoint that is saved because of a signal is always pushed: another machine resumes from it.
        if busy and not self.args.hub_always_push and not self._is_ending():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            jobs = self._start_pushes(checkpoint_folder)
        except Exception as error:  # whatever the error is, training goes on
            _say_it_is_skipped(error)
            return
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _start_pushes(self, checkpoint_folder: str) -> list[Future]:
        message, to = f"Training in progress, step {self.state.global_step}", destination(self.args)
        jobs = [self._upload(message, to, _say_it_is_skipped)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if last else Path(checkpoint_folder).name
            fill = partial(without_pickles, checkpoint_folder)
            to = self._with_namespace(to)
            jobs.append(self._send(fill, name, f"{message}, checkpoint", to, _say_it_is_skipped))
        return jobs

    def _finish_current_push(self) -> None:
        """Wait for the current push as `Trainer` does, but give up if the Hub hangs; after a signal, give up soon."""
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", [])
        if left := self._still_going(jobs):
            for job in left:
                leave(job)
            self.push_in_progress = self._last_push = None
            logger.warning(
                "%d pushes have not ended, and are left; the next one sends all that they would have sent.", len(left)
            )

    def _still_going(self, jobs: Iterable[Future]) -> set[Future]:
        """Wait for pushes until a time limit, which is shorter after a signal; return those still running."""
        going, start_of_wait, signal_came = set(jobs), time.monotonic(), None
        limit = PUSH_SECONDS * max(len(going), 1)
        while going:
            now = time.monotonic()
            if signal_came is None and self._is_ending():
                signal_came = now
            if now - start_of_wait > limit or (signal_came is not None and now - signal_came > LAST_SECONDS):
                break
            going = wait(going, timeout=0.1).not_done
        return going

    def _is_ending(self) -> bool:
        """Tell whether a signal has been recorded."""
        return self._watch is not None and self._watch.signum is not None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with with_pickles(checkpoint) as folder:
            super()._load_optimizer_and_scheduler(folder)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with with_pickles(checkpoint) as folder:
            super()._load_scaler(folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with with_pickles(checkpoint) as folder:
            super()._load_rng_state(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the prompt is saved with its own card."""


def _tell(failed: Callable[[BaseException], None], job: Future) -> None:
    if (error := job.exception()) is not None:
        failed(error)


def _say_it_is_skipped(error: BaseException) -> None:
    logger.warning(SKIPPED, first_line(error))
