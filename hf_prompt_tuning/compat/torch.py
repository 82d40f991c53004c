"""What differs between versions of PyTorch."""

try:
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor
except ImportError:  # before torch 2.6 (DTensor: 2.5)
    from torch.distributed._composable.fsdp import FSDPModule, register_fsdp_forward_method
    from torch.distributed._tensor import DTensor

__all__ = ["DTensor", "FSDPModule", "register_fsdp_forward_method"]
