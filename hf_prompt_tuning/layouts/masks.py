"""Build a packed row and its masks. A row is a tree of segments: a prompt, an example after it, words after that.

A token sees the tokens of its own segment and of the segments above it, up to its own position. Positions count along
the path from the root. So windows and chunks are cut by positions, not by columns, which is correct for long rows too.
"""

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import ComputedPrompt, Layers


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


@dataclass(frozen=True)
class Segment:
    """Hold the place of neighbouring tokens in a row.

    Attributes:
        number: the segment's number in the row.
        above: the segment that these tokens follow, or None at the root.
        columns: the columns of the tokens.
    """

    number: int
    above: "Segment | None"
    columns: range

    def path(self) -> list[int]:
        """Return the column of each position from the root to the segment's last token."""
        return [*(self.above.path() if self.above else ()), *self.columns]

    @property
    def start(self) -> int:
        """The position of the first token."""
        return self.above.start + len(self.above.columns) if self.above else 0


@dataclass
class Row:
    """Hold the segments of a packed row in the order of their columns.

    Prompts that were computed before come first; their columns are in a cache. All other segments are embedded. In a
    row that continues another one, all columns of that one are in a cache.

    Attributes:
        segments: all segments.
        embeds: the embedded tokens of the last segments, [n, H] each.
        computed: the prompts of the first segments.
        past: the number of columns in the cache.
        cached: the cache of the row that is continued; None in a new row, whose cache is that of `computed`.
    """

    segments: list[Segment] = field(default_factory=list)
    embeds: list[Tensor] = field(default_factory=list)
    computed: list[ComputedPrompt] = field(default_factory=list)
    past: int = 0
    cached: Layers | None = None

    def continued(self, layers: Layers, segments: int | None = None) -> "Row":
        """Return a row that starts with this row's first segments (default all), given the cache of this row."""
        kept = self.segments[:segments]
        past = kept[-1].columns.stop if kept else 0
        return Row(kept, past=past, cached=[(keys[:, :, :past], values[:, :, :past]) for keys, values in layers])

    def add(self, embeds: Tensor, above: Segment | None = None) -> Segment:
        """Append a segment of embedded tokens ([n, H]) after the segment above it, or at the root."""
        self.embeds.append(embeds)
        return self._append(len(embeds), above)

    def add_computed(self, prompt: ComputedPrompt) -> Segment:
        """Append a computed prompt at the root, before any embeddings."""
        self.computed.append(prompt)
        self.past += len(prompt)
        return self._append(len(prompt), None)

    def _append(self, length: int, above: Segment | None) -> Segment:
        first = self.segments[-1].columns.stop if self.segments else 0
        self.segments.append(Segment(len(self.segments), above, range(first, first + length)))
        return self.segments[-1]

    def parents(self) -> list[int]:
        """Return the number of the segment above each segment; -1 for a root."""
        return [-1 if segment.above is None else segment.above.number for segment in self.segments]

    def positions_and_segments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each column's position and segment, both [N] long."""
        lengths = torch.tensor([len(segment.columns) for segment in self.segments])
        offsets = torch.tensor([segment.start - segment.columns.start for segment in self.segments])
        segments = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        positions = torch.arange(len(segments)) + offsets[segments]
        return positions.to(device), segments.to(device)

    def predictions(self) -> dict[int, Tensor]:
        """Return the predictions of the computed prompts' last vectors, [1, V], by column."""
        ends = itertools.accumulate(map(len, self.computed))
        return {end - 1: prompt.logits for end, prompt in zip(ends, self.computed, strict=True)}


def ancestors(parents: list[int]) -> Tensor:
    """Tell for each pair of segments whether segment j is i or above it, [S, S] bool. The parent of a root is -1."""
    above = torch.eye(len(parents), dtype=torch.bool)
    for segment, parent in enumerate(parents):
        if parent >= 0:
            above[segment] |= above[parent]
    return above


def sees(above: Tensor, segments: Tensor, positions: Tensor, reach: Reach, query: Tensor, key: Tensor) -> Tensor:
    """Tell whether the tokens at columns `query` see those at columns `key` (bool, in their broadcast shape).

    `above` [S, S] bool is from `ancestors`; `segments` and `positions` [N] long are each token's.
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
