"""Pack rows for backbones with ALiBi (BLOOM, MPT), which take no positions.

ALiBi (Press et al. 2022, section 3) adds a slope times the distance of query and key to each attention score. Softmax
does not see what is added to all scores of a query. So the slope times the key's position is enough, and these models
add just that, with positions that are counted in a row. In a packed row they are counted from the start of each
example's prompt. The model builds the bias by a method of its decoder. A stand-in of the decoder has another method.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import PromptTuningError
from .sharing import calls_its_stand_in, with_part, with_values


def _like_bloom(own: Callable[..., Tensor], positions: Tensor) -> Callable[..., Tensor]:
    def build(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        two = own(torch.ones(1, 2, device=positions.device), num_heads, torch.float32)
        return _bias(two, positions).to(dtype)

    return build


def _like_mpt(own: Callable[..., Tensor], positions: Tensor) -> Callable[..., Tensor]:
    def build(num_heads: int, sequence_length: int, *args: Any, **kwargs: Any) -> Tensor:
        return _bias(own(num_heads, 2, *args, **kwargs), positions)

    return build


BUILDERS = {"build_alibi_tensor": _like_bloom, "build_mpt_alibi_tensor": _like_mpt}
"""By the names of the methods with which decoders build the bias of their keys."""


def _bias(two: Tensor, positions: Tensor) -> Tensor:
    """Return the bias of keys at positions [N], [heads, 1, N], given that of two neighbouring keys, [heads, 1, 2]."""
    return (two[..., 1:] - two[..., :1]) * positions


def builder(backbone: PreTrainedModel) -> str | None:
    """Return the name of the method with which the decoder builds its bias; None if it has no such method."""
    return next((name for name in BUILDERS if hasattr(backbone.base_model, name)), None)


def counting_positions(backbone: PreTrainedModel, positions: Tensor) -> PreTrainedModel:
    """Return a stand-in for a backbone that has a `builder`, whose keys are at the given positions, [N] long.

    Raise PromptTuningError if the backbone's forward calls its own decoder in any case.
    """
    decoder, name = backbone.base_model, builder(backbone)
    if not all(map(calls_its_stand_in, (backbone, decoder))):
        raise PromptTuningError(
            f"{type(backbone).__name__} was compiled, or its forward replaced, so that its ALiBi counts columns and "
            "not positions; call use_layout('cached') on the model."
        )
    build = BUILDERS[name](getattr(decoder, name), positions)
    return with_part(backbone, decoder, with_values(decoder, {name: build}))
