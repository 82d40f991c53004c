"""Check that training changes only the prompt."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...errors import PromptTuningError
from ...layouts.computed import BITS
from ...models.soft_prompts import SoftPrompts
from .watched import watched

ELEMENTS_AT_ONCE = 2**22


class FrozenBackboneCallback(TrainerCallback):
    """Check that training changes nothing but the prompt.

    The callback computes a checksum of every weight and buffer of the backbone when training starts. It compares them
    at each save and at the end. Each comparison reads the whole backbone.

    Raises:
        PromptTuningError: a weight or buffer changed; the message names it.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Compute the checksums."""
        self._checksums = backbone_checksums(watched(model, self))

    def on_save(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Compare the checksums."""
        checksums = backbone_checksums(watched(model, self))
        names = checksums.keys() | self._checksums.keys()
        if moved := sorted(name for name in names if checksums.get(name) != self._checksums.get(name)):
            others = f" and {len(moved) - 1} more" if len(moved) > 1 else ""
            raise PromptTuningError(
                f"the backbone's {moved[0]}{others} of {len(names)} weights and buffers moved by step "
                f"{state.global_step}, and a prompt fits the backbone that it was trained on. Load the backbone "
                "again, and look for what unfroze it or writes to it (requires_grad, an optimizer, a hook)."
            )

    on_train_end = on_save


def backbone_checksums(model: SoftPrompts) -> dict[str, int]:
    """Return a checksum of each weight and buffer of the backbone that is in memory, by name."""
    backbone = model.get_base_model()
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    return {name: checksum(tensor) for name, tensor in tensors if not tensor.is_meta}


def checksum(tensor: Tensor) -> int:
    """Return a 64-bit checksum: each element's bits as an integer, times its own odd number, summed up.

    A change of a single element always changes the checksum, and so does swapping two elements.
    """
    bits = tensor.detach().contiguous().reshape(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), ELEMENTS_AT_ONCE):
        piece = bits[start : start + ELEMENTS_AT_ONCE].long()
        total += (piece * (2 * torch.arange(start, start + len(piece), device=bits.device) + 1)).sum()
    return total.item()
