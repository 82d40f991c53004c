"""Check the names of prompts, in a run or folder with several prompts."""

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from ..errors import PromptTuningError

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TAKEN = ("default", "__base__", "unfinished", "last-checkpoint")


def check_adapter_name(name: Any, others: Collection[str]) -> None:
    """Raise PromptTuningError for an invalid adapter name. The name is used for a module and a folder."""
    text = isinstance(name, str)
    if not text or not name.strip() or not name.isprintable() or any(c in name for c in "./\\"):
        raise PromptTuningError(
            f"adapter_name is {name!r:.80}; a prompt's name is a text without '.', '/' and '\\', because it names a "
            "module and a folder."
        )
    if name == "__base__" or hasattr(nn.ModuleDict(), name):
        raise PromptTuningError(f"adapter_name is {name!r}, a name that PyTorch or PEFT needs; give another one.")
    if name in others:
        raise PromptTuningError(
            f"there is a prompt {name!r} already; give another name, or call delete_adapter({name!r}) first."
        )


def check_name(name: Any) -> None:
    """Raise PromptTuningError for an invalid prompt name. The name is used for a folder, metrics and a module."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptTuningError(
            f"the name is {name!r:.80}; a prompt's name is 1 to 64 letters, digits, '_' and '-' (it names a folder)."
        )
    # PyTorch rejects a module with the name of an attribute of its container ("train", "type").
    if name in TAKEN or name.startswith("checkpoint-") or hasattr(nn.ModuleDict(), name):
        raise PromptTuningError(f"the name {name!r} is taken by PyTorch, PEFT or the Trainer; give another one.")
