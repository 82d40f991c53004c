"""Remember the rounds of a field in checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from ..errors import PromptTuningError
from .field import Round


class FieldState(TrainerCallback, ExportableState):
    """The rounds that a field has been through. A checkpoint holds them, and a resumed run gets them from there.

    Attributes:
        planned: the rounds of the whole run, each the step at which it ends and how many prompts stay.
        rounds: of each that has ended, its `step`, the `losses` on the rows held apart by the prompts' names, and the
            names that `stay`.
        failed: the `prompt` that was not finite, and the `step`, of each.
    """

    def __init__(self):
        self.begin([])

    def begin(self, planned: Sequence[Round]) -> None:
        """Forget all, for a run with these rounds that begins. A checkpoint brings its own."""
        self.planned = [[end.step, end.stay] for end in planned]
        self.rounds: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves."""
        attributes = {"planned": self.planned, "rounds": self.rounds, "failed": self.failed}
        return {"args": {}, "attributes": attributes}

    def check_resumed(self, checkpoint: str) -> None:
        """Raise PromptTuningError if a checkpoint is of a run whose rounds end at other steps.

        Checkpoints of earlier versions do not say where theirs end.
        """
        file = Path(checkpoint, TRAINER_STATE_NAME)
        state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        saved = state.get("stateful_callbacks", {}).get(type(self).__name__, {}).get("attributes", {})
        before, now = saved.get("planned") or self.planned, self.planned
        if before != now:
            steps = [", ".join(str(step) for step, _ in planned) for planned in (before, now)]
            raise PromptTuningError(
                f"{checkpoint} is of a field whose rounds end at the steps {steps[0]}, and this one's end at "
                f"{steps[1]}; resume with the same recipe_budget, number of steps and rows, or start anew."
            )
