"""Turn a backbone's dropout off without changing its config, which the caller may save."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def turn_off_dropout(backbone: PreTrainedModel) -> None:
    """Set every dropout probability in a model's modules to 0, and every one that they read from a config when called.

    The model can then stay in train mode (which activation checkpointing requires) and still be deterministic.
    """
    views: dict[int, PreTrainedConfig] = {}
    for module in backbone.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in _probabilities(vars(module)):
            setattr(module, name, 0.0)
        config = vars(module).get("config")
        # The backbone's own config is not replaced: it is the one that is saved and shown, and the backbone's
        # `forward` reads no probability from it.
        if module is not backbone and isinstance(config, PreTrainedConfig) and any(_probabilities(vars(config))):
            module.config = views.setdefault(id(config), without_dropout(config))


def _probabilities(values: dict[str, Any]) -> Iterator[str]:
    return (name for name, value in list(values.items()) if "drop" in name and isinstance(value, float) and value)


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a view of a config in which every dropout probability is 0.

    All other values are shared: a change in either config is seen in both (above all a changed attention
    implementation).
    """
    if isinstance(config, _View):
        return config
    kind = type(config)
    members: dict[str, Any] = {name: property(_zero, _ignore) for name in _probabilities(vars(config))}
    view = object.__new__(type(kind.__name__, (_View, kind), members | {"__module__": kind.__module__, "of": config}))
    object.__setattr__(view, "__dict__", vars(config))
    return view


class _View:
    """Mixin for a view of the config `of`. A view that is copied with deepcopy or pickled stays a view."""

    of: PreTrainedConfig

    def __init_subclass__(cls) -> None:
        """Do nothing: otherwise a subclass of a config would become a dataclass of its own."""

    def __reduce__(self) -> tuple:
        return without_dropout, (self.of,)

    def __copy__(self) -> PreTrainedConfig:
        """Return an independent config with the view's values."""
        alone = copy.copy(self.of)
        vars(alone).update({name: 0.0 for name, value in vars(type(self)).items() if isinstance(value, property)})
        return alone


def _zero(view: PreTrainedConfig) -> float:
    return 0.0


def _ignore(view: PreTrainedConfig, value: Any) -> None:
    """Ignore the new value: dropout stays off."""
