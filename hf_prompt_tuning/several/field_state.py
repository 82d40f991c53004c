"""Remember the rounds of a field in checkpoints."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class FieldState(TrainerCallback, ExportableState):
    """The rounds that a field has been through. A checkpoint holds them, and a resumed run gets them from there.

    Attributes:
        rounds: of each, its `step`, the `losses` on the rows held apart by the prompts' names, and the names that
            `stay`.
        failed: the `prompt` that was not finite, and the `step`, of each.
    """

    def __init__(self):
        self.rounds: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []

    def forget(self) -> None:
        """Forget all, for a run that begins. A checkpoint brings its own."""
        self.rounds, self.failed = [], []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves."""
        return {"args": {}, "attributes": {"rounds": self.rounds, "failed": self.failed}}
