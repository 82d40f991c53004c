"""Build the masks of packed rows with pure functions of segments and positions.

A packed row is a tree of segments: a prompt, an example after it, a label's words after the example. A token sees the
tokens of its own segment and of the segments above it, up to its own position. Positions count along the path from
the root. So windows and chunks are cut by positions, not by columns, which is correct for long rows too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """Limit how far back a layer's tokens see.

    Attributes:
        window: tokens see only tokens less than this many positions back (sliding-window attention). None: no limit.
        chunk: tokens see only tokens in the same chunk of this many positions (Llama 4's chunked attention). None: no
            limit.
    """

    window: int | None = None
    chunk: int | None = None


def ancestors(parents: list[int]) -> Tensor:
    """Tell for each pair of segments whether segment j is segment i or above it, [S, S] bool.

    Args:
        parents: the parent of each segment, which comes earlier; -1 for a root.
    """
    above = torch.eye(len(parents), dtype=torch.bool)
    for segment, parent in enumerate(parents):
        if parent >= 0:
            above[segment] |= above[parent]
    return above


def sees(above: Tensor, segments: Tensor, positions: Tensor, reach: Reach, query: Tensor, key: Tensor) -> Tensor:
    """Tell whether the tokens at columns `query` see those at columns `key` (bool, in their broadcast shape).

    Args:
        above: [S, S] bool, from `ancestors`.
        segments: [N] long, each token's segment.
        positions: [N] long, each token's position.
        reach: the layer's reach.
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
    """Return a [N-past, N] bool mask: `sees` for every column after the first `past`, against all columns."""
    columns = torch.arange(len(segments), device=segments.device)
    return sees(above, segments, positions, reach, columns[past:, None], columns[None, :])
