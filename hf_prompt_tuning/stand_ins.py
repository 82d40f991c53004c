"""Change something for one call, or for one thread, that other calls and threads must not see.

A backbone may serve several models and many threads at once. So a call must not put a hook on it, replace its
`forward` or write its config, not even for a moment. It calls a stand-in instead: an object of the same class that
shares weights, config and everything else with the module, except for the one thing that the call changes. It lives
for one call. `ByContext` is for values of a model: a thread sets one within a `with` block, and only for itself.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, Generic, TypeVar

from torch import nn
from transformers import PreTrainedConfig

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")

CALL_HOOKS = [name for name, value in vars(nn.Module()).items() if "ward" in name and isinstance(value, dict)]
"""The attributes that hold a module's hooks of forward and backward passes."""


def calling(module: Module, forward: Callable[..., Any]) -> Module:
    """Return a stand-in for a module that computes `forward`.

    It has no hooks and is not compiled. If `forward` calls the module, the module itself runs as usual, with its
    hooks.
    """
    twin = _twin(module)
    vars(twin).update({name: {} for name in CALL_HOOKS}, forward=forward, _compiled_call_impl=None)
    return twin


def with_part(module: Module, part: nn.Module, other: nn.Module) -> Module:
    """Return a stand-in for a module in which `other` replaces one of its parts, at any depth.

    If a caller has set a custom `forward` on the module, or compiled it, that `forward` still uses the module's own
    parts.
    """
    first, *deeper = _path(module, part)
    twin, child = _twin(module), module._modules[first]
    vars(twin)["_modules"] = module._modules | {first: with_part(child, part, other) if deeper else other}
    _rebind(twin, module)
    return twin


def of_all_parts(module: Module) -> Module:
    """Return a stand-in for a module and for each module in it. They share weights, and nothing else that can be set.

    The call may set its mode, change its configs, and let a library put hooks on it. It is not compiled.
    """
    twins, configs = {part: _twin(part) for part in module.modules()}, {}
    for part, twin in twins.items():
        own = vars(twin)
        own |= {name: value.copy() for name, value in own.items() if name in CALL_HOOKS}
        own |= {
            name: copy.deepcopy(value, configs) for name, value in own.items() if isinstance(value, PreTrainedConfig)
        }
        own["_modules"] = {name: twins.get(child) for name, child in part._modules.items()}
        own["_compiled_call_impl"] = None
        _rebind(twin, part)
    return twins[module]


def _rebind(twin: nn.Module, module: nn.Module) -> None:
    """Bind to a stand-in what was set as `forward` of its module."""
    for name in ("forward", "_old_forward"):  # Accelerate sets both on the modules that it sends to devices
        if name in vars(module):
            vars(twin)[name] = _bound_to(twin, module, vars(module)[name])


def _twin(module: Module) -> Module:
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    return twin


def _path(module: nn.Module, part: nn.Module) -> list[str]:
    """Return the names that lead from a module to one of its parts; usually there is one name."""
    for name, child in module._modules.items():
        if child is part:
            return [name]
    return next(name for name, child in module.named_modules() if child is part).split(".")


def _bound_to(twin: nn.Module, module: nn.Module, function: Callable) -> Callable:
    """Rebind a function that is bound to a module to its stand-in. Return any other function unchanged."""
    if isinstance(function, MethodType) and function.__self__ is module:
        return MethodType(function.__func__, twin)
    if isinstance(function, functools.partial) and function.args and function.args[0] is module:
        return functools.partial(function.func, twin, *function.args[1:], **function.keywords)
    return function


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
        self._others.set({key: other for key, other in others.items() if other is not self._usual})
