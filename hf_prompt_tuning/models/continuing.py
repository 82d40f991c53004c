"""Continue from a cache that was filled after prompts. The cache holds the prompts, so they are not computed again.

This package puts a mark on the cache that says what it holds. The backbone is not changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache

from ..errors import PromptTuningError
from ..layouts import Prompts
from ..layouts.traits import ignores_masked_columns, takes, with_own_positions
from .batch_checks import check_is_tensor, check_room
from .call_arguments import MEDIA, TOKEN_TYPES

FOR_WHOLE_ROWS = ("labels", "shift_labels", "candidates", "only_labelled", "fused_lm_head")
MARK = "_content_behind_prompts"


@dataclass(frozen=True)
class CacheContent:
    """Describe what a cache holds.

    Attributes:
        names: the prompt of each row.
        mask: [B, C] bool, the mask of the cache's columns.
        width: P, the number of prompt columns to the caller.
        text: the number of the caller's columns of text.
        head: [B] long, how many fixed tokens stand before each row's prompt; 0 for none.
        taken: [B] long, how many of them are in the caller's columns of text.
    """

    names: tuple[str, ...]
    mask: Tensor
    width: int
    text: int
    head: Tensor | int = 0
    taken: Tensor | int = 0

    @classmethod
    def behind(cls, prompts: Prompts, mask: Tensor, copies: int = 1) -> "CacheContent":
        """Describe rows behind their prompts. `generate` makes `copies` rows of each row."""
        names = tuple(name for name in prompts.row_names() for _ in range(copies))
        width = max(map(len, prompts.vectors))
        return cls(names, mask.bool(), width, mask.shape[1] - width)


def columns_in(cache: Any) -> int:
    """Return the number of columns in a cache; 0 for None, an empty cache, and a recurrent backbone's states.

    Raise PromptTuningError if it is not a transformers cache.
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
        # No layer uses attention.
        return 0


def check_holds(cache: Any, columns: int) -> None:
    """Raise PromptTuningError if a cache of fixed size has fewer columns than rows have, with their prompts.

    A backbone would write behind its end. Layers with a window hold the columns in it.
    """
    whole = [
        layer.max_cache_len
        for layer in (cache.layers if isinstance(cache, StaticCache) else ())
        if not getattr(layer, "is_sliding", False)
    ]
    if whole and min(whole) < columns:
        raise PromptTuningError(
            f"past_key_values has {min(whole)} columns, and rows have {columns}, the prompt's among them; make it "
            f"with max_cache_len={columns} or more, or leave it out."
        )


def mark(cache: Any, content: CacheContent) -> None:
    """Mark a cache with what it holds."""
    if isinstance(cache, Cache):
        setattr(cache, MARK, content)


def check_only_new_tokens(arguments: Mapping[str, Any]) -> None:
    """Raise PromptTuningError for labels, images or token types: only new tokens are computed after a filled cache."""
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        if name in FOR_WHOLE_ROWS or name in TOKEN_TYPES or MEDIA.search(name):
            raise PromptTuningError(
                f"{name} is given with a filled past_key_values, behind which new tokens alone are computed; give the "
                "whole rows without it."
            )


def content_of(cache: Cache, names: tuple[str, ...]) -> CacheContent:
    """Return what a filled cache holds.

    Raise PromptTuningError if it was not filled by this package, was changed since, or belongs to other rows or
    prompts.
    """
    content, columns = getattr(cache, MARK, None), columns_in(cache)
    if content is None or tuple(content.mask.shape) != (len(names), columns) or content.names != names:
        what = "of which this model knows nothing" if content is None else _difference(content, names, columns)
        raise PromptTuningError(
            f"past_key_values holds {columns} columns {what}, and a prompt stands in front of each call's texts. "
            "Give the cache of this model's last call for these rows and prompts, unchanged; or use generate."
        )
    return content


def encoder_decoder_cache(cache: Any, prompts: Prompts, mask: Tensor) -> Any:
    """Return the cache for an encoder-decoder, with a part for each half; None for None.

    A filled cache contains the encoder's output, so it must belong to these rows, whose mask is [B, P+T]. Raise
    PromptTuningError if it was not filled by this package, or belongs to other texts or prompts.
    """
    if not columns_in(cache):
        plain = cache is not None and not isinstance(cache, EncoderDecoderCache)
        # Given a plain cache, a backbone would put both parts into it.
        return EncoderDecoderCache(cache, DynamicCache()) if plain else cache
    content = getattr(cache, MARK, None)
    if content is None or content.names != prompts.row_names() or not torch.equal(content.mask, mask.bool()):
        raise PromptTuningError(
            "past_key_values holds what an encoder made of other rows, or of rows that this model does not know; give "
            "the cache of this model's last call with the same input_ids, attention_mask and prompts."
        )
    return cache


def _difference(content: CacheContent, names: tuple[str, ...], columns: int) -> str:
    if tuple(content.mask.shape) != (len(names), columns):
        return f"for {len(names)} rows, and was left with {content.mask.shape[1]} columns of {len(content.mask)} rows"
    return "behind other prompts than these rows'"


def continued_inputs(
    backbone: PreTrainedModel,
    content: CacheContent,
    lengths: Tensor,
    new: int,
    mask: Tensor | None,
    positions: Tensor | None,
) -> tuple[dict[str, Tensor], CacheContent]:
    """Return the mask and positions of `new` columns after a cache, and what the cache holds after them.

    `lengths` [B] are the prompts'. `mask` is the caller's, of all columns, [B, T + new], or with the prompts' columns
    in front; `positions` are the caller's, of the new columns, counted from the text's or the prompt's start. Both may
    be None. Raise PromptTuningError if they do not match the columns, or this backbone would count the pads.
    """
    check_is_tensor(positions, "position_ids")
    seen, head, taken = content.mask.sum(1), content.head, content.taken
    now = content.mask.new_ones(len(content.mask), new)
    if mask is not None:
        widths = {content.width + content.text + new: head - taken, content.text + new: lengths - taken}
        before = widths.get(mask.shape[1]) if mask.dim() == 2 and len(mask) == len(now) else None
        if before is None or not torch.equal((mask[:, :-new] != 0).sum(1) + before, seen):
            raise PromptTuningError(
                f"attention_mask has shape {list(mask.shape)}, and past_key_values holds {content.text} "
                f"columns of text; give one of them and of the {new} new ones, [B, {content.text + new}]."
            )
        now = mask[:, -new:].bool()
    both = torch.cat([content.mask, now], dim=1)
    if not bool(both.all()) and not ignores_masked_columns(backbone, both.shape[1]):
        raise PromptTuningError(
            f"past_key_values holds padded rows, and {type(backbone).__name__} counts pads between tokens. Give rows "
            "of one length, or use generate."
        )
    check_room(backbone, int(both.sum(1).max()), int(lengths.max()))
    counted = (both.long().cumsum(1) - 1).clamp(min=0)[:, -new:]
    if positions is not None and not any(
        positions.shape[-1] == new and torch.equal(positions.expand_as(counted), counted - less[:, None])
        for less in (0 * lengths, lengths - taken, lengths * 0 + head - taken)
    ):
        raise PromptTuningError("position_ids are given that do not count on from past_key_values; leave them out.")
    inputs = {"attention_mask": both.long()}
    if takes(backbone, "position_ids") or with_own_positions(backbone) is not None:
        inputs["position_ids"] = counted
    return inputs, replace(content, mask=both, text=content.text + new)
