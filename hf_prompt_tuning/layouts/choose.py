"""Choose a backbone's layout from its config and signature, and check it with the first batch."""

import logging
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from ..errors import PromptTuningError
from .base import Layout
from .cached import CachedLayout
from .packed import PackedLayout
from .padded import PaddedLayout
from .traits import has_local_layers, is_recurrent, reaches, takes

logger = logging.getLogger(__name__)

NAMES = ("packed", "cached", "padded")
"""From the fastest to the slowest, which every model supports."""

MAX_PACKED_TOKENS = 2048
MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")


class Check(Protocol):
    """Return how a layout differs from `padded` for this batch, or an empty string if it does not."""

    def __call__(self, layout: Layout, thorough: bool) -> str: ...


@dataclass(frozen=True)
class Verdict:
    """Hold the verdict on one layout for a backbone.

    Attributes:
        layout: the layout, or None if it cannot be exact.
        reason: why it cannot be exact.
        certain: whether config and signature prove it exact. If not, it is used only after a check.
    """

    layout: Layout | None
    reason: str = ""
    certain: bool = True


def judge(name: str, backbone: PreTrainedModel, max_packed_tokens: int | None = None) -> Verdict:
    """Judge whether a layout is exact for a backbone with its current attention implementation and checkpointing."""
    if name == "padded":
        return Verdict(PaddedLayout())
    return _cached(backbone) if name == "cached" else _packed(backbone, max_packed_tokens)


def _cached(backbone: PreTrainedModel) -> Verdict:
    if not takes(backbone, "past_key_values"):
        return Verdict(None, "the model has no key-value cache")
    if backbone.is_activation_checkpointing:
        return Verdict(None, "activation checkpointing computes layers again, and a cache would be filled twice")
    # Some recurrent models start every sequence from an empty state, whatever the cache holds.
    return Verdict(CachedLayout(), certain=not is_recurrent(backbone))


def _packed(backbone: PreTrainedModel, max_packed_tokens: int | None) -> Verdict:
    config = backbone.config.get_text_config()
    if not takes(backbone, "position_ids"):
        return Verdict(None, "the model takes no position_ids")
    if is_recurrent(backbone):
        return Verdict(None, "the model is recurrent: no mask keeps one example's state from the next")
    if getattr(config, "alibi", False):
        return Verdict(None, "the model's ALiBi counts columns, not positions")
    if has_local_layers(backbone):
        return Verdict(None, "the model's local attention counts columns, not positions")
    if backbone.config._attn_implementation not in MASKED_ATTENTION:
        return Verdict(None, f"{backbone.config._attn_implementation} takes no mask of our own")
    kinds = reaches(backbone)
    budget = max_packed_tokens or MAX_PACKED_TOKENS
    if (limit := getattr(config, "max_position_embeddings", None)) is not None:
        # Some models (GPT-J, CodeGen) slice their causal mask from a buffer with that many columns.
        budget = min(budget, limit)
    # One mask for each kind of layer, unless full attention is the only kind.
    as_dict = list(kinds) != ["full_attention"]
    return Verdict(PackedLayout(budget, kinds, as_dict))


def check_layout_name(name: str) -> None:
    """Raise PromptTuningError if no layout has that name."""
    if name not in ("auto", *NAMES):
        raise PromptTuningError(f"layout is {name!r}; give auto, {', '.join(NAMES)}.")


def choose(
    name: str,
    backbone: PreTrainedModel,
    max_packed_tokens: int | None,
    check: Check | None,
    check_all: bool = True,
) -> Layout:
    """Return the layout with that name, or for "auto" the fastest exact layout.

    Args:
        name: "auto", or one of `NAMES`.
        backbone: a causal model.
        max_packed_tokens: a packed row's token budget, default `MAX_PACKED_TOKENS`.
        check: returns how a layout differs from `padded`; None if no check is possible.
        check_all: also check layouts that config and signature prove exact.

    Raises:
        PromptTuningError: no layout has that name, or the named layout is not exact for this backbone.
    """
    check_layout_name(name)
    for candidate in NAMES if name == "auto" else (name,):
        verdict = judge(candidate, backbone, max_packed_tokens)
        reason = verdict.reason
        if verdict.layout is not None and candidate != "padded" and (check_all or not verdict.certain):
            if check is not None:
                reason = check(verdict.layout, thorough=not verdict.certain)
            elif not verdict.certain:
                reason = "it has to be checked, which dropout, or a backbone in shards, does not allow"
        if not reason:
            return verdict.layout
        if name != "auto":
            raise PromptTuningError(
                f"layout {name!r} is not exact for {type(backbone).__name__}: {reason}. Use layout 'auto' or 'padded'."
            )
        log = logger.info if verdict.layout is None else logger.warning
        log("The %s layout is not used for %s: %s.", candidate, type(backbone).__name__, reason)
    raise AssertionError("padded is exact for every model")
