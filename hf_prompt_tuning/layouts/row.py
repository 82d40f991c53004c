"""Build a packed row: a tree of segments, and the position of each token."""

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .computed import ComputedPrompt


@dataclass
class Row:
    """Hold the segments of a tree in order, with their lengths and positions.

    Prompts that were computed before come first; their columns are in a cache. All other segments are embedded.
    """

    parents: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    embeds: list[Tensor] = field(default_factory=list)
    computed: list[ComputedPrompt] = field(default_factory=list)

    def add(self, embeds: Tensor, parent: int = -1) -> int:
        """Append a segment ([n, H]) after its parent (or at the root), and return its number."""
        self.embeds.append(embeds)
        return self._add_segment(len(embeds), parent)

    def add_computed(self, prompt: ComputedPrompt) -> int:
        """Append a computed prompt at the root, before any embeddings, and return its number."""
        self.computed.append(prompt)
        return self._add_segment(len(prompt), -1)

    def _add_segment(self, length: int, parent: int) -> int:
        self.starts.append(self.end(parent) if parent >= 0 else 0)
        self.columns.append(self.columns[-1] + self.lengths[-1] if self.columns else 0)
        self.parents.append(parent)
        self.lengths.append(length)
        return len(self.parents) - 1

    @property
    def past(self) -> int:
        """Return the number of columns in the cache."""
        return sum(map(len, self.computed))

    def end(self, segment: int) -> int:
        """Return the position after a segment's last token."""
        return self.starts[segment] + self.lengths[segment]

    def path_columns(self, segment: int) -> list[int]:
        """Return the columns of all tokens from the root to the segment's last token, ordered by position."""
        path: list[int] = []
        while segment >= 0:
            first = self.columns[segment]
            path[:0] = range(first, first + self.lengths[segment])
            segment = self.parents[segment]
        return path

    def positions_and_segments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each column's position and segment, both [N] long."""
        sizes, columns, starts = map(torch.tensor, (self.lengths, self.columns, self.starts))
        segments = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        positions = torch.arange(len(segments)) - (columns - starts)[segments]
        return positions.to(device), segments.to(device)

    def predictions(self) -> dict[int, Tensor]:
        """Return the predictions of the computed prompts' last vectors, [1, V], by column."""
        ends = itertools.accumulate(map(len, self.computed))
        return {end - 1: prompt.logits for end, prompt in zip(ends, self.computed, strict=True)}
