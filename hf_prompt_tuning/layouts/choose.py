"""Choose a backbone's layout from its config and signature, and check it with the first batch."""

import logging
from collections.abc import Callable

from transformers import PreTrainedModel

from ..compat.transformers import CHECKPOINTS_ACTIVATIONS, cache_name
from ..errors import PromptTuningError
from .alibi import builder
from .base import Layout
from .cached import CachedLayout
from .packed_ranking import PackedLayout
from .padded import PaddedLayout
from .traits import has_local_layers, is_recurrent, reaches, starts_behind_pad, takes

logger = logging.getLogger(__name__)

NAMES = ("packed", "cached", "padded")
"""From the fastest to the slowest, which every model supports."""

MAX_PACKED_TOKENS = 2048
MAX_ALIBI_TOKENS = 512
"""These models compute all of a row's mask and keep it for the backward pass, in every layer."""
BEHIND_PAD = "the model's positions begin behind the pad's id, and not at 0"
MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")


def why_inexact(name: str, backbone: PreTrainedModel) -> str:
    """Return why a layout cannot be exact for a backbone with its current attention implementation and checkpointing.

    The result is an empty string if config and signature tell nothing against it.
    """
    config, attention = backbone.config.get_text_config(), backbone.config._attn_implementation
    reasons = {
        "cached": {
            "the model has no key-value cache": cache_name(backbone) is None,
            "activation checkpointing computes layers again, and a cache would be filled twice": (
                getattr(backbone, CHECKPOINTS_ACTIVATIONS)
            ),
            BEHIND_PAD: starts_behind_pad(backbone),
        },
        "packed": {
            "the model takes no position_ids": not takes(backbone, "position_ids") and builder(backbone) is None,
            "the model is recurrent: no mask keeps one example's state from the next": is_recurrent(backbone),
            "the model's ALiBi counts columns, not positions": getattr(config, "alibi", False),
            "the model's local attention counts columns, not positions": has_local_layers(backbone),
            BEHIND_PAD: starts_behind_pad(backbone),
            f"{attention} takes no mask of our own": attention not in MASKED_ATTENTION,
        },
        "padded": {},
    }
    return next((reason for reason, holds in reasons[name].items() if holds), "")


def make_layout(name: str, backbone: PreTrainedModel, max_packed_tokens: int | None = None) -> Layout:
    """Return a layout that `why_inexact` tells nothing against."""
    if name != "packed":
        return PaddedLayout() if name == "padded" else CachedLayout()
    has_alibi = builder(backbone) is not None
    budget = max_packed_tokens or (MAX_ALIBI_TOKENS if has_alibi else MAX_PACKED_TOKENS)
    if (limit := getattr(backbone.config.get_text_config(), "max_position_embeddings", None)) is not None:
        # Some models (GPT-J, CodeGen) slice their causal mask from a buffer with that many columns.
        budget = min(budget, limit)
    kinds = reaches(backbone)
    # One mask for each kind of layer, unless full attention is the only kind.
    return PackedLayout(budget, kinds, as_dict=list(kinds) != ["full_attention"], has_alibi=has_alibi)


def check_layout_name(name: str) -> None:
    """Raise PromptTuningError if no layout has that name."""
    if name not in ("auto", *NAMES):
        raise PromptTuningError(f"layout is {name!r}; give auto, {', '.join(NAMES)}.")


def check_row_budget(tokens: int | None) -> None:
    """Raise PromptTuningError if `max_packed_tokens` is neither a number of tokens nor None."""
    if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
        raise PromptTuningError(f"max_packed_tokens is {tokens!r}; give 1 token or more, or None for the default.")


def choose(
    name: str,
    backbone: PreTrainedModel,
    max_packed_tokens: int | None,
    check: Callable[..., str] | None,
    check_all: bool = True,
) -> Layout:
    """Return the layout with that name, or for "auto" the fastest exact layout.

    `check` takes a layout and `thorough`, and returns how the layout differs from `padded`, or an empty string; None
    if no check is possible. `check_all` also checks layouts that config and signature prove exact. Raise
    PromptTuningError if no layout has that name, or the named layout is not exact for this backbone.
    """
    check_layout_name(name)
    for candidate in NAMES if name == "auto" else (name,):
        reason = why_inexact(candidate, backbone)
        layout = None if reason else make_layout(candidate, backbone, max_packed_tokens)
        # Some recurrent models start every sequence from an empty state, whatever the cache holds.
        certain = not is_recurrent(backbone)
        if layout is not None and candidate != "padded" and (check_all or not certain):
            if check is not None:
                reason = check(layout, thorough=not certain)
            elif not certain:
                reason = "it has to be checked, which dropout, or a backbone in shards, does not allow"
        if not reason:
            return layout
        if name != "auto":
            raise PromptTuningError(
                f"layout {name!r} is not exact for {type(backbone).__name__}: {reason}. Use layout 'auto' or 'padded'."
            )
        log = logger.info if layout is None else logger.warning
        log("The %s layout is not used for %s: %s.", candidate, type(backbone).__name__, reason)
    raise AssertionError("padded is exact for every model")
