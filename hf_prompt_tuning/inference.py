"""A prompt's part of every pass, computed once and kept until anything that it was computed from changes."""

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .layouts import ComputedPrompt, Prompts
from .layouts.computed import compute
from .layouts.traits import is_recurrent, takes
from .sharding import embedding_device, is_sharded


@dataclass(frozen=True)
class _Kept:
    vectors: Tensor
    backbone: tuple
    computed: ComputedPrompt


class ComputedPrompts:
    """The computed prompts of a model, the latest of each name."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def added_to(self, prompts: Prompts, dtype: torch.dtype, backbone: PreTrainedModel) -> Prompts:
        """The prompts with what was computed of each before, or is now.

        Args:
            prompts: with their names.
            dtype: of embedded text.
            backbone: one that `can_be_continued`.
        """
        state = state_of(backbone)
        computed = [
            self._get(name, vectors.detach().to(dtype), state, backbone) if len(vectors) else None
            for name, vectors in zip(prompts.names, prompts.vectors, strict=True)
        ]
        return replace(prompts, computed=tuple(computed))

    def _get(self, name: str, vectors: Tensor, state: tuple, backbone: PreTrainedModel) -> ComputedPrompt:
        # The vectors are compared with the numbers that were computed from: an edit through `.data` leaves no other
        # trace, and P * H numbers cost less than a layer.
        state = (vectors.dtype, vectors.device, *state)
        kept = self._kept.get(name)
        if kept is None or kept.backbone != state or not torch.equal(kept.vectors, vectors):
            kept = self._kept[name] = _Kept(vectors.clone(), state, compute(backbone, vectors))
        return kept.computed

    def forget(self, name: str) -> None:
        """Frees what is kept of a prompt."""
        self._kept.pop(name, None)


def state_of(backbone: PreTrainedModel) -> tuple:
    """What else a computed prompt depends on: the weights as they lie, how attention is computed, and autocast.

    Weights are told by where they lie and how often they were changed in place; their numbers are too many.
    """
    kind = embedding_device(backbone.get_input_embeddings()).type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    weights = tuple(map(_trace, chain(backbone.parameters(), backbone.buffers())))
    return backbone.config._attn_implementation, backbone.training, autocast, weights


def _trace(tensor: Tensor) -> tuple[Any, ...]:
    # A tensor that was made in inference mode counts no changes, and a sharded one has no address of its own.
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr() if plain else 0, version, tensor.dtype


def can_be_continued(backbone: PreTrainedModel) -> bool:
    """Whether a computed prompt serves this backbone, as it stands, for every text behind it."""
    if not takes(backbone, "past_key_values") or is_recurrent(backbone):
        return False
    if is_sharded(backbone):
        return False  # whose processes must make the same passes, whatever each of them has computed before
    if backbone.config._attn_implementation == "flex_attention":
        return False  # it compiles its masks for each shape, which a short pass more does not pay for
    return not (backbone.training and backbone.is_activation_checkpointing)
