"""Compute attention over a packed row block by block, without the empty part of the row's mask.

Most of a packed row's mask is empty: an example sees its prompt and itself, not the other examples. A CPU kernel
computes the empty part all the same. So the queries are cut into blocks of neighbouring segments, and each block reads
only the keys that at least one of its queries sees:

    keys         p0 p1 | a0 a1 a2 a3 | b0 b1
    block p      x  x
    block a      x  x    x  x  x  x
    block b      x  x                  x  x

The result is that of one call with the whole mask. On a GPU a row is one call: small kernels would cost more than
the empty part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MIN_BLOCK = 96
"""The minimum number of queries in a block. Smaller blocks cost more than they save (SmolLM2-135M, two cores)."""
MIN_OWN_BLOCK = 24
"""The minimum for a block that ends with a prompt's last text. A longer block would read the keys of two prompts."""


@dataclass(frozen=True)
class Block:
    """Hold neighbouring queries and the keys that they see.

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
    """Cut a mask ([N, N] bool) into blocks of `MIN_BLOCK` queries, or `MIN_OWN_BLOCK` before another prompt's text.

    Blocks end where segments end; `ends` are the columns after each segment's last. `dtype` is that of the queries.
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


class BlockedMask(Tensor):
    """A mask that changes how `scaled_dot_product_attention` is computed with it.

    Any operation on it (a slice, a copy, another dtype) returns a plain tensor, and that means ordinary attention.
    So the backbone needs no change.
    """

    blocks: list[Block]

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            function = attention if func is scaled_dot_product_attention else func
            return function(*args, **kwargs or {})


def in_blocks(mask: Tensor, blocks: list[Block]) -> BlockedMask:
    """Return a mask ([1, 1, M, N]) for M queries that are cut into blocks."""
    blocked = mask.as_subclass(BlockedMask)
    blocked.blocks = blocks
    return blocked


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: BlockedMask, dropout_p: float = 0.0, **options: Any
) -> Tensor:
    """Return the result of `scaled_dot_product_attention`: [1, heads, M, d] for queries [1, heads, M, d]."""
    blocks = attn_mask.blocks
    if query.dtype != blocks[0].mask.dtype or query.shape[2] != blocks[-1].stop:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask.as_subclass(Tensor), dropout_p=dropout_p, **options
        )
    outputs = [
        scaled_dot_product_attention(
            query[:, :, block.start : block.stop],
            key.index_select(2, block.keys),
            value.index_select(2, block.keys),
            attn_mask=block.mask,
            dropout_p=dropout_p,
            **options,
        )
        for block in blocks
    ]
    return torch.cat(outputs, dim=2)
