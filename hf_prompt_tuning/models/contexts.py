"""Give a model another value within a `with` block, only in the thread or task that entered the block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from torch import nn

Value = TypeVar("Value")


class ByContext(Generic[Value]):
    """A value of each model that can be replaced within a `with` block, only for the thread or task that entered it.

    An attribute of the model would change what other threads compute. Copying or pickling a model does not include
    this value.

    Args:
        name: the name of the context variable.
        usual: the value outside all blocks.
    """

    def __init__(self, name: str, usual: Value):
        self._usual = usual
        # The keys are the models' ids: while a block is open, its caller holds the model.
        self._others: ContextVar[dict[int, Value] | None] = ContextVar(name, default=None)

    def of(self, model: nn.Module) -> Value:
        """Return the model's value in this thread or task."""
        return (self._others.get() or {}).get(id(model), self._usual)

    @contextmanager
    def set_to(self, value: Value, model: nn.Module) -> Iterator[None]:
        """Set the model's value within this context."""
        before = self.of(model)
        self._set(value, model)
        try:
            yield
        finally:
            self._set(before, model)

    def _set(self, value: Value, model: nn.Module) -> None:
        others = (self._others.get() or {}) | {id(model): value}
        self._others.set({one: other for one, other in others.items() if other is not self._usual})
