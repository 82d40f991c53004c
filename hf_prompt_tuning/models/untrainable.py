"""Raise a clear error in the backward pass of a loss that no prompt affects, before PyTorch raises an unclear one."""

from typing import Any

import torch
from torch import Tensor

from ..errors import PromptTuningError


class _Untrainable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, anchor: Tensor, name: str) -> Tensor:
        ctx.name = name
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise PromptTuningError(
            f"the prompt {ctx.name!r} gets no gradient: it was loaded without is_trainable=True. Load it with that, "
            f"or call model.set_requires_grad({ctx.name!r})."
        )


def untrainable(loss: Tensor, name: str) -> Tensor:
    """Return a loss that needs no gradient. Its backward pass raises PromptTuningError with the prompt's name."""
    return _Untrainable.apply(loss, torch.zeros((), requires_grad=True, device=loss.device), name)
