"""Read the Hub destination from the training arguments, and check it before anything is loaded."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from ..errors import PromptTuningError
from ..hub.background import within
from ..hub.push_errors import explained
from ..prompts.pushing import Destination, check_access

logger = logging.getLogger(__name__)

CHECK_SECONDS = 30.0
"""How long to wait for the Hub's answer before training."""


def destination(args: TrainingArguments, **changes: Any) -> Destination:
    """Return the destination of a run's pushes. Raise PromptTuningError for an invalid repository or branch name.

    `changes` (`revision`, `private`, `token`) override the arguments; None changes nothing.
    """
    options = {"revision": args.hub_revision, "private": args.hub_private_repo, "token": args.hub_token}
    options |= {name: value for name, value in changes.items() if value is not None}
    return Destination(args.hub_model_id or Path(args.output_dir).absolute().name, **options)


def check_hub(args: TrainingArguments) -> None:
    """Check on all processes whether a run with `push_to_hub` may push.

    If the Hub is unreachable, training starts anyway. At its end the run logs how to push later. Raise
    PromptTuningError if the token, the namespace, the branch or the visibility is invalid.
    """
    if args.push_to_hub:
        to = destination(args)
        on_all_processes(args, to.repo_id, lambda: check_access(to))


def on_all_processes(args: TrainingArguments, repo_id: str, request: Callable[[], Any]) -> Any:
    """Send a request to the Hub on process 0; return its answer, None on other processes or if the Hub is unreachable.

    If the Hub refuses, raise PromptTuningError on all processes, so that none waits for another.
    """
    answer, refusal = None, [None]
    if args.process_index == 0:
        try:
            with explained(repo_id):
                answer = within(CHECK_SECONDS, request)
        except PromptTuningError as error:
            if getattr(error, "temporary", False):
                logger.warning("Training goes on, and the run says at its end how to push later: %s", error)
            else:
                refusal = [str(error)]
    if args.world_size > 1:
        refusal = broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise PromptTuningError(f"push_to_hub is on, and {refusal[0]}")
    return answer
