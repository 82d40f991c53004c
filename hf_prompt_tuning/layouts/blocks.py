"""Attention over a packed row, block by block: what one call with the row's mask gives, without its empty part.

Most of a packed row's mask is empty: an example sees its prompt and itself, not the other examples. A CPU's kernel
computes the empty part all the same. So the queries are cut into blocks of neighbouring segments, and each block looks
only at the keys that any of its queries sees:

    keys         p0 p1 | a0 a1 a2 a3 | b0 b1
    block p      x  x
    block a      x  x    x  x  x  x
    block b      x  x                  x  x

On a GPU a row is one call: small kernels would cost more than the empty part.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

NAME = "prompt_tuning_blocks"
MIN_BLOCK = 96
"""Queries of a block, at least: below that the calls cost more than they save (SmolLM2-135M, two cores)."""
MIN_OWN_BLOCK = 24
"""The same where a block ends with the last text of a prompt: one that goes on has to look at two prompts' keys."""


@dataclass(frozen=True)
class Block:
    """Neighbouring queries and the keys that they see.

    Attributes:
        start, stop: the columns of the queries.
        keys: [n] long, the columns of the keys.
        mask: [1, 1, stop-start, n], 0 or -inf, in the dtype of the scores.
    """

    start: int
    stop: int
    keys: Tensor
    mask: Tensor


def cut(mask: Tensor, ends: list[int], dtype: torch.dtype) -> list[Block]:
    """Blocks of at least `MIN_BLOCK` queries (`MIN_OWN_BLOCK` before another prompt's), cut where segments end.

    Args:
        mask: [N, N] bool.
        ends: the column behind each segment, rising to N.
        dtype: of the queries.
    """
    blocks, start = [], 0
    for stop in ends:
        if stop != ends[-1]:
            alone = not (mask[stop - 1] & mask[stop]).any()
            if stop - start < (MIN_OWN_BLOCK if alone else MIN_BLOCK):
                continue
        keys = mask[start:stop].any(0).nonzero()[:, 0]
        visible = mask[start:stop][:, keys]
        bias = torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill(~visible, -torch.inf)
        blocks.append(Block(start, stop, keys, bias[None, None]))
        start = stop
    return blocks


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a transformers model calls for its attention: query [1, heads, N, d]; returns [1, N, heads, d].

    A mask that has no blocks (or a model that asks for more than a mask) gets the ordinary call.
    """
    blocks = getattr(attention_mask, "blocks", None)
    if blocks is None or kwargs.get("position_bias") is not None or query.dtype != blocks[0].mask.dtype:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = getattr(module, "num_key_value_groups", 1)
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, block.start : block.stop],
            repeat_kv(key.index_select(2, block.keys), groups),
            repeat_kv(value.index_select(2, block.keys), groups),
            attn_mask=block.mask,
            dropout_p=dropout,
            scale=scaling,
        )
        for block in blocks
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)


@contextmanager
def in_blocks(backbone: PreTrainedModel) -> Iterator[None]:
    """Within this context the backbone's attention goes block by block, where its masks have blocks."""
    config, before = backbone.config, backbone.config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
