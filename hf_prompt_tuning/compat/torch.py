"""What differs between versions of PyTorch."""

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

try:
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor
except ImportError:  # before torch 2.6 (DTensor: 2.5)
    from torch.distributed._composable.fsdp import FSDPModule, register_fsdp_forward_method
    from torch.distributed._tensor import DTensor

__all__ = ["DTensor", "FSDPModule", "padded", "register_fsdp_forward_method"]


def padded(rows: list[Tensor], side: str, value: float = 0) -> Tensor:
    """Return rows [n, ...] of several lengths as one tensor [B, N, ...], padded at the "left" or "right" side.

    `pad_sequence` itself pads at the left from torch 2.5.
    """
    if side == "right":
        return pad_sequence(rows, batch_first=True, padding_value=value)
    return pad_sequence([row.flip(0) for row in rows], batch_first=True, padding_value=value).flip(1)
