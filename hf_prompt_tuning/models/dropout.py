"""Turns a backbone's dropout off, and leaves its config as it is, which is the caller's to save."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def turn_off_dropout(backbone: PreTrainedModel) -> None:
    """Sets every dropout probability of a model's modules to 0, and of what they read from a config when called.

    The model can then stay in train mode (which activation checkpointing asks for) and still be deterministic.
    """
    views: dict[int, PreTrainedConfig] = {}
    for module in backbone.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in _probabilities(vars(module)):
            setattr(module, name, 0.0)
        config = vars(module).get("config")
        # The backbone's own stays: what is saved and shown is that one, and its `forward` reads no probability there.
        if module is not backbone and isinstance(config, PreTrainedConfig) and any(_probabilities(vars(config))):
            module.config = views.setdefault(id(config), without_dropout(config))


def _probabilities(values: dict[str, Any]) -> Iterator[str]:
    return (name for name, value in list(values.items()) if "drop" in name and isinstance(value, float) and value)


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config that says 0 for every dropout probability, and is otherwise the very one: what is written in either is
    read in both (a changed attention implementation above all)."""
    if isinstance(config, _View):
        return config
    kind = type(config)
    members: dict[str, Any] = {name: property(_zero, _ignore) for name in _probabilities(vars(config))}
    view = object.__new__(type(kind.__name__, (_View, kind), members | {"__module__": kind.__module__, "of": config}))
    object.__setattr__(view, "__dict__", vars(config))
    return view


class _View:
    """What makes a view of a config, which is `of`: copied and pickled with the config, it stays one."""

    of: PreTrainedConfig

    def __init_subclass__(cls) -> None:
        """Nothing: a subclass of a config would be made a dataclass of its own."""

    def __reduce__(self) -> tuple:
        return without_dropout, (self.of,)

    def __copy__(self) -> PreTrainedConfig:
        """A config of its own, which says what the view says."""
        alone = copy.copy(self.of)
        vars(alone).update({name: 0.0 for name, value in vars(type(self)).items() if isinstance(value, property)})
        return alone


def _zero(view: PreTrainedConfig) -> float:
    return 0.0


def _ignore(view: PreTrainedConfig, value: Any) -> None:
    """What is off stays off."""
