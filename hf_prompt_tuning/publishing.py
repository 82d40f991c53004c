"""A Trainer's pushes: only the prompt's own files go to the Hub, and a Hub that is down loses nothing."""

import logging
import shlex
import shutil
from concurrent.futures import Future
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import CommitInfo, upload_folder
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .checkpoint_files import with_pickles, without_pickles
from .errors import first_line
from .resuming import ResumingTrainer

logger = logging.getLogger(__name__)

PUSHED = ("adapter_*", "prompt_tuning.json", "initial_prompt.safetensors", "results.json", "README.md", "*.png")

SKIPPED = "A push during training failed, and training goes on: %s"


class PublishingTrainer(ResumingTrainer):
    """The part of `PromptTuningTrainer` that talks to the Hub."""

    _pushed: tuple[str, ...] = PUSHED

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

        Where the Hub cannot be reached, that is logged with the command that pushes later, and nothing is raised:
        the prompt is in `output_dir`.

        Args:
            commit_message: of the commit.
            blocking: wait until it has arrived.
            token: default the arguments' `hub_token`.
            revision: the branch; default the arguments' `hub_revision`.
            private: whether a repository that is made now is private.
            tokenizer: send the tokenizer as well.
            **kwargs: what `Trainer` would put into its card, which a prompt's tells by itself.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        try:
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            if not self.is_world_process_zero():
                return None
            self._finish_current_push()
            return self._upload(commit_message, blocking, token, revision, tokenizer)
        except Exception as error:  # the network raises many kinds, and the prompt is on disk whichever it is
            repo_id = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            logger.warning(
                "The prompt could not be pushed (%s). It is saved in %s; push it later: hf upload %s %s . %s",
                first_line(error),
                self.args.output_dir,
                repo_id,
                shlex.quote(self.args.output_dir),
                " ".join(f"--include {shlex.quote(pattern)}" for pattern in self._pushed),
            )
            return None

    def _upload(
        self,
        commit_message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
        tokenizer: bool = False,
    ) -> CommitInfo | Future:
        """A commit of the prompt as it is now. Its files are copied first, so training can go on meanwhile."""
        model = self.accelerator.unwrap_model(self.model)
        folder = mkdtemp()
        files = model.save_for_hub(folder, self.hub_model_id, self.processing_class if tokenizer else None)
        return self._send(folder, files, None, commit_message, blocking, token, revision)

    def _send(
        self,
        folder: str,
        files: str | Path,
        path_in_repo: str | None,
        commit_message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
    ) -> CommitInfo | Future:
        """Uploads `files`, which lie in the temporary `folder`; that is removed when they have arrived, or not."""
        try:
            sent = upload_folder(
                repo_id=self.hub_model_id,
                folder_path=files,
                path_in_repo=path_in_repo,
                commit_message=commit_message,
                token=token if token is not None else self.args.hub_token,
                revision=revision if revision is not None else self.args.hub_revision,
                run_as_future=not blocking,
            )
        except BaseException:
            shutil.rmtree(folder)
            raise
        if blocking:
            shutil.rmtree(folder)
        else:
            sent.add_done_callback(lambda _: shutil.rmtree(folder))
            sent.add_done_callback(_say_if_it_failed)
        return sent

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Not super()'s, which sends whatever lies in the output folder, pickles among it.
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            jobs = self._start_pushes(checkpoint_folder)
        except Exception as error:  # a run goes on, whatever keeps its files from being sent
            logger.warning(SKIPPED, first_line(error))
            return
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _start_pushes(self, checkpoint_folder: str) -> list[Future]:
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(message, blocking=False)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if last else Path(checkpoint_folder).name
            folder = mkdtemp()
            without_pickles(checkpoint_folder, folder)
            jobs.append(self._send(folder, folder, name, f"{message}, checkpoint", blocking=False))
        return jobs

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


def _say_if_it_failed(sent: Future) -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        logger.warning(SKIPPED, first_line(error))
