"""What differs between versions of PyTorch."""

import inspect
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard

from ..errors import PromptTuningError


def set_process_timeout(timeout: timedelta) -> None:
    """Set how long processes wait for each other. PyTorch has a public function for it from 2.14."""
    set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    set_timeout(timeout)


def check_fsdp2() -> None:
    """Raise PromptTuningError if accelerate shards with an argument that PyTorch does not take (2.6)."""
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise PromptTuningError(
            f"FSDP2 is on, and accelerate gives it an argument that PyTorch {torch.__version__} does not take; "
            "install a newer one (2.10 was tried), or use DDP."
        )
