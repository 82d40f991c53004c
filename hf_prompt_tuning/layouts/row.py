"""A packed row in the making: a tree of segments, and where each of their tokens stands."""

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .computed import ComputedPrompt


@dataclass
class Row:
    """Segments of a tree, one behind another, with their lengths and positions.

    Prompts that were computed before come first. Their columns are in a cache, and the rest is to be embedded.
    """

    parents: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    embeds: list[Tensor] = field(default_factory=list)
    computed: list[ComputedPrompt] = field(default_factory=list)

    def add(self, embeds: Tensor, parent: int = -1) -> int:
        """Appends a segment ([n, H]) behind another (or at the root); returns its number."""
        self.embeds.append(embeds)
        return self._add_segment(len(embeds), parent)

    def add_computed(self, prompt: ComputedPrompt) -> int:
        """Appends a prompt at the root, before any embeddings; returns its number."""
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
        """How many columns are in the cache."""
        return sum(map(len, self.computed))

    def end(self, segment: int) -> int:
        """The position behind a segment's last token."""
        return self.starts[segment] + self.lengths[segment]

    def path_columns(self, segment: int) -> list[int]:
        """The columns of all tokens from the root to a segment's last one, in the order of their positions."""
        path: list[int] = []
        while segment >= 0:
            first = self.columns[segment]
            path[:0] = range(first, first + self.lengths[segment])
            segment = self.parents[segment]
        return path

    def positions_and_segments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each column, [N] long both."""
        sizes, columns, starts = map(torch.tensor, (self.lengths, self.columns, self.starts))
        segments = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        positions = torch.arange(len(segments)) - (columns - starts)[segments]
        return positions.to(device), segments.to(device)

    def predictions(self) -> dict[int, Tensor]:
        """What was computed of the prompts' last vectors, [1, V], by their columns."""
        ends = itertools.accumulate(map(len, self.computed))
        return {end - 1: prompt.logits for end, prompt in zip(ends, self.computed, strict=True)}
