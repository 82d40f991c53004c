"""A Trainer's pushes: only the prompt's own files go to the Hub, and a Hub that is down loses nothing."""

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
"""What there is beside several prompts in `output_dir`; a single one takes their place."""
LAST_SECONDS = 20.0
"""How long a signal waits for pushes: schedulers end a process some 30 seconds after they have sent one."""

SKIPPED = "A push during training failed, and training goes on: %s"
FOR_THE_CARD = ("language", "license", "tags")
TOLD_BY_ITSELF = ("model_name", "finetuned_from", "tasks", "dataset", "dataset_tags", "dataset_args")
"""What `Trainer` would put into its card, and a prompt's card tells by what the prompt knows."""


class PublishingTrainer(ResumingTrainer):
    """The part of `PromptTuningTrainer` that talks to the Hub."""

    _last_push: Future | None = None
    _asked_repo_id: str | None = None
    _for_the_card: dict[str, Any] = {}  # noqa: RUF012  (replaced, never changed)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in `Trainer`, for all processes; where the Hub cannot be reached, the first push makes the repository.

        Raises:
            PromptTuningError: the token, the namespace, the branch or the visibility cannot be.
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
        """Sends the prompt with its description, card and pictures to `hub_model_id`.

        Where the Hub does not take it, that is logged with the command that pushes later, and nothing is raised: the
        prompt is in `output_dir`.

        Args:
            commit_message: of the commit.
            blocking: wait until it has arrived.
            token: default the arguments' `hub_token`.
            revision: the branch, made where it does not exist; default the arguments' `hub_revision`.
            private: whether a repository that is made now is private; default the arguments' `hub_private_repo`.
            tokenizer: send the tokenizer as well.
            **kwargs: `language`, `license` and `tags` for the card; the rest of what `Trainer` would put into its own,
                a prompt's tells by itself.

        Raises:
            PromptTuningError: there can be no such repository or branch, an argument is not known, or the prompt is
                to be private and the repository is public.
            TrainingInterrupted: with `save_on_signal`, SIGTERM or SIGINT came; the push is finished, or was given up.
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
                except Exception as error:  # the network raises many kinds; the prompt is on disk whichever it is
                    if isinstance(error, PromptTuningError) and not isinstance(error, PromptPushError):
                        raise  # it is refused for good
                    failed(error)
                    return None

    @property
    def _card_repo_id(self) -> str | None:
        """The repository that a card names; the one that was asked for, where the Hub could not make it yet."""
        return self.hub_model_id or self._asked_repo_id

    def _noting_signals_of_a_push(self) -> AbstractContextManager:
        # Within a training they are noted already, and in other threads they cannot be.
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
        """The command that sends what is in `output_dir` to the same place, and takes away what is no longer there."""
        folder = Path(self.args.output_dir)
        words = ["hf", "upload", self.hub_model_id or to.repo_id, str(folder), "."]
        words += ["--private"] if to.private else []
        words += [] if to.revision is None else ["--revision", to.revision]
        for name in self._own_files():
            words += ["--include" if (folder / name).exists() else "--delete", name]
        return shlex.join(words)

    def _own_files(self) -> list[str]:
        """The paths in `output_dir` of all that may be there for the Hub."""
        return [*PROMPT_FILES, *OF_SEVERAL]

    def _upload(
        self,
        commit_message: str,
        to: Destination,
        failed: Callable[[BaseException], None] | None = None,
        tokenizer: bool = False,
    ) -> Any:
        """A commit of the prompt as it is now. Its files are copied first, so training can go on meanwhile.

        Args:
            commit_message: of the commit.
            to: where.
            failed: called where it fails, later; without it this waits, and raises.
            tokenizer: send it as well.
        """
        to = self._with_namespace(to)
        fill = partial(self._copy_for_hub, repo_id=to.repo_id, tokenizer=self.processing_class if tokenizer else None)
        return self._send(fill, "", commit_message, to, failed)

    def _copy_for_hub(self, folder: Path, repo_id: str, tokenizer: Any) -> Path:
        """Saves what is pushed into `folder`; returns where its files are."""
        return self.accelerator.unwrap_model(self.model).save_for_hub(folder, repo_id, tokenizer)

    def _with_namespace(self, to: Destination) -> Destination:
        """The destination as a card has to name it: whose a name without a namespace is, the Hub knows."""
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
        """Pushes what `fill` puts into a temporary folder, which is removed when it has arrived, or not."""
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
        # Not super()'s, which sends whatever lies in the output folder, pickles among it.
        if self.args.hub_strategy == HubStrategy.END:
            return
        with self._whole_prompt():
            if self.is_world_process_zero():
                self._push_checkpoint(checkpoint_folder)

    def _whole_prompt(self) -> AbstractContextManager:
        """Within this context the prompt's vectors are here (ZeRO-3 shares them out); every process must enter."""
        model = self.accelerator.unwrap_model(self.model)
        return whole(model.prompt_encoder[model.active_adapter].embedding)

    def _push_checkpoint(self, checkpoint_folder: str) -> None:
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        # What a signal saves is sent in any case: another machine goes on from there.
        if busy and not self.args.hub_always_push and not self._is_ending():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            jobs = self._start_pushes(checkpoint_folder)
        except Exception as error:  # a run goes on, whatever keeps its files from being sent
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
        """As in `Trainer`; a Hub that hangs is left, after a signal soon."""
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", [])
        if left := self._still_going(jobs):
            for job in left:
                leave(job)
            self.push_in_progress = self._last_push = None
            logger.warning(
                "%d pushes have not ended, and are left; the next one sends all that they would have sent.", len(left)
            )

    def _still_going(self, jobs: Iterable[Future]) -> set[Future]:
        """Waits for pushes for as long as they may take, after a signal for a moment; returns those that go on."""
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
        """Whether a signal has been noted."""
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
        """Nothing to add: the prompt is saved with a card of its own."""


def _tell(failed: Callable[[BaseException], None], job: Future) -> None:
    if (error := job.exception()) is not None:
        failed(error)


def _say_it_is_skipped(error: BaseException) -> None:
    logger.warning(SKIPPED, first_line(error))
