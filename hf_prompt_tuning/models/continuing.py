"""A cache that was filled behind prompts, and what goes on from it: the prompts are in it, and are not computed again.

The cache itself says what it holds, by a mark that this package puts on it; the backbone keeps nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from ..errors import PromptTuningError
from ..layouts import Prompts
from ..layouts.traits import ignores_masked_columns, takes, with_own_positions
from .call_arguments import MEDIA, TOKEN_TYPES

FOR_WHOLE_ROWS = ("labels", "shift_labels", "candidates", "only_labelled", "fused_lm_head")
MARK = "_behind_prompts"


@dataclass(frozen=True)
class Behind:
    """What a cache holds.

    Attributes:
        names: the prompt of each row.
        mask: [B, C] bool, of its columns.
        width: so many of the columns are the prompts'.
    """

    names: tuple[str, ...]
    mask: Tensor
    width: int


def columns_in(cache: Any) -> int:
    """How many columns a cache holds; 0 of an empty one, of a recurrent backbone's states and of None.

    Raises:
        PromptTuningError: it is no cache of transformers.
    """
    if cache is None:
        return 0
    if not isinstance(cache, Cache):
        raise PromptTuningError(
            f"past_key_values is a {type(cache).__name__}; give a Cache of transformers, as forward and generate do."
        )
    try:
        return int(cache.get_seq_length())
    except ValueError:
        # None of its layers is one of attention.
        return 0


def mark(cache: Any, behind: Behind) -> None:
    """Says on a cache what it holds."""
    if isinstance(cache, Cache):
        setattr(cache, MARK, behind)


def check_alone(arguments: Mapping[str, Any]) -> None:
    """Refuses what is not for new tokens alone, which go on from a filled cache.

    Raises:
        PromptTuningError: labels, pictures or token types.
    """
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        if name in FOR_WHOLE_ROWS or name in TOKEN_TYPES or MEDIA.search(name):
            raise PromptTuningError(
                f"{name} is given with a filled past_key_values, behind which new tokens alone are computed; give the "
                "whole rows without it."
            )


def checked(cache: Cache, names: tuple[str, ...]) -> Behind:
    """What a filled cache holds, if it is these rows behind these prompts.

    Raises:
        PromptTuningError: it was not filled here, was changed since, or belongs to other rows or prompts.
    """
    behind, columns = getattr(cache, MARK, None), columns_in(cache)
    if behind is None or tuple(behind.mask.shape) != (len(names), columns) or behind.names != names:
        what = "of which this model knows nothing" if behind is None else _of_others(behind, names, columns)
        raise PromptTuningError(
            f"past_key_values holds {columns} columns {what}, and a prompt stands in front of each call's texts. "
            "Give the cache of this model's last call for these rows and prompts, unchanged; or use generate."
        )
    return behind


def for_both(cache: Any, prompts: Prompts, mask: Tensor) -> Any:
    """A caller's cache for an encoder-decoder, with a part for each; None of None.

    What the encoder made is in a filled one, which has to be of these rows.

    Args:
        cache: the caller's, or None.
        prompts: of the rows.
        mask: [B, P+T], of the encoder's rows.

    Raises:
        PromptTuningError: it was filled elsewhere, or for other texts or prompts.
    """
    if not columns_in(cache):
        plain = cache is not None and not isinstance(cache, EncoderDecoderCache)
        # A backbone would put both parts into one.
        return EncoderDecoderCache(cache, DynamicCache()) if plain else cache
    behind = getattr(cache, MARK, None)
    if behind is None or behind.names != prompts.of_rows() or not torch.equal(behind.mask, mask.bool()):
        raise PromptTuningError(
            "past_key_values holds what an encoder made of other rows, or of rows that this model does not know; give "
            "the cache of this model's last call with the same input_ids, attention_mask and prompts."
        )
    return cache


def _of_others(behind: Behind, names: tuple[str, ...], columns: int) -> str:
    if tuple(behind.mask.shape) != (len(names), columns):
        return f"for {len(names)} rows, and was left with {behind.mask.shape[1]} columns of {len(behind.mask)} rows"
    return "behind other prompts than these rows'"


def inputs_behind(
    backbone: PreTrainedModel, behind: Behind, lengths: Tensor, new: int, mask: Tensor | None, positions: Tensor | None
) -> tuple[dict[str, Tensor], Behind]:
    """Mask and positions of new tokens behind a cache, and what it holds after them.

    Args:
        backbone: a causal model.
        behind: what it holds now.
        lengths: [B], of each row's prompt.
        new: how many columns come.
        mask: the caller's, of all columns, [B, T + new], or with the prompts' in front.
        positions: the caller's, of the new columns, from the text's or from the prompt's start; or None.

    Raises:
        PromptTuningError: mask or positions are of other columns, or pads would be counted by this backbone.
    """
    columns, seen = behind.mask.shape[1], behind.mask.sum(1)
    now = behind.mask.new_ones(len(behind.mask), new)
    if mask is not None:
        widths = {columns + new: 0, columns - behind.width + new: lengths}
        before = widths.get(mask.shape[1]) if mask.dim() == 2 and len(mask) == len(now) else None
        if before is None or not torch.equal((mask[:, :-new] != 0).sum(1) + before, seen):
            raise PromptTuningError(
                f"attention_mask has shape {list(mask.shape)}, and past_key_values holds {columns - behind.width} "
                f"columns of text; give one of them and of the {new} new ones, [B, {columns - behind.width + new}]."
            )
        now = mask[:, -new:].bool()
    both = torch.cat([behind.mask, now], dim=1)
    if not bool(both.all()) and not ignores_masked_columns(backbone, both.shape[1]):
        raise PromptTuningError(
            f"past_key_values holds padded rows, and {type(backbone).__name__} counts pads between tokens. Give rows "
            "of one length, or use generate."
        )
    counted = (both.long().cumsum(1) - 1).clamp(min=0)[:, -new:]
    if positions is not None and not any(
        positions.shape[-1] == new and torch.equal(positions.expand_as(counted), counted - less)
        for less in (0, lengths[:, None])
    ):
        raise PromptTuningError("position_ids are given that do not count on from past_key_values; leave them out.")
    inputs = {"attention_mask": both.long()}
    if takes(backbone, "position_ids") or with_own_positions(backbone) is not None:
        inputs["position_ids"] = counted
    return inputs, Behind(behind.names, both, behind.width)
