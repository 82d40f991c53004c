"""Remember the rounds of a field in checkpoints."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class FieldState(TrainerCallback, ExportableState):
    """The rounds that a field has been through. A checkpoint holds them, and a resumed run gets them from there.

    Attributes:
        rounds: of each, its `step`, the `losses` on the rows held apart by the prompts' names, and the names that
            `stay`.
    """

    def __init__(self):
        self.rounds: list[dict[str, Any]] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint saves."""
        return {"args": {}, "attributes": {"rounds": self.rounds}}
