"""Handle a backbone whose weights are not all in this process's memory: sharded over processes, or offloaded.

FSDP2 (`fully_shard`) and DeepSpeed ZeRO-3 keep a share of each weight on each process and gather the weight when it is
needed. Accelerate's `device_map` leaves weights on the CPU or on disk until then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from accelerate.utils import align_module_device, has_offloaded_params
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn

from .compat.torch import DTensor, FSDPModule

_announced_on: ContextVar[torch.device | None] = ContextVar("announced_on", default=None)
"""The device of the tensors with which processes announce their passes; None: passes are not announced."""


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
    forward passes until every process is done.

    Args:
        backbone: the model that is called.
        tokens: the input of the empty passes, at least one token; the prompt's if there is one.

    Yields:
        A list. Afterwards it holds zeros to add to the loss, because a backward pass gathers weights, too.
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
        zeros.append(backbone(**tokens, use_cache=False).logits.sum() * 0.0)


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
