"""Make stand-ins: copies of a backbone that one call can modify without changing the backbone for other calls.

A backbone may serve several models and many threads at once. So a call must not put a hook on it, replace its
`forward` or write its config, not even for a moment. It calls a stand-in instead: an object of the same class that
shares weights, config and everything else with the module, except for the one thing that the call changes. It lives
for one call.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)

CALL_HOOKS = tuple(
    f"_{name}"
    for name in (
        "forward_pre_hooks",
        "forward_pre_hooks_with_kwargs",
        "forward_hooks",
        "forward_hooks_with_kwargs",
        "forward_hooks_always_called",
        "backward_pre_hooks",
        "backward_hooks",
    )
)


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
    for name in ("forward", "_old_forward"):  # Accelerate sets both on the modules that it sends to devices
        if name in vars(module):
            vars(twin)[name] = _bound_to(twin, module, vars(module)[name])
    return twin


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
