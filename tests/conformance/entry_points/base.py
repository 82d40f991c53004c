"""What every entry point has."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..prompts import Asked
from ..refusals import reason
from ..rows import Batch, Rows, batch_of
from ..world import Setting, World

BEFORE = [
    "nothing",
    "the same call",
    "a training step",
    "a deleted prompt",
    "a reloaded prompt",
    "a merged LoRA",
    "an edited weight",
    "half",
    "another thread",
    "threads at once",
]


@dataclass(frozen=True)
class Call:
    """The arguments of a call on token ids, as they are drawn."""

    rows: Rows
    asked: Asked
    grad: bool
    style: str

    def again(self, turn: int) -> "Call":
        """A call like it, of other tokens and with the prompts of other rows."""
        names = self.asked.names
        if names is not None:
            names = names[turn % len(names) :] + names[: turn % len(names)]
        rows = dataclasses.replace(self.rows, seed=self.rows.seed + 10 * turn)
        return dataclasses.replace(self, rows=rows, asked=dataclasses.replace(self.asked, names=names))


class EntryPoint:
    """A way in.

    Attributes:
        name: as in the counts.
        cases: of 10,000, how many are of this entry point.
        befores: what may have happened before the call.
        families, dtypes: which ones are drawn; None for all.
        free: what of the backbone's `snapshot` the call may change.
    """

    name: str
    cases: int
    befores: list[str] = BEFORE
    families: list[str] | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    free: tuple[str, ...] = ()

    def arguments(self, draw: Any, setting: Setting) -> Any:
        """Draws a call's arguments."""
        raise NotImplementedError

    def prepare(self, world: World, asked: Any) -> None:
        """Does what belongs to the model and not to the call."""

    def call(self, world: World, asked: Any) -> Any:
        """Makes the call."""
        raise NotImplementedError

    def reason(self, asked: Any, message: str) -> str | None:
        """Why a refusal in these words is right; None for one that is not on the list."""
        return reason(message)

    def check(self, world: World, asked: Any, got: Any) -> None:
        """Raises Unequal where the result is not the oracle's."""
        raise NotImplementedError


def prompts_of(world: World, call: Call) -> list[str]:
    """The name of each row's prompt."""
    return [call.asked.of(row, world.active) for row in range(len(call.rows.lengths))]


def batch(world: World, call: Call, told: tuple[int, list[int]] | None = None) -> Batch:
    return batch_of(call.rows, world.setting.family, told)
