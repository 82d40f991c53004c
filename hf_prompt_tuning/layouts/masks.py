"""Who sees whom in a packed row: pure functions from segments and positions to masks.

A packed row is a tree of segments (a prompt, an example behind it, a label's words behind that). A token sees the
tokens of its own segment and of the segments above it, up to its own position. Positions are those of the text that
the path from the root spells, so a window or a chunk is cut by positions, not by columns: right by construction for
long rows too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """How far back a layer's tokens see.

    Attributes:
        window: only tokens less than so many positions back (sliding-window attention). None: no limit.
        chunk: only tokens of the same chunk of so many positions (Llama 4's chunked attention). None: no limit.
    """

    window: int | None = None
    chunk: int | None = None


def ancestors(parents: list[int]) -> Tensor:
    """[S, S] bool: whether segment j is segment i, or above it.

    Args:
        parents: of each segment, an earlier one; -1 for a root.
    """
    above = torch.eye(len(parents), dtype=torch.bool)
    for segment, parent in enumerate(parents):
        if parent >= 0:
            above[segment] |= above[parent]
    return above


def sees(above: Tensor, segments: Tensor, positions: Tensor, reach: Reach, query: Tensor, key: Tensor) -> Tensor:
    """Whether the tokens at columns `query` see those at columns `key` (bool, of their broadcast shape).

    Args:
        above: [S, S] bool, as `ancestors` gives it.
        segments: [N] long, of each token.
        positions: [N] long, of each token.
        reach: of the layer.
        query: columns, long.
        key: columns, long.
    """
    back = positions[query] - positions[key]
    visible = above[segments[query], segments[key]] & (back >= 0)
    if reach.window is not None:
        visible = visible & (back < reach.window)
    if reach.chunk is not None:
        visible = visible & (positions[query] // reach.chunk == positions[key] // reach.chunk)
    return visible


def tree_mask(above: Tensor, segments: Tensor, positions: Tensor, reach: Reach, past: int = 0) -> Tensor:
    """[N-past, N] bool: `sees` for every column behind the first `past`, and all columns."""
    columns = torch.arange(len(segments), device=segments.device)
    return sees(above, segments, positions, reach, columns[past:, None], columns[None, :])
