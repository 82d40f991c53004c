"""Accelerate's configs as its launcher reads them, and its FSDP2, which it keeps from CPUs, on gloo processes."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env


def launch_arguments(config: Path, *flags: str) -> argparse.Namespace:
    """What `accelerate launch --config_file CONFIG FLAGS run_prompt_tuning.py` makes of a config."""
    parser = launch_command_parser()
    return _validate_launch_command(parser.parse_args(["--config_file", str(config), *flags, "run_prompt_tuning.py"]))[
        0
    ]


@contextmanager
def fsdp_on_cpu(config: Path, mixed_precision: str = "no") -> Iterator[None]:
    """Within this context an Accelerator shards models as `config` says, on CPUs too.

    Args:
        config: its variables are those that the launcher would set, except for those of the launch itself.
        mixed_precision: in place of the config's.
    """
    with patch.dict(os.environ):
        variables = prepare_multi_gpu_env(launch_arguments(config))
    chosen = {key: value for key, value in variables.items() if key.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    original = AcceleratorState.__init__

    def initialize(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            # As Accelerate does it for GPUs.
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState._reset_state(True)
    try:
        with patch.dict(os.environ, chosen), patch.object(AcceleratorState, "__init__", initialize):
            yield
    finally:
        AcceleratorState._reset_state(True)
