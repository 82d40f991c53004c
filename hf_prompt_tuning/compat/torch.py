"""What differs between versions of PyTorch."""

from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d


def set_process_timeout(timeout: timedelta) -> None:
    """Set how long processes wait for each other. PyTorch has a public function for it from 2.14."""
    set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    set_timeout(timeout)
