"""Compute a prompt's part of every pass once, and keep it until anything that it depends on changes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..layouts import ComputedPrompt, Prompts
from ..layouts.computed import compute
from ..layouts.traits import is_recurrent, takes
from ..sharding import is_sharded
from .backbone_state import BackboneState, state_of


@dataclass(frozen=True)
class _Kept:
    vectors: Tensor
    backbone: BackboneState
    computed: ComputedPrompt


class ComputedPrompts:
    """Keep the latest computed prompt of each name for a model. Threads may share it.

    Nothing in it is changed in place. Each thread uses what it computed itself, or an entry that is complete.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._state: BackboneState | None = None

    def added_to(self, prompts: Prompts, dtype: torch.dtype, backbone: PreTrainedModel) -> Prompts:
        """Add to each prompt what was computed of it before, or compute it now.

        Args:
            prompts: with their names.
            dtype: of embedded text.
            backbone: must pass `can_be_continued`.
        """
        # Read before anything is computed, so that the next call detects what another thread changes meanwhile.
        state, latest = state_of(backbone), self._state
        if latest is not None and latest.is_same(state):
            state = latest
        self._state = state
        computed = [
            self._get(name, vectors.detach().to(dtype), state, backbone) if len(vectors) else None
            for name, vectors in zip(prompts.names, prompts.vectors, strict=True)
        ]
        return replace(prompts, computed=tuple(computed))

    def _get(self, name: str, vectors: Tensor, state: BackboneState, backbone: PreTrainedModel) -> ComputedPrompt:
        # The vectors are compared by value, because an edit through `.data` leaves no other trace. Comparing P * H
        # numbers costs less than a layer.
        kept = self._kept.get(name)
        if kept is None or kept.backbone is not state or not _same(kept.vectors, vectors):
            kept = self._kept[name] = _Kept(vectors.clone(), state, compute(backbone, vectors))
        return kept.computed

    def forget(self, name: str | None = None) -> None:
        """Free what is kept of one prompt, or of all."""
        if name is None:
            self._kept, self._state = {}, None
        else:
            self._kept.pop(name, None)


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)


def can_be_continued(backbone: PreTrainedModel) -> bool:
    """Tell whether a computed prompt serves this backbone, in its current state, for every text after it."""
    if not takes(backbone, "past_key_values") or is_recurrent(backbone):
        return False
    if is_sharded(backbone):
        return False  # all its processes must make the same passes, whatever each has computed before
    if backbone.config._attn_implementation == "flex_attention":
        return False  # compiling masks for each shape costs more than a short pass
    return not (backbone.training and backbone.is_activation_checkpointing)
