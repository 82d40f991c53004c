"""Proof that only the prompt moved."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import PromptTuningError
from .watched import watched

AT_ONCE = 2**24


class FrozenBackboneCallback(TrainerCallback):
    """Takes a checksum of every weight and buffer of the backbone before training, and compares at its end.

    Args:
        every_evaluation: compare at each evaluation as well; it reads the whole backbone.

    Raises:
        PromptTuningError: a weight or buffer has changed, appeared or gone; it is named.
    """

    def __init__(self, every_evaluation: bool = False):
        self.every_evaluation = every_evaluation
        self._before: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Takes the checksums."""
        self._before = checksums(watched(model, self).base_model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Compares, where that was asked for."""
        if self.every_evaluation and self._before:
            self._compare(model, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Compares."""
        self._compare(model, state.global_step)
        self._before = {}

    def _compare(self, model: nn.Module, step: int) -> None:
        now = checksums(watched(model, self).base_model)
        moved = [name for name in self._before | now if self._before.get(name) != now.get(name)]
        if moved:
            more = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
            raise PromptTuningError(
                f"the backbone's {moved[0]}{more} changed by step {step}, and a prompt's backbone is frozen. "
                "Look for what writes to it: another optimizer, a callback, or a layer with running statistics."
            )


def checksums(module: nn.Module) -> dict[str, str]:
    """A hash of the bytes of each parameter and buffer of a module, by name."""
    return {name: _checksum(tensor) for name, tensor in _tensors(module)}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _checksum(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode())
    if not tensor.is_meta:  # offloaded elsewhere, and loaded anew for each use
        # Whatever kind it is (bfloat16, quantized), as its bytes; in pieces, for one on an accelerator.
        for piece in tensor.detach().contiguous().flatten().view(torch.uint8).split(AT_ONCE):
            digest.update(piece.cpu().numpy())
    return digest.hexdigest()
