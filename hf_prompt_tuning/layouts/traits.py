"""What a backbone's config and signature say of how it reads a row."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .masks import Reach

REACHES: dict[str, Callable[[Any], Reach]] = {
    "full_attention": lambda config: Reach(),
    "sliding_attention": lambda config: Reach(window=config.sliding_window),
    "chunked_attention": lambda config: Reach(chunk=config.attention_chunk_size),
}
ALIBI_BY_MASK = ("bloom", "falcon")
"""Models whose ALiBi counts a row's real tokens; others count columns."""


def takes(backbone: PreTrainedModel, argument: str) -> bool:
    """Whether the model's `forward` names that argument."""
    return argument in inspect.signature(backbone.forward).parameters


def is_recurrent(backbone: PreTrainedModel) -> bool:
    """Whether a state is handed from token to token, in every layer or in some."""
    return bool(backbone._is_stateful) or any(kind not in REACHES for kind in _layer_types(backbone))


def reaches(backbone: PreTrainedModel) -> dict[str, Reach]:
    """How far each kind of layer sees, by its name in the config's `layer_types`; usually there is one."""
    config, kinds = backbone.config.get_text_config(), _layer_types(backbone)
    if not kinds:
        # Models without `layer_types` have one kind of layer, with a window where the config has one.
        return {"full_attention": Reach(window=getattr(config, "sliding_window", None))}
    return {kind: REACHES[kind](config) for kind in kinds}


def has_local_layers(backbone: PreTrainedModel) -> bool:
    """Whether some layers see so many columns back, rather than positions (GPT-Neo)."""
    return "local" in (getattr(backbone.config.get_text_config(), "attention_layers", None) or ())


def ignores_masked_columns(backbone: PreTrainedModel, columns: int) -> bool:
    """Whether masked columns between a row's tokens change nothing, in rows of so many columns.

    They do not where positions are given or counted in the mask, and no window, which is cut by columns, is shorter
    than the row.
    """
    config = backbone.config.get_text_config()
    if is_recurrent(backbone):
        return False
    if config.model_type not in ALIBI_BY_MASK and (
        getattr(config, "alibi", False) or not takes(backbone, "position_ids")
    ):
        return False
    limits = [reach.window or reach.chunk for reach in reaches(backbone).values()]
    if has_local_layers(backbone):
        limits.append(config.window_size)
    return all(limit is None or columns <= limit for limit in limits)


def with_own_positions(backbone: PreTrainedModel) -> nn.Module | None:
    """The module that counts positions by pictures, and keeps what it counted for the next call; None without one."""
    found = (backbone, getattr(backbone, "base_model", None), getattr(backbone, "model", None))
    return next((module for module in found if hasattr(module, "rope_deltas")), None)


def text_positions(backbone: PreTrainedModel, mask: Tensor, columns: int | None = None) -> dict[str, Tensor]:
    """`position_ids` of rows of text, for a backbone that would otherwise count on from its last call's pictures.

    Args:
        backbone: any; for most there is nothing to say.
        mask: [B, N] of all columns up to now.
        columns: so many of them are new; default all.
    """
    if with_own_positions(backbone) is None:
        return {}
    counted = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {"position_ids": counted if columns is None else counted[:, mask.shape[1] - columns :]}


def _layer_types(backbone: PreTrainedModel) -> list[str]:
    return list(dict.fromkeys(getattr(backbone.config.get_text_config(), "layer_types", None) or ()))
