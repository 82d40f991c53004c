"""Use a backbone that others use at the same time: other threads, and other processes that hold a part of it.

Calls and threads share a backbone. So a call must not put a hook on it, replace its `forward` or write its config, not
even for a moment. It calls a stand-in instead: an object of the same class that shares weights, config and everything
else with the module, except for the one thing that the call changes. `ByContext` is for values of a model: a thread
sets one within a `with` block, and only for itself.

Processes share its weights: FSDP2 (`fully_shard`) and DeepSpeed ZeRO-3 keep a share of each weight on each process and
gather the weight when it is needed. Accelerate's `device_map` leaves weights on the CPU or on disk until then.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import align_module_device, has_offloaded_params
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")

_announced_on: ContextVar[torch.device | None] = ContextVar("announced_on", default=None)
"""The device of the tensors with which processes announce their passes; None: passes are not announced."""

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


def with_values(module: Module, values: dict[str, Any]) -> Module:
    """Return a stand-in for a module that has other values of some attributes, or other functions as methods."""
    twin = _twin(module)
    vars(twin).update(values)
    _rebind(twin, module)
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


def calls_its_stand_in(module: nn.Module) -> bool:
    """Tell whether a stand-in for a module, if it is called, uses its own parts and methods, and not the module's."""
    if module._compiled_call_impl is not None:
        return False
    forwards = [vars(module)[name] for name in ("forward", "_old_forward") if name in vars(module)]
    return all(_bound_to(module, module, forward) is not forward for forward in forwards)


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
    this value. Outside all blocks it is the `usual` one.
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


def is_sharded(backbone: nn.Module) -> bool:
    """Tell whether each pass gathers weights from other processes, so that all processes must make it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    zero3 = any(hasattr(parameter, "ds_id") for parameter in backbone.parameters())
    return zero3 or any(isinstance(module, FSDPModule) for module in backbone.modules())


def embedding_device(embed: nn.Module) -> torch.device:
    """Return the device on which an embedding computes its vectors, wherever its weight is stored."""
    return torch.device(embed._hf_hook.execution_device) if has_offloaded_params(embed) else embed.weight.device


@contextmanager
def whole(embed: nn.Module) -> Iterator[None]:
    """Load an embedding's whole weight into memory within this context. Every process must enter it."""
    shard = embed.weight
    with torch.no_grad(), gather_params_ctx(embed.parameters()), align_module_device(embed):
        if isinstance(shard, DTensor):
            embed._parameters["weight"] = nn.Parameter(shard.full_tensor(), requires_grad=False)
        try:
            yield
        finally:
            if isinstance(shard, DTensor):
                embed._parameters["weight"] = shard


def embedded(embed: nn.Module, token_ids: Tensor) -> Tensor:
    """Return an embedding module's output for token ids of any shape.

    FSDP2 gathers weights when the outermost wrapped module is called, and the embedding is called before that.
    """
    if not isinstance(embed.weight, DTensor):
        return embed(token_ids)
    with whole(embed):
        # Calling the module would run its hooks, which would take the embedding for the outermost module.
        return embed.forward(token_ids)


@contextmanager
def in_step(backbone: nn.Module, tokens: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """Make all processes call a sharded backbone equally often within this context.

    The number of passes of a layout depends on a process's batch. A process that made fewer passes would leave the
    others waiting for its share of the weights. So each pass is announced, and a process that is done runs empty
    forward passes over `tokens` (at least one) until every process is done. Yield a list. Afterwards it holds zeros to
    add to the loss, because a backward pass gathers weights, too.
    """
    zeros: list[Tensor] = []
    if not is_sharded(backbone):
        yield zeros
        return
    device = tokens["inputs_embeds"].device
    before = _announced_on.get()
    _announced_on.set(device)
    try:
        yield zeros
    finally:
        _announced_on.set(before)
    while _any_calls(False, device):
        zeros.append(backbone(**tokens, use_cache=False, return_dict=True).logits.sum() * 0.0)


def announce_pass() -> None:
    """Announce to the other processes that this one is about to call the backbone. Do nothing outside `in_step`."""
    device = _announced_on.get()
    if device is not None:
        _any_calls(True, device)


def _any_calls(calls: bool, device: torch.device) -> bool:
    """Tell whether any process is about to call the backbone. Each process passes whether it is."""
    flag = torch.tensor(int(calls), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
