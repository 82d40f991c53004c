"""Values that a model has within a `with` block, and only for whoever entered it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from torch import nn

Value = TypeVar("Value")


class ByContext(Generic[Value]):
    """A value that each model has, and another within a `with` block: in the thread or task that entered it, alone.

    An attribute of the model would change what other threads compute. And what a model is copied or pickled with says
    nothing of it.

    Args:
        name: what to call it where contexts are shown.
        usual: the value outside of all blocks.
    """

    def __init__(self, name: str, usual: Value):
        self._usual = usual
        # By the models' ids: whoever entered a block holds its model.
        self._others: ContextVar[dict[int, Value] | None] = ContextVar(name, default=None)

    def of(self, model: nn.Module) -> Value:
        """The model's value here and now."""
        return (self._others.get() or {}).get(id(model), self._usual)

    @contextmanager
    def set_to(self, value: Value, model: nn.Module) -> Iterator[None]:
        """Within this context it is `value`."""
        before = self.of(model)
        self._set(value, model)
        try:
            yield
        finally:
            self._set(before, model)

    def _set(self, value: Value, model: nn.Module) -> None:
        others = (self._others.get() or {}) | {id(model): value}
        self._others.set({one: other for one, other in others.items() if other is not self._usual})
